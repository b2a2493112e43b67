"""ARCHITECTURE.md draws the house as it is."""

from __future__ import annotations

import re
from pathlib import Path

import batchinfer

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(batchinfer.__file__).parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([\w/.]+)`", PAGE))


def test_every_file_that_the_page_names_exists() -> None:
    ours = [name for name in NAMED if name.endswith((".py", ".md")) or re.fullmatch(r"[a-z0-9]+/", name)]
    assert len(ours) > 10
    assert [name for name in ours if not (ROOT / name).exists() and not (PACKAGE / name).exists()] == []


def test_every_package_and_top_module_is_on_the_map() -> None:
    rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {".", "deploy"}
    rooms |= {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    assert rooms - NAMED == set()
