"""Hostile inputs with fixed seeds; `benchmarks/hostile.py` tries thousands."""

from __future__ import annotations

import hostile
import pytest


@pytest.mark.parametrize("kind", list(hostile.KINDS))
def test_hostile_inputs_end_in_time_with_a_result_or_a_message(kind):
    share, attempt = hostile.KINDS[kind]
    ends, slowest = hostile.run(kind, attempt, share, seed=7)
    assert sum(ends.values()) == share
    assert len(ends) > 1
    assert slowest < 10
