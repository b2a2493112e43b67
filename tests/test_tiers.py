"""A test is in the tier that it says it is in."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from tests.support.tiers import NotAUnitTest, tier


@pytest.mark.parametrize(
    ("markers", "fixtures", "expected"),
    [
        ([], ["tmp_path"], "unit"),
        (["parametrize"], ["ray_cluster"], "integration"),
        ([], ["bucket", "s3_url"], "integration"),
        (["integration"], [], "integration"),
        (["end_to_end"], ["ray_cluster"], "end_to_end"),
        (["soak"], ["ray_cluster"], "end_to_end"),
    ],
)
def test_a_test_is_in_the_tier_of_what_it_starts(markers: list[str], fixtures: list[str], expected: str) -> None:
    assert tier(markers, fixtures) == expected


def test_a_unit_test_starts_no_process() -> None:
    with pytest.raises(NotAUnitTest, match="starts"):
        subprocess.run([sys.executable, "-c", ""], check=False)


def test_a_unit_test_starts_no_process_in_a_thread_of_its_own() -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            subprocess.run([sys.executable, "-c", ""], check=False)
        except NotAUnitTest as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(raised) == 1


def test_a_unit_test_imports_no_s3_server() -> None:
    with pytest.raises(NotAUnitTest, match="imports moto"):
        import moto  # noqa: F401


@pytest.mark.integration
def test_an_integration_test_may_start_a_process() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)
