"""The variants of a job: a value for each of some keys, in every combination."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from batchinfer.errors import SpecError
from batchinfer.jobspec.job_keys import JobSpec
from batchinfer.jobspec.load import parse, to_yaml

MOST_VARIANTS = 100
"""Variants of one comparison. Each loads a model: more is a mistake in --vary, not a question."""

NEVER = (
    "name",
    "input",
    "output.uri",
    "output.column",
    "schedule",
    "evaluate",
    "shards",
    "labels",
    "notify",
    "lineage",
    "storage",
)
"""Keys that all variants have in common, without which their rows and answers could not be compared."""

_LONGEST_NAME = 60
"""Characters of a variant's name. Longer ones leave a table no room."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant. `settings`: the keys that it sets. `name`: for a person. `folder`: a name for its files, which
    depends on the settings alone."""

    name: str
    settings: Mapping[str, Any]
    shown: Mapping[str, str]

    @property
    def folder(self) -> str:
        text = json.dumps(self.settings, sort_keys=True, default=str)
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")[:40] or "variant"
        return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def of(self, spec: JobSpec) -> JobSpec:
        """The spec with the settings. Raises SpecError."""
        given = [f"{key}={json.dumps(value, default=str)}" for key, value in self.settings.items()]
        return parse(to_yaml(spec), spec.name, given)


def values_of(text: str) -> list[Any]:
    """The values of an option V1,V2: as a list of YAML, in which a text may be in quotes. Raises SpecError."""
    try:
        found = yaml.safe_load(f"[{text}]")
    except Exception:
        found = None
    if not isinstance(found, list) or not found:
        raise SpecError(f"{text!r:.200} is not a list of values", "write V1,V2; quote a text that holds a comma")
    return found


def variants(axes: Mapping[str, Sequence[Any]], prompt_files: Sequence[str] = ()) -> list[Variant]:
    """Every combination of the values, the last key fastest. `prompt_files`: each is a template, or the keys of
    `prompt` if it is YAML. Raises SpecError."""
    for key in axes:
        if any(key == one or key.startswith(f"{one}.") for one in NEVER):
            raise SpecError(
                f"--vary {key}: all variants have that in common, so that their answers can be compared",
                "vary the model, the prompt, the sampling, the engine or the resources",
            )
    options: list[list[tuple[dict[str, Any], str, str]]] = [
        [({key: value}, key, _shown(value)) for value in values] for key, values in axes.items()
    ]
    if prompt_files:
        options.append([(_prompt(file), "prompt", Path(file).name) for file in prompt_files])
    count = 1
    for one in options:
        count *= len(one)
    if not options or count > MOST_VARIANTS:
        raise SpecError(
            f"there are {count if options else 0:,} variants to compare",
            f"name 2 to {MOST_VARIANTS}, as in --vary model.source=a,b",
        )
    made = []
    for combination in itertools.product(*options):
        settings = {key: value for one, _, _ in combination for key, value in one.items()}
        varied = {key: text for _, key, text in combination}
        names = [text for place, (_, _, text) in enumerate(combination) if len(options[place]) > 1]
        name = ", ".join(names or varied.values())
        made.append(Variant(name, settings, varied))
    return _with_names(made)


def _with_names(found: list[Variant]) -> list[Variant]:
    """The variants with short and distinct names. Raises SpecError for two that are equal."""
    shorter = [_tail(one.name) for one in found]
    names = shorter if len({*shorter}) == len(found) else [one.name[:_LONGEST_NAME] for one in found]
    if len({one.folder for one in found}) < len(found):
        raise SpecError("two variants are the same", "name each value once")
    if len({*names}) < len(found):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return [Variant(name, one.settings, one.shown) for name, one in zip(names, found, strict=True)]


def _tail(name: str) -> str:
    """A name with the last part of each place."""
    return ", ".join(part.rstrip("/").rpartition("/")[2] or part for part in name.split(", "))[:_LONGEST_NAME]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _prompt(file: str) -> dict[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SpecError(
            f"--prompt-file {file:.200} cannot be read: {getattr(error, 'strerror', None) or error}",
            "give a text file with a template, or a .yaml file with the keys of prompt",
        ) from None
    if not file.endswith((".yaml", ".yml")):
        return {"prompt.template": text.rstrip("\n")}
    try:
        keys = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(
            f"--prompt-file {file:.200} is not YAML: {str(error).splitlines()[0]}", "see its syntax"
        ) from None
    if not isinstance(keys, dict):
        raise SpecError(f"--prompt-file {file:.200} has no keys", "write the keys of prompt, as in template: ...")
    return {"prompt": keys}
