"""Fixtures of several tests of the run."""

from __future__ import annotations

from typing import Any

import pytest

from batchinfer import events


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The events that are told, each with its values."""
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(events, "tell", lambda name, **values: found.append((name, values)))
    return found
