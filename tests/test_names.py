"""A name stands for one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import batchinfer

SOURCES = sorted(Path(batchinfer.__file__).parent.rglob("*.py"))


def test_no_two_classes_share_a_name():
    places = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_only_the_run_folder_package_spells_the_names_of_a_runs_files():
    names = ("manifest.parquet", "plan.json", "report.json", "retry.json", "replicas.parquet", "run.log")
    elsewhere = [
        (path.name, node.value)
        for path in SOURCES
        if path.parent.name != "rundir"
        for node in _texts(ast.parse(path.read_text(encoding="utf-8")))
        if any(node.value.endswith(name) for name in names)
    ]
    assert elsewhere == []


def _texts(tree: ast.AST) -> list[ast.Constant]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
