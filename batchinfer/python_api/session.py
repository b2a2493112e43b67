"""What surrounds a use case that is called from Python: a listener, the log, and a process that is left as found.

A command owns its process, and redirects its streams and handles its signals. A call has the caller's: it writes
nothing to stdout, and its events go through structlog to the standard logger `batchinfer`.
"""

from __future__ import annotations

import contextlib
import html
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import structlog

from batchinfer import events, signals
from batchinfer.accounting.records import ShardRecord
from batchinfer.execution import ray_private
from batchinfer.execution.progress import Listener, Progress
from batchinfer.reporting.console import Chatter, TerminalListener, log_named
from batchinfer.reporting.notebook import progress_html, progress_line
from batchinfer.start_up import require_process
from batchinfer.storage import Stores

LOGGER = logging.getLogger("batchinfer")
# What a library does: without a handler of the caller's, Python would print warnings to stderr.
LOGGER.addHandler(logging.NullHandler())


@contextlib.contextmanager
def attended(stores: Stores, progress: bool | None) -> Iterator[Listener]:
    """A listener for one use case. `progress`: whether to show a bar; None: in a notebook, and where stderr is a
    terminal. Raises BatchinferError; one that is not the caller's mistake names the log."""
    # Ray and vLLM report usage to their makers by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    require_process()
    with (
        signals.as_found(),
        Chatter(stores, redirects=False) as chatter,
        ray_private.workers_heard_by(chatter.write_line),
        _quiet("ray", "ray.data", "ray._private.authentication"),
    ):
        listener = LoggingListener(chatter, _shown(chatter, progress))
        with events.heard_by(listener.event), log_named(chatter):
            yield listener


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """A context in which these loggers of Ray say only what is wrong: their handlers write to the caller's stderr."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _shown(chatter: Chatter, progress: bool | None) -> Listener | None:
    """What shows the run to a person, beside the log; None: nothing."""
    if progress is False:
        return None
    display = notebook_display()
    if display is not None:
        return NotebookListener(display)
    return TerminalListener(chatter) if progress or sys.stderr.isatty() else None


class Display(Protocol):
    """IPython's `display`."""

    def __call__(self, shown: object, *, raw: bool, display_id: bool) -> Any: ...


def notebook_display() -> Display | None:
    """IPython's `display` if this process is a notebook's kernel, otherwise None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    found: Display = display
    return found


class LoggingListener:
    """Passes each event to the standard logger and to `_run/run.log`, and everything to `shown`."""

    def __init__(self, chatter: Chatter, shown: Listener | None) -> None:
        self._chatter = chatter
        self._shown = shown
        self._log = structlog.wrap_logger(LOGGER, processors=[_standard], wrapper_class=structlog.BoundLogger)

    def event(self, name: str, **values: Any) -> None:
        if isinstance(self._shown, TerminalListener):
            # It keeps the log too.
            self._shown.event(name, **values)
        else:
            if name in events.BEGINNINGS:
                self._chatter.keep_at(values["output"])
            self._chatter.write_line(f"batchinfer: {events.plain_line(name, values)}")
            if self._shown is not None:
                self._shown.event(name, **values)
        event = events.EVENTS.get(name)
        getattr(self._log, event.level if event is not None else "info")(name, **values)

    def begin(self, progress: Progress) -> None:
        if self._shown is not None:
            self._shown.begin(progress)

    def advance(self, progress: Progress, record: ShardRecord) -> None:
        self._log.debug(
            "shard committed", shard_id=record.shard_id, rows_done=progress.rows_done,
            rows_total=progress.rows_total, cost_usd=progress.cost_usd,
        )  # fmt: skip
        if self._shown is not None:
            self._shown.advance(progress, record)

    def end(self) -> None:
        if self._shown is not None:
            self._shown.end()


def _standard(logger: Any, method: str, values: structlog.typing.EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """structlog's values as a call of the standard logger: the line for a person, with the values in `extra`."""
    name = str(values.pop("event"))
    return (events.plain_line(name, values),), {"extra": {"batchinfer_event": name, "batchinfer_values": dict(values)}}


class NotebookListener:
    """A bar in the output of the cell, and the last event that is no progress below it."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._handle: Any = None
        self._line = ""
        self._bar = ""
        self._text = ""

    def event(self, name: str, **values: Any) -> None:
        self._line = events.plain_line(name, values)
        self._show()

    def begin(self, progress: Progress) -> None:
        self.advance(progress, None)

    def advance(self, progress: Progress, record: ShardRecord | None) -> None:
        self._bar, self._text = progress_html(progress), progress_line(progress)
        self._show()

    def end(self) -> None:
        self._show()

    def _show(self) -> None:
        shown = {
            "text/html": f"{self._bar}<br><small>{html.escape(self._line)}</small>",
            "text/plain": self._text or self._line,
        }
        if self._handle is None:
            self._handle = self._display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
