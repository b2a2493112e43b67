"""The reference pages in the repository are those of the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _load()


@pytest.mark.parametrize("name", list(generate.pages()))
def test_the_page_in_the_repository_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == generate.pages()[name], "run `python docs/generate.py`"


def test_a_stale_page_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "reference" / "errors.md").write_text("old")
    assert generate.main(["--check"]) == 1


def test_a_name_without_words_and_words_without_a_name_are_refused() -> None:
    with pytest.raises(generate.WordsMissing, match="nothing of columns: new"):
        generate.require_words("columns", ["old", "new"], {"old": "a column"})
    with pytest.raises(generate.WordsMissing, match="does not have: gone"):
        generate.require_words("columns", ["old"], {"old": "a column", "gone": "another"})
