"""What OpenLineage's receivers are told of a command, by its own client, and that no receiver can hurt a run."""

from __future__ import annotations

import json
import socket
import time

import pytest
from dateutil import parser

from batchinfer.errors import EngineError, SpecError, Stopped, UserError
from batchinfer.execution import lineage, reports, runner
from batchinfer.execution.lineage import dataset_of, require_client, traced
from batchinfer.execution.reports import report
from tests.support.builders import make_spec
from tests.support.lakes import Lake, past_run
from tests.support.mixed_runs import ROWS
from tests.support.receivers import receiving


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch):
    """Drawing a page takes longer than all that is looked at here."""
    monkeypatch.setattr(reports, "_write_page", lambda *story: None)


@pytest.fixture
def receiver():
    """A receiver of events."""
    with receiving(201) as server:
        yield server


def carried_out(checked, target: str, work=None, **keys):
    """A command of the run that sends its events to `target`."""
    spec = checked.spec.model_copy(update={"lineage": make_spec(lineage={"openlineage": target, **keys}).lineage})
    return traced(spec, checked.layout, checked.manifest, work or (lambda: report(checked.layout.root)))


def ending(error: BaseException):
    def work():
        raise error

    return work


def test_a_receiver_gets_the_start_and_the_end_with_datasets_schema_and_cost(receiver, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "a-token")
    parent = "01920b11-2c1d-7e0a-8f5a-000000000001"
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", f"airflow/nightly.label/{parent}")
    checked = past_run(tmp_path, labels={"team": "search"})
    made = carried_out(checked, receiver.address, namespace="tickets")
    assert [path for path, _, _ in receiver.received] == ["/api/v1/lineage"] * 2
    assert {headers["Authorization"] for _, headers, _ in receiver.received} == {"Bearer a-token"}
    start, end = (json.loads(body) for _, _, body in receiver.received)
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == end["run"]["runId"]
    assert parser.isoparse(start["eventTime"]) <= parser.isoparse(end["eventTime"])
    assert (end["job"]["namespace"], end["job"]["name"]) == ("tickets", "job")

    (read,), (written,) = end["inputs"], end["outputs"]
    assert (read["namespace"], read["name"]) == ("file", str(tmp_path / "in-3"))
    assert read["inputFacets"]["inputStatistics"]["rowCount"] == 3 * ROWS
    assert {field["name"]: field["type"] for field in read["facets"]["schema"]["fields"]}["id"] == "int64"
    assert (written["namespace"], written["name"]) == ("file", f"{checked.layout.root}/data")
    assert {"id", "output", "error_code"} <= {field["name"] for field in written["facets"]["schema"]["fields"]}
    assert written["outputFacets"]["outputStatistics"]["rowCount"] == 3 * ROWS
    assert start["outputs"][0]["name"] == written["name"]

    facets = end["run"]["facets"]
    assert facets["batchinfer_cost"]["costUsd"] == pytest.approx(made.cost_usd)
    assert facets["batchinfer_cost"]["rows"] == 3 * ROWS
    assert facets["batchinfer_run"]["runId"] == checked.manifest.fingerprint.run_id
    assert facets["batchinfer_run"]["labels"] == {"team": "search"}
    caller = facets["parent"]["job"]
    assert (caller["namespace"], caller["name"]) == ("airflow", "nightly.label")
    assert facets["parent"]["run"]["runId"] == parent
    assert "batchinfer_cost" not in start["run"]["facets"]


@pytest.mark.parametrize(
    ("error", "state"),
    [(EngineError("it died"), "FAIL"), (Stopped("stopped by SIGINT"), "ABORT"), (KeyError("a bug"), "FAIL")],
)
def test_a_file_gets_a_line_for_each_event_and_the_error_is_raised(error, state, tmp_path):
    checked = past_run(tmp_path)
    place = tmp_path / "new" / "events.jsonl"
    for _ in range(2):
        with pytest.raises(type(error)):
            carried_out(checked, str(place), ending(error))
    found = [json.loads(line) for line in place.read_text().splitlines()]
    assert [event["eventType"] for event in found] == ["START", state] * 2
    assert len({event["run"]["runId"] for event in found}) == 2, "an ended run of OpenLineage cannot go on"
    assert str(error.args[0]) in found[1]["run"]["facets"]["errorMessage"]["message"]


def test_too_many_failed_rows_are_a_failure_with_its_cost(tmp_path):
    checked = past_run(tmp_path)
    made = report(checked.layout.root).model_copy(update={"rows_failed": 6, "max_error_rate": 0.1})
    carried_out(checked, str(tmp_path / "events"), lambda: made)
    end = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert end["eventType"] == "FAIL"
    assert "50.0%" in end["run"]["facets"]["errorMessage"]["message"]
    assert end["run"]["facets"]["batchinfer_cost"]["rowsFailed"] == 6


@pytest.mark.parametrize("to", ["delta", "iceberg"])
def test_a_published_table_is_an_output_with_its_version(to, tmp_path):
    lake, place = Lake(to, tmp_path / "lake"), tmp_path / "events"
    checked = past_run(tmp_path, lineage={"openlineage": f"file://{place}"})
    made = runner.publish(checked.layout.root, [f"output.publish={json.dumps(lake.keys())}"])
    end = json.loads(place.read_text().splitlines()[-1])
    table = end["outputs"][1]
    assert table["facets"]["version"]["datasetVersion"] == made.published.version
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 3 * ROWS
    expected = ("file", lake.table) if to == "delta" else (lake.catalog["properties"]["uri"], "db.t")
    assert (table["namespace"], table["name"]) == expected


def test_a_receiver_that_fails_is_asked_again_and_a_refusal_is_told(receiver, told, tmp_path):
    checked = past_run(tmp_path)
    receiver.answers = [503]
    carried_out(checked, f"{receiver.address}/our/lineage?team=a")
    assert [path for path, _, _ in receiver.received] == ["/our/lineage?team=a"] * 3
    assert told == []
    receiver.answers = [403, 201]
    carried_out(checked, receiver.address)
    assert told == [("lineage not sent", {"state": "START", "reason": "the receiver answered 403"})]


def test_a_dead_receiver_holds_up_no_run_and_its_address_is_in_no_message(told, tmp_path, monkeypatch):
    checked = past_run(tmp_path)
    monkeypatch.setenv("OUR_RECEIVER", "http://127.0.0.1:1/secret-token")
    began = time.monotonic()
    assert carried_out(checked, "env:OUR_RECEIVER").rows == 3 * ROWS
    assert time.monotonic() - began < lineage.END_SECONDS
    assert [values["state"] for _, values in told] == ["START", "COMPLETE"]
    assert "secret-token" not in str(told)
    monkeypatch.delenv("OUR_RECEIVER")
    carried_out(checked, "env:OUR_RECEIVER")
    assert told[-1][1]["reason"] == "ValueError: the environment variable OUR_RECEIVER holds no address"


def test_a_receiver_that_never_answers_is_waited_for_a_bounded_time(told, tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "END_SECONDS", 0.5)
    checked = past_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        carried_out(checked, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < lineage.ANSWER_SECONDS
    assert ("lineage not sent", {"state": "the last", "reason": "no answer within 0.5 s"}) in told


def test_places_have_the_names_of_the_conventions(tmp_path):
    assert dataset_of("s3://team/in/tickets/") == ("s3://team", "in/tickets")
    assert dataset_of("s3://team") == ("s3://team", "/")
    assert dataset_of("/data/in") == dataset_of("file:///data/in") == ("file", "/data/in")


@pytest.mark.parametrize("target", ["ftp://x/y", "s3://bucket/events", "https://u:p@x", "env:1x", "https://", ""])
def test_a_target_that_takes_no_events_is_refused(target):
    with pytest.raises(SpecError):
        make_spec(lineage={"openlineage": target})


def test_a_missing_client_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(lineage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        require_client(make_spec(lineage={"openlineage": "/events"}))
    assert "batchinfer[lineage]" in refused.value.remedy
    require_client(make_spec())
