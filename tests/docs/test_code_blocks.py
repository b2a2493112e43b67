"""The code in README.md and in the pages of docs/ does what the pages say.

What a fence says decides what becomes of its block:

- `sh` and `python` are run, in the order of the page, in one temporary folder a page;
- a block with a `title` is that file, written into the folder and not run;
- `text title="output"` is what the block before it prints, but for numbers and blanks;
- `yaml` without a title is a part of a spec, and valid beside the keys that it leaves out;
- `console` and `text` are for reading: they need a network, a cluster or minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchinfer.errors import SpecError
from batchinfer.jobspec import parse

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOME = "/home/you/tickets"
"""Where the pages say that the folder of the reader is."""

SECONDS = 300
"""The longest block starts a Ray cluster of its own, which takes 10 s on a quiet machine."""

RUN = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
KINDS = {*RUN, "yaml", "text", "console"}

_FENCE = re.compile(r'^```(?P<kind>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.M | re.S)
_NUMBER = re.compile(r"\d+(?:[,.]\d+)*(?:e-\d+)?")

SMALLEST: dict[str, Any] = {
    "name": "job",
    "model": {"source": "scripted"},
    "input": {"uri": "in"},
    "prompt": {"column": "text"},
    "output": {"uri": "out"},
}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    place: str
    kind: str
    title: str | None
    text: str

    @property
    def runs(self) -> bool:
        return self.kind in RUN and self.title is None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(f"{page.relative_to(ROOT)}:{line}", match["kind"], match["title"], match["text"])


ALL = [block for page in PAGES for block in blocks(page)]
RUNNABLE = [page for page in PAGES if any(block.runs for block in blocks(page))]


def test_the_pages_that_newcomers_follow_are_run() -> None:
    names = {str(page.relative_to(ROOT)) for page in RUNNABLE}
    assert {"README.md", "docs/quickstart.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_is_of_a_kind_that_is_known(page: Path) -> None:
    fences = len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.M))
    found = list(blocks(page))
    assert fences == 2 * len(found), "a fence is indented, not closed, or has words beside kind and title"
    assert [block.place for block in found if block.kind not in KINDS] == []


@pytest.mark.integration
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    printed = ""
    for block in blocks(page):
        if block.title == "output":
            assert _likeness(block.text) == _likeness(printed), f"{block.place} is not what is printed:\n{printed}"
        elif block.title is not None:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        elif block.runs:
            printed = _run(block, tmp_path)


def _run(block: Block, folder: Path) -> str:
    """What the block prints on stdout, with the folder as the pages name it."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CHECKOUT": str(ROOT),
        "RAY_ADDRESS": "",
    }
    done = subprocess.run(
        [*RUN[block.kind], block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"{block.place} ends with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout.replace(str(folder), HOME)


def _likeness(text: str) -> list[str]:
    """Lines without what differs from run to run: numbers and the width of columns."""
    return [" ".join(_NUMBER.sub("N", line).split()) for line in text.strip().splitlines()]


@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "yaml"], ids=lambda block: block.place)
def test_yaml_is_a_valid_spec_or_a_part_of_one(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A spec may name a class of a module that the page writes beside it.
    for other in ALL:
        if other.place.partition(":")[0] == block.place.partition(":")[0] and (other.title or "").endswith(".py"):
            (tmp_path / (other.title or "")).write_text(other.text)
    monkeypatch.chdir(tmp_path)
    whole = block.title is not None
    given = yaml.safe_load(block.text)
    spec = given if whole else _merged(SMALLEST, given)
    if "steps" in given:
        # Each step has its prompt.
        spec = {key: value for key, value in spec.items() if key != "prompt"}
    if {"template", "messages_column"} & given.get("prompt", {}).keys():
        # A prompt has one source.
        spec = {**spec, "prompt": given["prompt"]}
    parse(yaml.safe_dump(spec), block.place)


@pytest.mark.parametrize("block", [b for b in ALL if (b.title or "").endswith(".py")], ids=lambda block: block.place)
def test_python_files_compile(block: Block) -> None:
    compile(block.text, block.place, "exec")


def test_a_key_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(SpecError, match="max_token"):
        parse(yaml.safe_dump(_merged(SMALLEST, {"sampling": {"max_token": 1}})), "page")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, key by key."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merged(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return merged
