"""The catalog as a person and as a script see it."""

from __future__ import annotations

import io
import json

from rich.console import Console

from batchinfer.catalog import accelerators, models
from batchinfer.reporting import accelerators_document, accelerators_table, models_document, models_table


def shown(table) -> str:
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_models_have_the_keys_of_the_contract_and_are_json():
    document = json.loads(json.dumps(models_document(models().values())))
    assert len(document) == len(models())
    for entry in document:
        keys = {"name", "repository", "architecture", "parameters", "active_parameters", "license", "context"}
        assert keys <= entry.keys()
    (mixtral,) = [entry for entry in document if entry["name"] == "mixtral-8x7b"]
    assert mixtral["parameters"] == 46_702_792_704
    assert mixtral["active_parameters"] < mixtral["parameters"] / 3


def test_the_table_says_what_is_gated_dropped_and_sparse():
    text = shown(models_table(models().values()))
    assert "until vLLM 0.23.0: use qwen1.5-72b" in text
    assert "(gated)" in text
    assert all(name in text for name in models())


def test_accelerators_show_their_price_with_its_date_or_that_there_is_none():
    text = shown(accelerators_table(accelerators()))
    assert "2.69 RunPod H100 SXM community, 2026-09-25" in " ".join(text.split())
    assert "none known" in text
    assert "$ an hour at AWS" in text
    (h100,) = [line for line in text.splitlines() if line.startswith("H100 ")]
    assert h100.split()[-1] == "6.88"
    (a10,) = [line for line in text.splitlines() if line.startswith("A10 ")]
    assert a10.split()[-1] == "2026-09-25", "AWS has no A10"
    names = [entry["name"] for entry in accelerators_document(accelerators())]
    assert names == list(accelerators())
