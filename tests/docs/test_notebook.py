"""The notebook of the docs runs in a kernel, and shows jobs, plans, trials and runs as HTML."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.integration


def test_the_notebook_runs_and_shows_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    made = json.loads(generate.executed_notebook(tmp_path))

    shown = ["".join(out["data"].get("text/html", "")) for cell in made["cells"] for out in cell.get("outputs", ())]
    assert sum("<table" in html for html in shown) >= 4
    assert any("<svg" in html for html in shown), "the device time of the run"
    kept = json.loads(generate.NOTEBOOK.read_text(encoding="utf-8"))
    assert [cell["source"] for cell in made["cells"]] == [cell["source"] for cell in kept["cells"]]
    assert all(cell["outputs"] for cell in kept["cells"] if cell["cell_type"] == "code"), "run generate.py --execute"
