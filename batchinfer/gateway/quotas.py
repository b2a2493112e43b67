"""What an owner may take: calls in a minute, and requests, tokens and dollars in a month, by the sums of `costs`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime

from batchinfer.accounting.costs import Sums, Window
from batchinfer.errors import UserError
from batchinfer.execution.costs import costs
from batchinfer.gateway.keys import Caller
from batchinfer.gateway.problems import ApiProblem
from batchinfer.gateway.root import GatewayRoot
from batchinfer.rundir.find_runs import default_cache


class CallRates:
    """Calls of each owner, as a bucket that fills up over a minute. In this process alone. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, owner: str, per_minute: int) -> None:
        """Count a call. Raises ApiProblem (429) with the seconds to wait if there were too many."""
        with self._lock:
            now = self._clock()
            left, at = self._buckets.get(owner, (float(per_minute), now))
            left = min(float(per_minute), left + (now - at) * per_minute / 60)
            if left < 1:
                self._buckets[owner] = (left, now)
                wait = max(1, round((1 - left) * 60 / per_minute + 0.5))
                raise ApiProblem(
                    429,
                    f"more than {per_minute:,} calls in a minute: wait {wait} s",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(wait)},
                )
            self._buckets[owner] = (left - 1, now)


def month_of(root: GatewayRoot, owner: str, now: datetime | None = None) -> Sums:
    """What the owner's runs took this month, as `batchinfer costs` would say."""
    today = (now or datetime.now(UTC)).date()
    window = Window(since=date(today.year, today.month, 1))
    try:
        return costs([root.owner_folder(owner)], ("month",), window, cache=default_cache(), stores=root.stores).total
    except UserError:
        # There is no run yet.
        return Sums()


def require_quota(root: GatewayRoot, caller: Caller, lines: int) -> None:
    """Raise ApiProblem (429) if the month does not leave room for a batch of so many requests.

    Requests of batches that wait or run count as if they were done.
    """
    limits = caller.limits
    quotas = (limits.requests_per_month, limits.tokens_per_month, limits.usd_per_month)
    if all(quota is None for quota in quotas):
        return
    sums = month_of(root, caller.owner)
    if limits.requests_per_month is not None:
        waiting = _waiting(root, caller.owner)
        if sums.rows + waiting + lines > limits.requests_per_month:
            _refuse(f"{limits.requests_per_month:,} requests", f"{sums.rows + waiting:,.0f} are taken")
    if limits.tokens_per_month is not None and sums.input_tokens + sums.output_tokens >= limits.tokens_per_month:
        _refuse(f"{limits.tokens_per_month:,} tokens", "all are taken")
    if limits.usd_per_month is not None and sums.usd >= limits.usd_per_month:
        _refuse(f"${limits.usd_per_month:,.2f}", f"${sums.usd:,.2f} are spent")


def _waiting(root: GatewayRoot, owner: str) -> int:
    """Requests of the owner's batches that are not answered yet."""
    waiting = 0
    for entries in root.queued().values():
        for entry in entries:
            if entry.owner == owner:
                record, progress = root.batch(owner, entry.batch_id), root.marks(owner, entry.batch_id).progress
                done = 0 if progress is None else progress.completed + progress.failed
                waiting += 0 if record is None else max(0, record.lines - done)
    return waiting


def _refuse(quota: str, taken: str) -> None:
    raise ApiProblem(
        429,
        f"the quota of this month is {quota}, and {taken}",
        code="insufficient_quota",
        headers={"Retry-After": "3600"},
    )
