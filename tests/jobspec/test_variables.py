from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec.variables import NAMES, Moment, fixed_folder, has_variables, render
from tests.support.builders import make_spec

# Half past midnight of the first of March in Berlin: still February in UTC.
MOMENT = Moment(
    "nightly", datetime(2026, 2, 28, 23, 30, tzinfo=UTC), "Europe/Berlin", lambda at: at - timedelta(days=1)
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("in/{{ run.date }}", "in/2026-03-01"),
        ("in/{{ run.date - 1 }}", "in/2026-02-28"),
        ("in/{{ run.date + 30 }}", "in/2026-03-31"),
        ("y={{ run.year }}/m={{ run.month }}/d={{ run.day }}", "y=2026/m=03/d=01"),
        ("h={{ run.hour }}-{{ run.minute }}", "h=00-30"),
        ("{{ (run.date - 1).month }}/{{ run.date.day }}", "02/01"),
        ("{{ run.date | replace('-', '/') }}", "2026/03/01"),
        ("out/{{ run.time }}", "out/20260228T233000Z"),
        ("out/{{ run.id }}", "out/nightly-20260228T233000Z"),
        ("{{ run.previous.date }}T{{ run.previous.hour }}", "2026-02-28T00"),
        ("{{ run.previous.previous.date }}", "2026-02-27"),
        ("s3://bucket/plain/*.parquet", "s3://bucket/plain/*.parquet"),
    ],
)
def test_variables_are_those_of_the_schedules_clock(template: str, expected: str) -> None:
    assert render(template, MOMENT) == expected


@pytest.mark.parametrize("key", ["input", "output"])
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("in/{{ run.dat }}", "there is no variable 'run.dat'; there are " + ", ".join(f"run.{name}" for name in NAMES)),
        ("in/{{ date }}", "there is no variable 'date'; there are run.date"),
        ("in/{{ run.date.week }}", "there is no variable 'run.date.week'"),
        ("in/{{ run.__class__.__mro__ }}", "there is no variable 'run.__class__"),
        ("in/{{ run['_moment'].job }}", "the sandbox forbids"),
        ("in/{{ run }}", "run has parts"),
        ("in/{{ 'x' * 10 ** 9 }}", "the sandbox forbids"),
        ("in/{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}", "the sandbox forbids"),
        ("s3://me:pw@bucket/{{ run.date }}", "holds a user or a password"),
        ("in/{{ run.date - 'a' }}", "cannot be rendered"),
        ("in/{{ run.date", "is not a valid Jinja2 template"),
        ("{% if false %}x{% endif %}", "is not a location"),
        ("in/{{ '\\n' }}", "is not a location"),
        ("s3://{{ run.date }}/x", "the first part of a place is fixed"),
        ("in/{{ run.previous.date }}", "it needs schedule.cron"),
    ],
)
def test_a_wrong_variable_is_a_mistake_of_the_spec(key: str, uri: str, message: str) -> None:
    least = {"input": {"uri": "/in", "id_column": "id"}, "output": {"uri": "/out"}}
    with pytest.raises(SpecError) as caught:
        make_spec(**{key: least[key] | {"uri": uri}})
    assert f"{key}.uri" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("runs/nightly/{{ run.date }}/x", "runs/nightly"),
        ("runs/nightly-{{ run.date }}", "runs"),
        ("{{ run.date }}", "."),
        ("/{{ run.date }}", "/"),
        ("s3://bucket/a/{{ run.date }}", "s3://bucket/a"),
        ("s3://bucket/{{ run.date }}", "s3://bucket"),
        ("runs/plain/", "runs/plain"),
    ],
)
def test_the_fixed_folder_is_what_stands_before_the_first_variable(uri: str, folder: str) -> None:
    assert fixed_folder(uri) == folder


def test_a_single_brace_is_a_name_like_any_other() -> None:
    assert not has_variables("in/{a}/b}}")
