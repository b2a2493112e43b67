"""Whether the engine's grammar takes what `output` asks for, before an engine starts: it is compiled once, apart.

An engine that meets a schema that it cannot compile refuses every row, minutes after the start. One that it compiles
for hours stands still.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchinfer.engine import grammar_child
from batchinfer.errors import SpecError
from batchinfer.jobspec import OutputSpec
from batchinfer.jobspec.constraints import constraint
from batchinfer.jobspec.regex import compile_regex
from batchinfer.prompting.answers import label_grammar

COMPILE_SECONDS = 20
"""CPU-seconds that a grammar may take to compile. Schemas in use take milliseconds to a few seconds, with a vocabulary
of 150,000 tokens; an engine stands still meanwhile. Lower values would refuse schemas on slow machines."""

PART_SECONDS = 5
"""CPU-seconds for finding the part of a schema that was refused, or that took too long. With less, the part may not be
found, and the whole is named."""

COMPILE_BYTES = 16 * 2**30
"""Address space of the process that compiles. Without it a schema of one line can use up a machine's memory."""

WALL_SECONDS = 300.0
"""Seconds after which the child is given up on, on a machine that has no time for it: then nothing is refused."""

_ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


def require_grammar(output: OutputSpec, tokenizer_folder: str | None) -> None:
    """Raise SpecError if the engine's backend does not take `output.choices`, `json_schema` or `regex`.

    Says nothing where the backend is not installed, as on a machine that only submits jobs.
    """
    key = constraint(output)
    if key is None:
        return
    told = {"compact": output.compact_json, "tokenizer": _tokenizer(tokenizer_folder), "bytes": COMPILE_BYTES}
    given = {**told, **_source(output), "parts": False}
    found = _compiled(given, COMPILE_SECONDS)
    if "refused" not in found and "stopped" not in found:
        return
    place, why = f"output.{key}", found.get("refused") or found["stopped"]
    if key == "json_schema":
        part = _compiled(given | {"parts": True}, PART_SECONDS)
        # The part that was tried when the child was stopped is the one that takes so long.
        path = part.get("path", part.get("trying", ()))
        place = ".".join((place, *path))
        why = part.get("refused") or why
    raise SpecError(
        f"{place} cannot be turned into a grammar by the engine: {why}",
        "change that part" if key == "json_schema" else f"make output.{key} simpler",
    )


def choices_grammar(choices: Sequence[str]) -> str:
    """The choices as vLLM writes them for its backend."""
    return "root ::= " + " | ".join(f'"{"".join(map(_escaped, choice))}"' for choice in choices)


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x20 or ord(letter) == 0x7F else letter


def _source(output: OutputSpec) -> dict[str, Any]:
    if output.json_schema is not None:
        return {"kind": "json", "source": output.json_schema}
    if output.regex is not None:
        return {"kind": "regex", "source": compile_regex(output.regex).grammar}
    labels = output.choice_texts or ()
    return {"kind": "ebnf", "source": label_grammar(labels) if output.multi_label else choices_grammar(labels)}


def _tokenizer(folder: str | None) -> str | None:
    path = os.path.join(folder, "tokenizer.json") if folder else ""
    return path if os.path.isfile(path) else None


def _compiled(given: dict[str, Any], seconds: int) -> dict[str, Any]:
    """What the child said last; `stopped` if a limit ended it before it was done."""
    try:
        child = subprocess.run(
            [sys.executable, str(Path(grammar_child.__file__))],
            input=json.dumps(given | {"seconds": seconds}),
            capture_output=True,
            text=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"missing": "the machine had no time"}
    said = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    last: dict[str, Any] = said[-1] if said else {}
    if child.returncode < 0:
        return last | {"stopped": f"it takes more than {seconds} s or {COMPILE_BYTES // 2**30} GiB to compile"}
    return last
