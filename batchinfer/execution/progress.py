"""The progress of a run: its values, and the interface that shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from batchinfer.accounting.records import ShardRecord


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, over all its sessions, counted as in the report.

    `rows_per_second` is the speed of this session, for the remaining time.
    """

    rows_done: int
    rows_total: int
    shards_done: int
    shards_total: int
    rows_failed: int
    tokens_per_second: float
    rows_per_second: float
    cost_usd: float
    selected_from: int | None = None
    """Rows of the input that `rows_total` were selected from; None: all of them run."""

    @property
    def seconds_left(self) -> float | None:
        """Remaining time at this session's speed; None before the first commit."""
        left = self.rows_total - self.rows_done
        return left / self.rows_per_second if self.rows_per_second > 0 else None


class Listener(Protocol):
    """Shows a run to a person or a program."""

    def event(self, name: str, **values: Any) -> None:
        """Show an event of the run, with its values."""

    def begin(self, progress: Progress) -> None:
        """The first shard is about to run."""

    def advance(self, progress: Progress, record: ShardRecord) -> None:
        """A shard was committed."""

    def end(self) -> None:
        """No more shards will be committed."""


class Speed:
    """Rows and tokens a second of this session, since the start of the first committed shard."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None
        self._rows = self._tokens = 0

    def add(self, record: ShardRecord) -> None:
        """A shard was committed."""
        if self._began is None:
            self._began = self._clock() - record.wall_seconds
        self._rows += record.rows
        self._tokens += record.input_tokens + record.output_tokens

    def per_second(self) -> tuple[float, float]:
        """(rows/s, tokens/s) up to now."""
        seconds = self._clock() - self._began if self._began is not None else 0.0
        return (self._rows / seconds, self._tokens / seconds) if seconds > 0 else (0.0, 0.0)
