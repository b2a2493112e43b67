"""Damaged run folders and lines with a fixed seed; `benchmarks/hostile_folders.py` tries thousands."""

from __future__ import annotations

import hostile_folders
import pytest

pytestmark = pytest.mark.integration
"""Seconds a test: many damaged folders."""


@pytest.mark.parametrize("kind", list(hostile_folders.KINDS))
def test_damaged_folders_and_lines_end_in_time_with_a_result_or_a_message(kind):
    ends, slowest = hostile_folders.fuzz(kind, 15, seed=7)
    assert len(ends) > 2
    assert slowest < 20
