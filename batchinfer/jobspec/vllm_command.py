"""The arguments of `vllm run-batch` as keys of a job spec. Nothing of vLLM is imported: that takes many seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchinfer.errors import SpecError
from batchinfer.jobspec.engine_keys import EngineSpec

_SHORT = {
    "i": "input_file",
    "o": "output_file",
    "q": "quantization",
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
}
"""vLLM's short options."""

_KEYS = {
    "model": ("model", "source"),
    "revision": ("model", "revision"),
    "dtype": ("model", "dtype"),
    "quantization": ("model", "quantization"),
    "trust_remote_code": ("model", "trust_remote_code"),
    "speculative_config": ("model", "speculative"),
    "tensor_parallel_size": ("resources", "tensor_parallel"),
    "pipeline_parallel_size": ("resources", "pipeline_parallel"),
    "data_parallel_size": ("resources", "replicas"),
    "served_model_name": ("input", "models"),
    "chat_template": ("prompt", "chat_template"),
    "default_chat_template_kwargs": ("prompt", "chat_template_kwargs"),
    "reasoning_parser": ("reasoning", "parser"),
}
"""Arguments that are keys outside `engine`."""

_VALUES: Mapping[str, Mapping[Any, Any]] = {"dtype": {"half": "float16", "float": "float32"}}
"""Values that have another name in a spec."""

_WITHOUT_EFFECT = (
    *("output_tmp_dir", "enable_metrics", "host", "port", "url", "disable_log_stats", "enable_log_requests"),
    *("disable_log_requests", "enable_log_outputs", "max_log_len", "uvicorn_log_level", "disable_uvicorn_access_log"),
    *("log_config_file", "disable_frontend_multiprocessing", "enable_prompt_tokens_details", "response_role"),
)
"""Arguments that change no answer: how vLLM logs, where it serves metrics, where it keeps a file on its way."""

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_SIZED = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")
_SIZES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class BatchCommand:
    """What a command line of `vllm run-batch` says.

    `keys`: the sections of a job spec. `generation_config`: `auto`, `vllm` or a folder. `overrides`: keys of a
    generation config that go before it. `ignored`: arguments that have no effect here.
    """

    input_file: str
    output_file: str
    keys: dict[str, dict[str, Any]]
    generation_config: str = "auto"
    overrides: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def read_command(arguments: Sequence[str]) -> BatchCommand:
    """The command of these arguments. Raises SpecError for one that cannot be meant."""
    given: dict[str, Any] = {}
    for path, value in _options(arguments):
        _put(given, path, value)
    for name, option in (("input_file", "-i"), ("output_file", "-o"), ("model", "--model")):
        if not isinstance(given.get(name), str):
            raise SpecError(
                f"run-batch needs {option}",
                "as in: batchinfer run-batch -i requests.jsonl -o responses.jsonl --model MODEL",
            )
    for option, name in (("-i", "input_file"), ("-o", "output_file")):
        if re.match(r"https?://", given[name]):
            raise SpecError(f"{option} {given[name]!r:.200} is a URL", "give a path or an s3:// URI")
    ignored = tuple(name for name in given if name in _WITHOUT_EFFECT)
    keys: dict[str, dict[str, Any]] = {}
    rest = {
        name: value
        for name, value in given.items()
        if name
        not in (*_WITHOUT_EFFECT, "input_file", "output_file", "generation_config", "override_generation_config")
    }
    # vLLM's command writes JSON with any white space, unless it is told otherwise.
    structured = _section(rest.pop("structured_outputs_config", {}), "structured-outputs-config")
    keys["output"] = {"compact_json": bool(structured.pop("disable_any_whitespace", False))}
    if structured.pop("backend", "auto") not in ("auto", "xgrammar"):
        raise SpecError("--structured-outputs-config.backend: a batch uses xgrammar", "leave it out")
    if structured:
        raise SpecError(f"--structured-outputs-config.{next(iter(structured))} cannot be set here", "leave it out")
    for name, value in rest.items():
        value = _VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        if name in _KEYS:
            section, key = _KEYS[name]
            keys.setdefault(section, {})[key] = _as_list(value) if name == "served_model_name" else value
        elif name in EngineSpec.model_fields:
            keys.setdefault("engine", {})[name] = value
        else:
            keys.setdefault("engine", {}).setdefault("extra", {})[name] = value
    return BatchCommand(
        given["input_file"],
        given["output_file"],
        keys,
        str(given.get("generation_config", "auto")),
        _section(given.get("override_generation_config", {}), "override-generation-config"),
        ignored,
    )


def _section(value: Any, option: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"--{option} is not an object of JSON", "as in: '{\"key\": 1}'")
    return dict(value)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _options(arguments: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """Each option as the path of its name, and its value."""
    at = 0
    while at < len(arguments):
        option = arguments[at]
        at += 1
        name, equals, inline = option.partition("=")
        if not option.startswith("-") or option == "-":
            raise SpecError(f"run-batch does not know what {option!r:.100} is", "options begin with --")
        if name.startswith("--"):
            path = [part.replace("-", "_") for part in name[2:].split(".")]
        elif name[1:] in _SHORT:
            path = [_SHORT[name[1:]]]
        else:
            raise SpecError(f"run-batch does not know {name!r:.100}", "write the long name, as in --max-model-len 4096")
        values = [inline] if equals else []
        while not equals and at < len(arguments) and not _is_option(arguments[at]):
            values.append(arguments[at])
            at += 1
        if not values and path[0].startswith("no_"):
            yield [path[0].removeprefix("no_"), *path[1:]], False
        elif not values:
            yield path, True
        else:
            texts = path[0] in _TEXTS
            read = [value if texts else _value(name, value) for value in values]
            yield path, read[0] if len(read) == 1 else read


_TEXTS = ("input_file", "output_file", "model", "served_model_name", "revision", "chat_template", "tokenizer")
"""Arguments whose values are texts, also those that look like numbers."""


def _is_option(argument: str) -> bool:
    return argument.startswith("-") and argument != "-" and _NUMBER.fullmatch(argument) is None


def _value(name: str, text: str) -> Any:
    sized = _SIZED.fullmatch(text)
    if sized is not None:
        return int(float(sized[1]) * _SIZES[sized[2]])
    if _NUMBER.fullmatch(text) is not None:
        return json.loads(text) if not re.match(r"-?0\d", text) else int(text)
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{name} is not JSON: {error}", "quote it for the shell: '{\"key\": 1}'") from None
    return {"true": True, "false": False}.get(text.lower(), text)


def _put(into: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        into = into.setdefault(part, {})
        if not isinstance(into, dict):
            raise SpecError(f"--{'.'.join(path)}: {part} has a value already", "say it once")
    into[path[-1]] = value
