"""The data flows one way, and so do the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import batchinfer

ROOT = Path(batchinfer.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

ORDER = [
    *("errors", "ticks", "templates", "variables", "spec", "schedule", "catalog", "planner", "storage", "model_folder"),
    *("model_source", "checkpoint", "records", "shards", "cutting", "incremental", "source", "prompts", "prefixes"),
    *(
        "survey",
        "meter",
        "engine",
        "results",
        "job",
        "history",
        "replica",
        "commit",
        "ledger",
        "report",
        "budget",
        "progress",
    ),
    *(
        "placement",
        "metrics",
        "ownership",
        "pipeline",
        "session",
        "retry",
        "preflight",
        "planning",
        "render",
        "submit",
        "runner",
    ),
    *("ticker", "serve", "console", "cli"),
]

LAZY = ("ray", "vllm", "torch", "transformers", "pyarrow.dataset", "pandas", "boto3", "huggingface_hub")

ONLY = {
    "boto3": {"storage"},
    "botocore": {"storage"},
    "vllm": {"engine/vllm.py"},
    "ray": {"pipeline.py", "placement.py", "metrics.py", "submit"},
    "typer": {"cli"},
    "cronsim": {"ticks.py"},
}


def _place(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _room(path: Path) -> str:
    return _place(path).split("/")[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Full names of what the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(str(node.module))
            if node.module == "batchinfer":
                found |= {f"batchinfer.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=_place)
def test_a_module_imports_only_from_what_stands_to_its_left(path):
    rooms = {name.split(".")[1] for name in _imports(path) if name.startswith("batchinfer.")}
    rooms -= {_room(path), "__version__"}
    if _room(path) in ("__init__", "__main__"):
        assert rooms <= {"cli"}
        return
    assert _room(path) in ORDER, "a new module has its place in ORDER"
    left = ORDER[: ORDER.index(_room(path))]
    assert rooms <= set(left)


def test_the_order_names_no_module_that_is_gone():
    assert set(ORDER) <= {_room(path) for path in FILES}


@pytest.mark.parametrize("library", ONLY)
def test_a_heavy_library_is_imported_where_it_belongs_and_nowhere_else(library):
    users = [path for path in FILES if any(name.split(".")[0] == library for name in _imports(path))]
    assert [_place(path) for path in users if not {_place(path), _room(path)} & ONLY[library]] == []


def test_the_command_line_starts_without_the_heavy_libraries():
    code = f"import sys, batchinfer.cli; print([name for name in {LAZY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=_place)
def test_files_and_functions_fit_a_head(path):
    text = path.read_text()
    tree = ast.parse(text)
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    # Docstrings do not count: a field is described where it is declared.
    assert len(text.splitlines()) - sum((node.end_lineno or 0) - node.lineno + 1 for node in texts) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 60, node.name
