"""Variables such as `{{ run.date }}` in the URIs of a spec. Pure.

`run.date`, `hour`, `minute`, `year`, `month` and `day` are read on the schedule's clock. `run.time` is the instant in
UTC, which no two ticks share. `run.previous` has the same parts for the previous tick.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError

from batchinfer.jobspec.cron import tick_name
from batchinfer.jobspec.sandbox import Environment
from batchinfer.jobspec.templates import Template, compile_template

NAMES = ("date", "hour", "minute", "year", "month", "day", "time", "id", "previous")

_MARK = re.compile(r"\{[{%#]")


class Day:
    """A calendar day, printed as 2026-11-20. `+` and `-` add and subtract days."""

    def __init__(self, value: date) -> None:
        self._value = value

    def __str__(self) -> str:
        return self._value.isoformat()

    def __add__(self, days: int) -> Day:
        return Day(self._value + timedelta(days=days))

    def __sub__(self, days: int) -> Day:
        return Day(self._value - timedelta(days=days))

    @property
    def year(self) -> str:
        return f"{self._value.year:04d}"

    @property
    def month(self) -> str:
        return f"{self._value.month:02d}"

    @property
    def day(self) -> str:
        return f"{self._value.day:02d}"


@dataclass(frozen=True, slots=True)
class Moment:
    """The values that a URI is rendered from: the job's name, the run's instant and the schedule's time zone.

    `before` maps an instant to the tick before it; None without a schedule.
    """

    job: str
    at: datetime
    timezone: str = "UTC"
    before: Callable[[datetime], datetime] | None = None


class RunVariable:
    """The variable `run` of a template."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
        local = moment.at.astimezone(ZoneInfo(moment.timezone))
        self.date = Day(local.date())
        self.hour = f"{local.hour:02d}"
        self.minute = f"{local.minute:02d}"
        self.year, self.month, self.day = self.date.year, self.date.month, self.date.day
        self.time = tick_name(moment.at)
        self.id = f"{moment.job}-{self.time}"

    def __str__(self) -> str:
        raise jinja2.UndefinedError("run has parts: write run.date or another of them")

    @property
    def previous(self) -> RunVariable:
        moment = self._moment
        if moment.before is None:
            raise jinja2.UndefinedError("run.previous is the tick before this one, and there is no schedule.cron")
        return RunVariable(Moment(moment.job, moment.before(moment.at), moment.timezone, moment.before))


def has_variables(uri: str) -> bool:
    """Does the URI have variables?"""
    return _MARK.search(uri) is not None


def fixed_folder(uri: str) -> str:
    """The folder that contains all renderings of the URI: the path before its first variable. Raises ValueError."""
    mark = _MARK.search(uri)
    before = uri[: mark.start()] if mark else uri.rstrip("/") + "/"
    folder = before.rpartition("/")[0]
    if re.fullmatch(r"[a-z0-9]+:/*", folder):
        raise ValueError(f"{uri!r} begins with a variable: the first part of a place is fixed")
    return folder or ("/" if before.startswith("/") else ".")


def require_template(uri: str) -> None:
    """Raise ValueError, with a message for a person, if the URI has an unknown variable or cannot be rendered."""
    if not has_variables(uri):
        return
    unknown = [name for name in _compiled(uri).columns if name != "run"]
    unknown += [path for path in _paths(Environment().parse(uri)) if _is_unknown(path)]
    if unknown:
        known = ", ".join(f"run.{name}" for name in NAMES)
        raise ValueError(f"there is no variable {unknown[0]!r}; there are {known}")
    # Two sample instants catch most mistakes; a URI that fails on other days only is refused by `render`.
    for at in (datetime(2026, 3, 31, 22, 30), datetime(2026, 1, 1)):
        render(uri, Moment("job", at.replace(tzinfo=ZoneInfo("UTC")), "UTC", lambda at: at - timedelta(days=1)))
    fixed_folder(uri)


def render(uri: str, moment: Moment) -> str:
    """The URI with its variables filled in. Raises ValueError."""
    if not has_variables(uri):
        return uri
    template = _compiled(uri)
    try:
        rendered = template.renderer()({"run": RunVariable(moment)})
    except SecurityError as error:
        raise ValueError(f"does what the sandbox forbids: {error}") from None
    except Exception as error:
        # A template is the user's program and may raise anything.
        raise ValueError(f"{uri!r} cannot be rendered: {error}") from None
    if not rendered.strip() or any(ord(character) < 32 for character in rendered):
        raise ValueError(f"{uri!r} gives {rendered!r:.80}, which is not a location")
    return rendered


@functools.lru_cache(maxsize=64)
def _compiled(uri: str) -> Template:
    """The compiled URI, cached because a job's URIs are rendered for hundreds of ticks."""
    return compile_template(uri)


def _paths(tree: nodes.Template) -> Iterator[str]:
    """Every path `run.a.b` in the template, with all its beginnings (`run.a`)."""
    for node in tree.find_all(nodes.Getattr):
        parts: list[str] = []
        at: nodes.Node = node
        while isinstance(at, nodes.Getattr):
            parts.append(at.attr)
            at = at.node
        if isinstance(at, nodes.Name) and at.name == "run":
            yield ".".join(["run", *reversed(parts)])


def _is_unknown(path: str) -> bool:
    _, *parts = path.split(".")
    while len(parts) > 1 and parts[0] == "previous":
        parts = parts[1:]
    if parts[0] == "date":
        return parts[1:] not in ([], ["year"], ["month"], ["day"])
    return parts[0] not in NAMES
