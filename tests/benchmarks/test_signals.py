from __future__ import annotations

from pathlib import Path

import pytest

# The module's name is also that of a module of the package; benchmarks/ is on the path of the tests.
from signals import run_trials


@pytest.mark.integration
@pytest.mark.parametrize(("subcommand", "signals", "life"), [("validate", 6, 2.0), ("run", 2, 12.0)])
def test_a_signal_at_any_moment_is_code_4_or_0_one_line_and_loses_nothing(
    tmp_path: Path, subcommand: str, signals: int, life: float
) -> None:
    trials = run_trials(tmp_path, f"{tmp_path}/out", signals, 7, life, 60, subcommand)
    assert sum(trial.signals.count("SIG") for trial in trials) >= signals
    assert [trial for trial in trials if trial.faults] == []
