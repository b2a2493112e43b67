"""The FOCUS export: the ledger's dollars, in rows that FinOps tools read."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.accounting.costs import Window
from batchinfer.execution.costs import costs
from batchinfer.reporting.focus import COLUMNS, FocusRows
from tests.execution.test_mixed_runs import past_sessions
from tests.support.mixed_runs import PastReplica, PastSession, write_run

EVENING = 1_790_722_800
"""2026-09-29, 23:00 UTC, in seconds since 1970."""


def rows_of(*roots: Path) -> FocusRows:
    found = FocusRows(Window())
    costs(list(map(str, roots)), ["job"], Window(), each=found.add)
    return found


@settings(deadline=None, max_examples=10)
@given(st.lists(past_sessions, min_size=1, max_size=4))
def test_the_billed_costs_add_up_to_the_law_of_the_run(sessions):
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), sessions)
        found = rows_of(Path(folder))
        text = list(csv.DictReader(io.StringIO(found.csv().decode())))
        table = pq.read_table(pa.BufferReader(found.parquet()))
    bill = sum(session.cost_usd for session in sessions)
    assert sum(float(row["BilledCost"]) for row in text) == pytest.approx(bill, abs=1e-6)
    assert sum(table.column("BilledCost").to_pylist()) == pytest.approx(bill, abs=1e-6)
    for row in found.rows:
        assert row["ListUnitPrice"] * row["PricingQuantity"] == pytest.approx(row["BilledCost"])
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A run over the end of a month: an hour of each, the second one lost."""
    replica = PastReplica(EVENING + 86_400, work=[3592.0], waste=3600.0)
    write_run(tmp_path, [PastSession(2.0, [replica], labels={"team": "search"})])
    return tmp_path / "a-job"


def test_a_charge_lies_in_one_billing_period_and_says_what_it_was_for(night):
    found = {(row["x_SpentOn"], row["BillingPeriodStart"][:7]): row for row in rows_of(night).rows}
    assert {key: round(row["BilledCost"], 3) for key, row in found.items() if key[0] != "load"} == {
        ("work", "2026-09"): 0.998,
        ("work", "2026-10"): 0.998,
        ("waste", "2026-09"): 1.0,
        ("waste", "2026-10"): 1.0,
    }
    work = found["work", "2026-09"]
    assert work["ConsumedUnit"] == "Tokens"
    assert work["ConsumedQuantity"] == pytest.approx(30)
    assert found["waste", "2026-09"]["ConsumedQuantity"] == 0
    assert json.loads(work["Tags"]) == {"team": "search"}
    assert (work["ChargePeriodStart"], work["ChargePeriodEnd"]) == ("2026-09-30T23:00:00Z", "2026-10-01T00:00:00Z")
    assert work["SubAccountName"] == "a-job"


def test_every_row_has_every_column_and_no_other(night):
    assert all(set(row) == set(COLUMNS) for row in rows_of(night).rows)


VALIDATOR = os.environ.get("BATCHINFER_FOCUS_VALIDATOR") or shutil.which("focus-validator")


@pytest.mark.integration
@pytest.mark.skipif(VALIDATOR is None, reason="focus-validator needs an environment of its own (Python 3.12)")
def test_the_official_validator_finds_no_fault(night, tmp_path):
    file = tmp_path / "focus.csv"
    file.write_bytes(rows_of(night).csv())
    asked = [str(VALIDATOR), "--data-file", str(file), "--validate-version", "1.2", "--block-download"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path)
    # Its exit code is 0 whatever it finds. Of two rules on InvoiceId ("MUST be null" without an invoice, "MUST NOT be
    # null" with one) it applies both to every row, and any file fails one of them.
    assert re.search(r"Total: \d{3} ", done.stdout), done.stderr[-2000:]
    assert set(re.findall(r"(\S+): FAIL", done.stdout)) <= {"InvoiceId-C-005-C"}, done.stdout[-4000:]
