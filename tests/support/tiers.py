"""Three tiers of tests: unit (the default), integration and end to end; and what keeps a unit test one.

A unit test runs in the process of the tests. It starts no other process, hence no Ray, and imports none of `HEAVY`:
each takes seconds, and unit tests are what one runs while working.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator

UNIT, INTEGRATION, END_TO_END = "unit", "integration", "end_to_end"

MARKERS = {
    UNIT: "in this process alone; the tier of every test that is in no other",
    INTEGRATION: "takes seconds, imports torch, or starts processes (Ray, an S3 server) with the scripted engine",
    END_TO_END: "starts vLLM, submits jobs to a cluster, or kills what runs",
}

SERVICES = {"ray_cluster", "s3_url", "torch", "transformers"}
"""Fixtures that take seconds: what uses one is an integration test without saying so."""

HEAVY = {"vllm", "moto", "torch", "transformers"}


READS_FOOTERS = "parquet_footer.py"
"""The child process that belongs to reading a Parquet file: it takes a fraction of a second."""


LISTS_FONTS = "fc-list"
"""The child process of matplotlib's first import on a machine. The first picture of a session waits for it."""


class NotAUnitTest(BaseException):
    """A unit test did what is for another tier. No Exception: code under test must not handle it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"a unit test {what}: mark it `integration` or `end_to_end`")


def tier(markers: Collection[str], fixtures: Collection[str]) -> str:
    """The tier of a test with these markers and fixtures."""
    if {END_TO_END, "soak"} & set(markers):
        return END_TO_END
    return INTEGRATION if INTEGRATION in markers or SERVICES & set(fixtures) else UNIT


_watching = False
_hooked = False


@contextlib.contextmanager
def unit_test() -> Iterator[None]:
    """Raise NotAUnitTest in the block for a process that starts or a heavy import, in any thread."""
    global _watching
    watch_from_now()
    try:
        yield
    finally:
        _watching = False


def watch_from_now() -> None:
    """As `unit_test`, until the process ends."""
    global _watching, _hooked
    if not _hooked:
        # Python has no way to take a hook out again.
        sys.addaudithook(_refuse)
        _hooked = True
    _watching = True


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching:
        return
    if event == "subprocess.Popen":
        if READS_FOOTERS in str(arguments[1]) or LISTS_FONTS in str(arguments[1]):
            return
        raise NotAUnitTest(f"starts {arguments[1]}")
    if event == "import" and arguments[0] in HEAVY:
        raise NotAUnitTest(f"imports {arguments[0]}")
