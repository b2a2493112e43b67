"""The job of a `run-batch` command: what vLLM's command would do with the same arguments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import yaml

from batchinfer.errors import InputError, SpecError
from batchinfer.input.packed import LONGEST_ROW, unpacked, unpacking
from batchinfer.jobspec import JobSpec, parse
from batchinfer.jobspec.vllm_command import BatchCommand
from batchinfer.model.resolve import generation_config
from batchinfer.prompting.openai_requests import EMBEDDINGS
from batchinfer.storage import normal_uri, storage_for

_DEFAULTS = {
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}
"""Keys of a generation config that vLLM's server takes as defaults of requests, and our names for them."""


def job_of(command: BatchCommand, overrides: Sequence[str] = ()) -> JobSpec:
    """The job of the command; the run's folder lies beside the output file. `overrides`: KEY=VALUE texts.

    Raises UserError.
    """
    keys: dict[str, Any] = {name: dict(section) for name, section in command.keys.items()}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(command.input_file).partition(".")[0]).strip("-._")
    keys["name"] = (name or "batch")[:100]
    keys["task"] = task = "embed" if _first_url(command.input_file) == EMBEDDINGS else "generate"
    keys.setdefault("input", {}).update({"uri": command.input_file, "format": "openai_batch"})
    keys["input"].setdefault("models", [command.keys["model"]["source"]])
    keys["output"] = {**({} if task == "embed" else keys["output"]), "uri": run_folder(command.output_file)}
    # vLLM's command ends well, however many requests fail: each failure is in the output.
    keys["limits"] = {"max_error_rate": 1.0}
    if task == "generate":
        found = _config_of(command, _spec(keys, overrides))
        keys["sampling"] = {ours: found[theirs] for theirs, ours in _DEFAULTS.items() if found.get(theirs) is not None}
    return _spec(keys, overrides)


def _spec(keys: dict[str, Any], overrides: Sequence[str]) -> JobSpec:
    return parse(yaml.safe_dump(keys), "run-batch", overrides)


def run_folder(output_file: str) -> str:
    """The folder of the run whose responses go to this file."""
    return f"{normal_uri(output_file)}.run"


def _config_of(command: BatchCommand, spec: JobSpec) -> dict[str, Any]:
    if command.generation_config == "vllm":
        found: dict[str, Any] = {}
    elif command.generation_config == "auto":
        found = generation_config(spec.model, spec.storage)
    else:
        path = os.path.join(command.generation_config, "generation_config.json")
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError) as error:
            raise SpecError(
                f"--generation-config: {path} cannot be read: {error}", "give auto, vllm or a folder"
            ) from None
    return {**found, **command.overrides}


def _first_url(uri: str) -> str | None:
    """The `url` of the first line: a batch file has one endpoint, which says what kind of model runs."""
    storage = storage_for(uri)
    entry = storage.stat(normal_uri(uri))
    if entry is None:
        raise InputError(f"there is no file {uri}", "-i names the file of requests")
    with storage.open(entry.uri) as file, unpacking(uri):
        line = unpacked(file).readline(LONGEST_ROW)
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found.get("url") if isinstance(found, dict) else None
