"""Who is told how a run ended, with what, and that nothing of it can end a run."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys

import pytest
import yaml

from batchinfer.errors import EngineError, SpecError, Stopped
from batchinfer.execution import notify
from batchinfer.execution.notify import telling
from batchinfer.jobspec import parse, to_yaml
from tests.support.builders import make_report_value, make_spec
from tests.support.receivers import receiving


@pytest.fixture
def receiver(monkeypatch):
    """A webhook."""
    monkeypatch.setattr(notify.time, "sleep", lambda seconds: None)
    with receiving() as server:
        yield server


def spec_for(receiver, **values):
    return make_spec(notify={"webhook": f"{receiver.address}/hook", **values}, labels={"team": "search"})


def ending(error: Exception):
    def work():
        raise error

    return work


def test_a_run_that_completed_is_told_with_its_cost_and_signed(receiver, monkeypatch):
    monkeypatch.setenv(notify.SECRET, "hush")
    made = make_report_value()
    assert telling(spec_for(receiver), "/out", lambda: made) is made
    ((_, headers, body),) = receiver.received
    document = json.loads(body)
    assert (document["event"], document["job"], document["rows"]) == ("completed", "a-job", 4)
    assert document["cost_usd"] == made.cost_usd
    stamped = f"{headers['X-Batchinfer-Timestamp']}.".encode() + body
    assert headers["X-Batchinfer-Signature"] == "sha256=" + hmac.new(b"hush", stamped, hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (EngineError("it died"), "failed"),
        (Stopped("limits.max_cost_usd of $5 is reached"), "budget"),
        (Stopped("stopped by SIGINT"), None),
    ],
)
def test_an_error_is_told_and_raised(receiver, error, event):
    with pytest.raises(type(error)):
        telling(spec_for(receiver), "/out", ending(error))
    assert [json.loads(body)["event"] for _, _, body in receiver.received] == ([event] if event else [])


def test_too_many_failed_rows_and_a_passed_budget_are_told_as_such(receiver):
    made = make_report_value(rows_failed=3)
    telling(spec_for(receiver), "/out", lambda: made)
    dear = make_report_value().model_copy(update={"max_cost_usd": 1e-9})
    telling(spec_for(receiver), "/out", lambda: dear)
    assert [json.loads(body)["event"] for _, _, body in receiver.received] == ["failed", "budget"]


def test_only_the_named_occasions_are_told(receiver):
    telling(spec_for(receiver, on=["failed"]), "/out", make_report_value)
    assert receiver.received == []


def test_a_webhook_that_fails_is_tried_again_and_never_ends_a_run(receiver, told):
    receiver.answers = [503, 500]
    telling(spec_for(receiver), "/out", make_report_value)
    assert (len(receiver.received), told) == (3, [])
    receiver.answers = [500, 500, 500]
    telling(spec_for(receiver), "/out", make_report_value)
    assert told == [("notification failed", {"occasion": "completed", "reason": "the webhook answered 500"})]


def test_a_request_that_the_receiver_refuses_is_not_repeated(receiver, told):
    receiver.answers = [404]
    telling(spec_for(receiver), "/out", make_report_value)
    assert len(receiver.received) == 1
    assert told[0][1]["reason"] == "the webhook answered 404"


def test_an_address_may_come_from_the_environment_and_is_in_no_message(receiver, told, monkeypatch):
    spec = make_spec(notify={"webhook": "env:OUR_HOOK"})
    telling(spec, "/out", make_report_value)
    assert told[0][1]["reason"] == "the environment variable OUR_HOOK holds no address"
    monkeypatch.setenv("OUR_HOOK", "http://127.0.0.1:1/secret-token")
    telling(spec, "/out", make_report_value)
    assert "secret-token" not in told[1][1]["reason"]
    monkeypatch.setenv("OUR_HOOK", receiver.address)
    telling(spec, "/out", make_report_value)
    assert len(receiver.received) == 1


@pytest.mark.integration
def test_a_program_is_run_with_the_document_and_its_failure_ends_no_run(tmp_path, told):
    place = tmp_path / "told.json"
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read()); sys.exit(int(sys.argv[2]))"
    for status in ("0", "3"):
        spec = make_spec(notify={"command": [sys.executable, "-c", code, str(place), status]})
        telling(spec, "/out", make_report_value)
        assert json.loads(place.read_text())["event"] == "completed"
    assert [values["reason"].split(":")[0].rsplit(" ", 3)[1:] for _, values in told] == [["ended", "with", "3"]]


@pytest.mark.parametrize(
    "values", [{}, {"webhook": "ftp://x/y"}, {"webhook": "https://u:p@x/y"}, {"command": []}, {"webhook": "env:1x"}]
)
def test_a_notification_that_cannot_be_sent_is_refused(values):
    with pytest.raises(SpecError):
        make_spec(notify=values)


def test_the_key_on_is_a_name_though_yaml_reads_it_as_true():
    text = make_spec().model_dump(mode="json", exclude_defaults=True)
    spec = parse(yaml.safe_dump(text) + "notify: {webhook: 'https://x/y', on: [failed]}\n", "a spec")
    assert spec.notify is not None
    assert spec.notify.on == ("failed",)
    assert parse(to_yaml(spec), "the same again") == spec
