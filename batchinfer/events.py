"""Every event that batchinfer reports, with its values; how an event becomes a line.

`tell` reports an event to the listeners of its process. A command prints it: a plain line on a terminal, otherwise a
JSON line on stderr, and a line in `_run/run.log`. A replica writes its events to `_run/events/<replica_id>.jsonl`,
which the command that runs the job reads.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

Hearer = Callable[..., None]
"""Is called with the name of the event, and its values as keyword arguments."""


@dataclass(frozen=True, slots=True)
class Event:
    """The description of one kind of event."""

    when: str
    """The event's meaning, for the reference."""
    values: tuple[str, ...] = ()
    """Names of the event's possible values, besides `run_id`, `replica_id` and `shard_id` if the event concerns one."""
    level: str = "info"
    line: str = ""
    """A line for a person, with {values}; empty: the name and all values."""


EVENTS: Mapping[str, Event] = MappingProxyType(
    {
        "connecting": Event("A cluster is joined, or a local one started.", ("cluster",)),
        "cluster not started": Event(
            "Ray was not up on this machine within 30 seconds; it is started again.",
            ("start", "starts"),
            "warning",
            "Ray did not start on this machine within 30 seconds (attempt {start} of {starts}): is it very busy?",
        ),
        "waiting": Event("The cluster lacks what the job needs.", ("needs", "free", "hint")),
        "started": Event(
            "A run has begun; its manifest is written.",
            ("output", "rows", "shards", "committed", "accelerator", "replicas"),
        ),
        "resumed": Event("A run goes on.", ("output", "rows", "shards", "committed", "accelerator", "replicas")),
        "retrying": Event("Failed rows are run again.", ("output", "rows", "shards")),
        "nothing to do": Event("Every shard is there already, or no row has failed.", ("shards", "rows_failed")),
        "running": Event("The first shard is about to run.", ("rows_done", "rows_total", "selected_from")),
        "shard committed": Event(
            "The results of a shard are in the run's folder.",
            (
                *("attempt", "rows", "rows_failed", "seconds", "rows_done", "rows_total", "selected_from"),
                *("tokens_per_second", "cost_usd", "seconds_left"),
            ),
        ),
        "stopping": Event(
            "A signal or a budget stops the run; shards in flight end first.", ("reason", "hint"), "warning"
        ),
        "trial used": Event("A trial of this job says how fast and how long its rows are.", ("rows", "report")),
        "trial ignored": Event("The last trial ran with another spec.", ("report", "reason")),
        "comparing": Event("A variant of a comparison is about to run its sample.", ("variant", "output")),
        "judging": Event("A judge is about to score the answers of a comparison.", ("answers", "output")),
        "hint": Event("What would help the plan, or which rows a retry cannot help.", ("text",)),
        "replica started": Event("A replica begins to load its engine.", ("node",)),
        "engine ready": Event(
            "An engine is loaded.", ("seconds",), line="replica {replica_id}: engine loaded in {seconds} s"
        ),
        "engine not loaded": Event(
            "The first engine of a replica did not load; the run ends.",
            ("reason",),
            "error",
            "replica {replica_id}: engine not loaded: {reason}",
        ),
        "engine died": Event(
            "An engine died. `rows` are the positions in the input of the rows that were in it, up to 20 of them: one "
            "of these may have killed it. `rows_suspect` and `rows_waiting` count those in it and those not yet in it.",
            ("reason", "rows", "rows_suspect", "rows_waiting"),
            "warning",
            "replica {replica_id}: engine died in shard {shard_id}: {reason}; suspect: {rows_suspect} rows {rows}",
        ),
        "engine restarting": Event(
            "A dead engine is replaced; `restart` of `max_restarts` (limits.max_engine_restarts).",
            ("restart", "max_restarts"),
            "warning",
            "replica {replica_id}: engine restart {restart} of {max_restarts}",
        ),
        "suspects split": Event(
            "Rows that killed the engine again run in `parts` smaller batches.",
            ("rows", "rows_suspect", "parts"),
            "warning",
            "replica {replica_id}: shard {shard_id}: {rows_suspect} suspect rows are split into {parts} parts",
        ),
        "row set aside": Event(
            "A row killed the engine whenever it ran alone: it fails with `engine_killed`, the others go on.",
            ("row", "deaths"),
            "warning",
            "replica {replica_id}: shard {shard_id}: row {row} set aside, the engine died {deaths} times of it",
        ),
        "engine hangs": Event(
            "An engine with rows made no step for limits.engine_timeout_seconds, and is killed.",
            ("seconds", "rows_unfinished"),
            "warning",
            "replica {replica_id}: engine made no step for {seconds} s with {rows_unfinished} rows; killed",
        ),
        "replica hangs": Event(
            "An engine hangs in the replica's own process, which ends; Ray starts it again.",
            ("seconds",),
            "error",
            "replica {replica_id}: hangs beyond a kill of its engine for {seconds} s; its process ends",
        ),
        "worker lost": Event(
            "A replica has not written its journal for `seconds`: its process, its machine or its network is gone.",
            ("node", "seconds", "shards"),
            "warning",
            "replica {replica_id} on {node} is lost: silent for {seconds} s, with shards {shards} in flight",
        ),
        "journal not written": Event(
            "The store did not take a replica's journal for `storage.*.retry_seconds`; shards in flight go on and the "
            "replica tries again. If a shard is to begin meanwhile, the run ends with exit code 1.",
            ("reason",),
            "warning",
            "replica {replica_id}: journal not written: {reason}",
        ),
        "lock waited for": Event(
            "The lock of an output has a holder that may be dead.",
            ("uri", "holder", "seconds"),
            line="waiting up to {seconds} s for the lock {uri}, which {holder} holds or left behind",
        ),
        "lease taken": Event("The lock of a holder that is gone was taken over.", ("uri", "holder"), "warning"),
        "lease lost": Event(
            "The lock was not renewed in time or was taken over by another; the run ends.", ("uri",), "error"
        ),
        "lease late": Event(
            "A renewal of the lock is overdue; the run waits until the store takes one.",
            ("uri", "seconds"),
            "warning",
            "the lock {uri} is overdue by its lease for {seconds} s; the run waits for the store",
        ),
        "leftover kept": Event(
            "A half-written file of a killed writer could not be deleted.", ("uri", "reason"), "warning"
        ),
        "store retried": Event(
            "A request failed and is sent again, for `storage.*.retry_seconds`; told once in a while.",
            ("uri", "store", "reason", "attempt", "gives_up_in_seconds"),
            "warning",
            "the store {store} failed ({reason}); attempt {attempt}, given up in {gives_up_in_seconds} s",
        ),
        "store answers again": Event("The first answer after failures.", ("store", "seconds")),
        "store throttled": Event(
            "The store asks for fewer requests, and all requests of this process slow down.",
            ("store", "requests_a_second"),
            "warning",
        ),
        "store setting": Event(
            "What was found out about the store, and the key of the spec that says it.", ("store", "setting", "reason")
        ),
        "store slow": Event(
            "A call of a store took longer than 10 s; told once a minute at most.",
            ("uri", "seconds"),
            "warning",
            "the store took {seconds} s for {uri}",
        ),
        "submitted": Event("The job is on the cluster.", ("id", "cluster", "output")),
        "planned": Event(
            "How the job was laid out for the cluster.",
            ("rows", "shards", "committed", "accelerator", "replicas", "num_gpus", "cost_usd"),
        ),
        "not checked from here": Event(
            "What `submit` could not look at from this machine, by spec key or with the reason.", ("reason",)
        ),
        "due": Event("A tick is about to run.", ("job", "tick")),
        "resuming": Event("A scheduled run that died goes on.", ("job", "tick")),
        "failed": Event("The run of a tick failed; it stays due.", ("job", "tick", "reason"), "warning"),
        "the schedule changed: its folder has run": Event(
            "After a change of the schedule another tick's run is in this tick's folder.", ("tick", "ran", "output")
        ),
        "notification failed": Event(
            "A webhook or a program of `notify` was not told how the run ended; the run is as it is.",
            ("occasion", "reason"),
            "warning",
        ),
        "lineage not sent": Event(
            "An event of `lineage` (`state`, as START) was not sent; the run is as it is.",
            ("state", "reason"),
            "warning",
        ),
        "published": Event(
            "The results are in their table (`output.publish`). `rows`: those of the commit.",
            ("table", "mode", "version", "rows"),
        ),
        "publish again": Event(
            "Another commit came into the table first; the results are written again.",
            ("table", "attempt", "reason"),
            "warning",
        ),
        "not published": Event(
            "More rows failed than limits.max_error_rate allows, so the table stays as it is.",
            ("table", "reason"),
            "warning",
        ),
        "cache not used": Event(
            "What shapes the answers cannot be told, so that none is looked up or kept; the run goes on without.",
            ("reason",),
            "warning",
        ),
        "cache not read": Event(
            "The store of `cache` failed: all requests of the replica run.", ("uri", "reason"), "warning"
        ),
        "cache not written": Event(
            "The store of `cache` failed: these answers are not kept for later runs.", ("uri", "reason"), "warning"
        ),
        "cache file ignored": Event(
            "A file of `cache` is damaged or of somebody else: its requests run.", ("uri",), "warning"
        ),
        "page not written": Event(
            "The report for a browser could not be made or written; the run and its other files are complete.",
            ("reason",),
            "warning",
        ),
        "report ignored": Event(
            "The report of another run is not valid or cannot be read; the plan does without it.",
            ("report", "reason"),
            "warning",
        ),
        "runs already": Event("Another process is running this job.", ("job", "tick", "reason")),
        "skipped": Event("A tick was left out for good (`overlap: skip`).", ("job", "tick", "running")),
        "queued": Event("A tick waits for another run of the job (`overlap: queue`).", ("job",)),
        "scheduled": Event("`schedule serve` has read a spec.", ("job", "spec", "next_tick")),
        "tick": Event("`schedule serve` has started a process for a tick.", ("job", "pid")),
        "tick ended": Event("That process has ended.", ("job", "pid", "exit_code")),
        "ending": Event("`schedule serve` or `gateway` is stopping; shards in flight end first.", ("running", "hint")),
        "gateway ready": Event("The gateway answers.", ("url", "root"), line="the gateway answers at {url}"),
        "batch begins": Event("The gateway has started a process for a batch.", ("batch", "model", "pid")),
        "batch process ended": Event(
            "That process has ended; with another exit code than 0 the batch is tried again.",
            ("batch", "pid", "exit_code"),
        ),
    }
)
"""By name. A test fails if the code tells an event that is not here."""

BEGINNINGS = ("started", "resumed", "retrying")
"""Events after which the run's folder exists and can hold the log."""

SLOW_SECONDS = 10.0
"""Seconds of a store's call from which `store slow` is told. Most calls take milliseconds, a large shard some seconds;
lower, and healthy stores are reported."""
_SELDOM_SECONDS = 60.0

_hearers: list[Hearer] = []
_last_slow = -_SELDOM_SECONDS


def tell(name: str, **values: Any) -> None:
    """Report an event to the listeners of this process, if there are any."""
    for hearer in list(_hearers):
        hearer(name, **values)


@contextlib.contextmanager
def heard_by(hearer: Hearer) -> Iterator[None]:
    """A context in which `hearer` is called for each event of this process."""
    _hearers.append(hearer)
    try:
        yield
    finally:
        _hearers.remove(hearer)


def tell_slow(uri: str, seconds: float) -> None:
    """Tell `store slow` if `seconds` is above `SLOW_SECONDS`, at most once a minute."""
    global _last_slow
    if seconds > SLOW_SECONDS and time.monotonic() - _last_slow > _SELDOM_SECONDS:
        _last_slow = time.monotonic()
        tell("store slow", uri=uri, seconds=round(seconds, 1))


def json_log(write: Callable[[str], None]) -> Any:
    """structlog's logger of JSON lines: `.info(name, **values)` calls `write` with a line without its newline."""
    return structlog.wrap_logger(
        _Writer(write),
        processors=[_level, _timestamp, structlog.processors.JSONRenderer(default=str, ensure_ascii=False)],
    )


def plain_line(name: str, values: Mapping[str, Any]) -> str:
    """The event as one line for a person."""
    event = EVENTS.get(name)
    shown = {key: _shown(value) for key, value in values.items() if key not in ("timestamp", "level")}
    if event is not None and event.line:
        with contextlib.suppress(KeyError):
            return event.line.format(**shown)
    return f"{name}: " + ", ".join(f"{key} {value}" for key, value in shown.items())


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return " ".join(text.split())


class _Writer:
    """The logger that structlog calls with the rendered line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def info(self, line: str) -> None:
        self._write(line)


def _level(logger: WrappedLogger, method: str, values: EventDict) -> EventDict:
    event = EVENTS.get(str(values.get("event")))
    values["level"] = event.level if event is not None else "info"
    return values


_now = structlog.processors.TimeStamper(fmt="iso", utc=True)


def _timestamp(logger: WrappedLogger, method: str, values: EventDict) -> EventDict:
    """Add the time, unless the event has one, as events of a replica do."""
    return values if "timestamp" in values else _now(logger, method, values)
