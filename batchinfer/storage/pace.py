"""The pace and the retries of requests to a store. Retries are limited by time, not by a number of attempts.

botocore's own retries share a quota in the process. Steady throttling uses the quota up, and then the first 503 ends
the run. Here each request is retried until a limit of time, and throttling slows all requests of the process.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from batchinfer.events import tell, tell_slow
from batchinfer.storage.patience import first_answer_seconds

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
"""Seconds. The pause between retries doubles up to this. Longer leaves GPUs idle after the store is back; shorter
sends more requests to a failing store."""

SLOWEST_REQUESTS_A_SECOND = 4.0
"""The lowest pace. Lower, and the renewal of a lock could wait for its turn longer than a lease."""

WINDOW_SECONDS = 1.0
GROWTH = 1.25
CUT = 0.6
UNLIMITED_REQUESTS_A_SECOND = 500.0
"""The pace of a throttled store changes once a window: it grows by 25% and is cut by 60% of the throttled share. So it
settles if about a third is refused, and falls at once if all are. Above UNLIMITED_REQUESTS_A_SECOND there is no
limit."""

TELL_EVERY_SECONDS = 30.0

_THROTTLING = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"}
_TRANSIENT_CODES = _THROTTLING | {"RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted"}
_TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}


def code_of(error: ClientError) -> str:
    """S3's code of an error; the HTTP status as text if the response to a HEAD has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status of an error; 0 if unknown."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


class Pace:
    """The retries and the pace of all requests of a process to one store. Safe to use from several threads."""

    def __init__(self, endpoint: str, retry_seconds: float, max_attempts: int | None) -> None:
        self._endpoint = endpoint
        self._retry_seconds = retry_seconds
        self._max_attempts = max_attempts
        self._lock = threading.Lock()
        self._answered = False
        self._failing_since: float | None = None
        self._rate: float | None = None
        self._next_turn = 0.0
        self._window_began = time.monotonic()
        self._answers = self._throttled = 0
        self._told = {"store retried": float("-inf"), "store throttled": float("-inf")}

    def call(self, uri: str, request: Callable[[], T]) -> T:
        """The result of `request`, which is retried until the limits of the spec are reached.

        Then its error is raised, with a note on the attempts and the seconds. Errors that are not transient are raised
        at once.
        """
        began, attempt = time.monotonic(), 0
        while True:
            self._wait_for_turn()
            sent = time.monotonic()
            try:
                result = request()
            except (BotoCoreError, ClientError, ResponseParserError) as error:
                attempt += 1
                if isinstance(error, ClientError):
                    self._answered = True
                if not is_transient(error):
                    raise
                self._adjust(is_throttling(error))
                pause = self._pause(attempt)
                left = self._limit() - (time.monotonic() - began) - pause
                if left < 0 or attempt == self._max_attempts:
                    if attempt > 1:
                        error.add_note(f"after {attempt} attempts in {time.monotonic() - began:.0f} s")
                    raise
                self._tell_failure(uri, error, attempt, left)
                time.sleep(pause)
            else:
                self._succeeded()
                self._adjust(False)
                tell_slow(uri, time.monotonic() - sent)
                return result

    def _limit(self) -> float:
        return self._retry_seconds if self._answered else first_answer_seconds(self._retry_seconds)

    def _pause(self, attempt: int) -> float:
        # Up to half of the pause is random, so that requests that failed together are not retried together.
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 20))
        return longest * random.uniform(0.5, 1.0)

    def _wait_for_turn(self) -> None:
        with self._lock:
            if self._rate is None:
                return
            now = time.monotonic()
            turn = max(now, self._next_turn)
            self._next_turn = turn + 1 / self._rate
        time.sleep(turn - now)

    def _adjust(self, throttled: bool) -> None:
        """Count an answer. At the end of a window, set the pace by the throttled share."""
        with self._lock:
            self._answers += 1
            self._throttled += throttled
            now = time.monotonic()
            seconds = now - self._window_began
            if seconds < WINDOW_SECONDS:
                return
            share = self._throttled / self._answers
            before = self._answers / seconds if self._rate is None else self._rate * GROWTH
            limited = self._rate is not None or share > 0
            rate = max(SLOWEST_REQUESTS_A_SECOND, before * (1 - CUT * share))
            self._rate = rate if limited and rate < UNLIMITED_REQUESTS_A_SECOND else None
            self._window_began, self._answers, self._throttled = now, 0, 0
            due = share > 0 and self._is_due("store throttled", now)
        if due:
            tell("store throttled", store=self._endpoint, requests_a_second=round(rate, 1))

    def _succeeded(self) -> None:
        with self._lock:
            self._answered = True
            failed_since, self._failing_since = self._failing_since, None
        if failed_since is not None and time.monotonic() - failed_since > LONGEST_PAUSE_SECONDS:
            tell("store answers again", store=self._endpoint, seconds=round(time.monotonic() - failed_since))

    def _tell_failure(self, uri: str, error: Exception, attempt: int, left: float) -> None:
        with self._lock:
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            due = self._is_due("store retried", now)
        if due:
            tell(
                "store retried",
                uri=uri,
                store=self._endpoint,
                reason=str(error),
                attempt=attempt,
                gives_up_in_seconds=round(left),
            )

    def _is_due(self, name: str, now: float) -> bool:
        """Was the event `name` not reported for TELL_EVERY_SECONDS? A failing store fails all requests."""
        if now - self._told[name] < TELL_EVERY_SECONDS:
            return False
        self._told[name] = now
        return True


def is_throttling(error: Exception) -> bool:
    """Does the store ask for fewer requests?"""
    return isinstance(error, ClientError) and (code_of(error) in _THROTTLING or status_of(error) in (429, 503))


def is_transient(error: Exception) -> bool:
    """May the same request succeed later?"""
    if isinstance(error, ClientError):
        return code_of(error) in _TRANSIENT_CODES or status_of(error) in _TRANSIENT_STATUSES
    if isinstance(error, SSLError):
        # A certificate that is not trusted now will not be trusted in a minute.
        return False
    broken = (
        BotoConnectionError,
        HTTPClientError,
        ResponseStreamingError,
        IncompleteReadError,
        FlexibleChecksumError,
        ResponseParserError,
    )
    return isinstance(error, broken)
