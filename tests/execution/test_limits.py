"""What a finished run's report means for the exit code."""

from __future__ import annotations

import pytest

from batchinfer.errors import Stopped, TooManyFailedRows
from batchinfer.execution.reports import require_limits
from tests.support.builders import make_report_value


def test_a_run_that_passed_its_budget_never_ends_with_0():
    made = make_report_value()
    require_limits(made)
    require_limits(made.model_copy(update={"max_cost_usd": made.cost_usd}))
    with pytest.raises(Stopped, match=r"more than limits\.max_cost_usd") as caught:
        require_limits(made.model_copy(update={"max_cost_usd": made.cost_usd * 0.99}))
    assert caught.value.exit_code == 4


def test_failed_rows_go_before_the_budget():
    made = make_report_value(rows_failed=4, errors={"output_invalid": 4})
    with pytest.raises(TooManyFailedRows):
        require_limits(made.model_copy(update={"max_cost_usd": 0.0}))
