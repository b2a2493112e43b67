from __future__ import annotations

import ast
import json
from collections.abc import Iterator

import pytest

from batchinfer import events
from batchinfer.events import EVENTS
from tests.support import ROOT

IDS = {"run_id", "replica_id", "shard_id"}


def told() -> Iterator[tuple[str, set[str]]]:
    """Every event that the package tells: its name, and the names of the values that are written out."""
    for path in sorted((ROOT / "batchinfer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = ast.unparse(node.func).rsplit(".", 1)[-1]
            if called not in ("event", "tell", "note") and ast.unparse(node.func) != "self._log.info":
                continue
            first = node.args[0]
            for name in (first.body, first.orelse) if isinstance(first, ast.IfExp) else (first,):
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield name.value, {keyword.arg for keyword in node.keywords if keyword.arg}


def test_every_event_that_is_told_is_in_the_list_with_its_values_and_nothing_else_is() -> None:
    found: dict[str, set[str]] = {}
    for name, values in told():
        found.setdefault(name, set()).update(values)
    assert found.keys() == EVENTS.keys()
    for name, values in found.items():
        assert values <= {*EVENTS[name].values, *IDS}, name


def test_a_line_for_a_person_needs_no_value_that_the_event_does_not_have() -> None:
    for name, event in EVENTS.items():
        values = {value: f"<{value}>" for value in (*event.values, *IDS)}
        line = events.plain_line(name, values)
        assert "\n" not in line
        assert "{" not in line
        if event.line:
            assert line.startswith(event.line.partition("{")[0])


def test_an_event_that_lacks_a_value_of_its_line_is_told_with_what_it_has() -> None:
    assert events.plain_line("engine died", {"reason": "a\nb"}) == "engine died: reason a b"


def test_a_json_line_has_the_level_of_its_event_and_keeps_the_time_that_it_came_with() -> None:
    lines: list[str] = []
    log = events.json_log(lines.append)
    log.info("row set aside", row=7, timestamp="2026-01-01T00:00:00Z")
    log.info("engine ready", seconds=1.5)
    first, second = map(json.loads, lines)
    assert first == {"event": "row set aside", "level": "warning", "row": 7, "timestamp": "2026-01-01T00:00:00Z"}
    assert second["level"] == "info"
    assert second["timestamp"] > first["timestamp"]


def test_a_slow_store_is_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(events, "_last_slow", -1e9)
    with events.heard_by(lambda name, **values: heard.append(f"{name} {values['uri']}")):
        events.tell_slow("s3://quick", 1.0)
        events.tell_slow("s3://slow", 11.0)
        events.tell_slow("s3://slower", 20.0)
    assert heard == ["store slow s3://slow"]
