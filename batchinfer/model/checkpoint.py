"""The files that an engine loads: a model's weights, a LoRA adapter, a draft model.

Only the names of the files and their `config.json` decide what may be loaded; no weight is read.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from batchinfer.catalog import ModelShape
from batchinfer.errors import ModelError
from batchinfer.jobspec import LoraSpec, SpeculativeSpec
from batchinfer.storage import Stores, join, local_path, storage_for

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

SAFE_FORMAT = "safetensors"
"""The `load_format` if the spec names none. vLLM's own default falls back to pickles (`*.bin`, `*.pt`), which can run
any code when they are loaded."""

_PATTERNS = {
    "auto": ("*.safetensors", "*.bin", "*.pt"),
    "hf": ("*.safetensors", "*.bin", "*.pt"),
    "pt": ("*.pt",),
    "npcache": ("*.bin",),
    "dummy": ("*",),
}
"""The files that vLLM's load formats read. Formats that are not listed read `*.safetensors`."""

_RANKS: tuple[int, ...] = tuple(
    rank for one in get_args(LoraSpec.model_fields["max_lora_rank"].annotation) for rank in get_args(one)
)

# Keys of adapter_config.json for PEFT features that vLLM 0.32 refuses when it loads the adapter
# (vllm/lora/peft_helper.py), with the values that it accepts.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "modules_to_save": (None, [], ["classifier"], ["score"], ["classifier", "score"]),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "bias": (None, "none"),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, {}),
    "use_qalora": (None, False),
}

NO_LORA = frozenset({"FalconForCausalLM"})
"""Architectures that vLLM 0.32 runs without LoRA."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on this machine. `max_rank`: the rank that the engine reserves memory for, one of vLLM's steps."""

    folder: str
    max_rank: int


def require_weights(folder: str, names: Collection[str], load_format: str | None) -> None:
    """Raise ModelError unless `folder` has weights that `load_format` reads; None reads safetensors only.

    `names`: the names of the folder's files.
    """
    if any(fnmatch.filter(names, pattern) for pattern in _PATTERNS.get(load_format or SAFE_FORMAT, ("*.safetensors",))):
        return
    pickles = [name for pattern in ("*.bin", "*.pt", "*.pth") for name in fnmatch.filter(names, pattern)]
    if not pickles:
        raise ModelError(f"{folder} has no weights (*.safetensors)", "download the model again, whole")
    if load_format is None:
        raise ModelError(
            f"{folder} has weights only as pickles ({min(pickles)}), which can run any code when they are loaded",
            "convert them to safetensors; or, if you trust whoever made them, set engine.load_format: auto",
        )
    raise ModelError(
        f"{folder} has no weights that engine.load_format {load_format} reads",
        "leave engine.load_format out, or set it to what the folder holds",
    )


def read_adapter_config(lora: LoraSpec, stores: Stores | None = None) -> dict[str, Any]:
    """The adapter's `adapter_config.json`, from a folder, a store or the hub. Raises ModelError."""
    found = _adapter_place(lora, [ADAPTER_CONFIG], stores)
    try:
        config = json.loads(storage_for(found, stores).read(join(found, ADAPTER_CONFIG)))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{join(found, ADAPTER_CONFIG)} is not a JSON object", "save the adapter again")
    return config


def _adapter_place(lora: LoraSpec, names: Sequence[str], stores: Stores | None = None) -> str:
    """The folder or store of the adapter's files. Of a repository, the files `names` are downloaded first."""
    path = lora.path
    place = path if "://" in path else local_path(path)
    if "://" not in path and not os.path.isdir(place):
        if path.count("/") != 1 or path.startswith((".", "/", "~")):
            raise ModelError(
                f"model.lora.path {path!r} is neither a folder here nor a Hugging Face repository id",
                f"give a folder with {ADAPTER_CONFIG}, or a name like org/adapter",
            )
        return _downloaded(path, lora.revision, names)
    storage = storage_for(place, stores)
    present = {entry.uri.rsplit("/", 1)[-1] for entry in storage.list(place)}
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if name not in present:
            pickled = "adapter_model.bin" in present and name == ADAPTER_WEIGHTS
            raise ModelError(
                f"{place} has no {name}: " + ("its weights are a pickle" if pickled else "it is not a LoRA adapter"),
                "save it again with PEFT's save_pretrained, which writes safetensors",
            )
    return place


def _downloaded(repository: str, revision: str | None, names: Sequence[str]) -> str:
    # Imported here because it is slow to import, and only repositories need it.
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(repository, revision=revision, allow_patterns=list(names), etag_timeout=10))
    except Exception as error:
        # The client's errors (no network, no such repository, no permission) have no common type.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"the adapter {repository} cannot be had from the hub: {reason:.200}",
            "check model.lora.path and HF_TOKEN, or give a folder",
        ) from None


def max_lora_rank(lora: LoraSpec, config: Mapping[str, Any]) -> int:
    """The engine's `max_lora_rank` for the adapter: the spec's, otherwise the smallest step that holds the adapter.

    Raises ModelError if it is no LoRA adapter, or one that vLLM would refuse.
    """
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{lora.path} is a PEFT adapter of type {config.get('peft_type')}, not LORA", "train a LoRA adapter"
        )
    for key, fine in _HARMLESS.items():
        if config.get(key) not in fine:
            raise ModelError(
                f"{lora.path} has {key}: {config[key]!r}, which vLLM does not run",
                "merge the adapter into the model, and give the merged model as model.source",
            )
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise ModelError(f"{lora.path} names no rank (r in {ADAPTER_CONFIG})", "save the adapter again")
    rank = max(ranks)
    if lora.max_lora_rank is not None and rank > lora.max_lora_rank:
        raise ModelError(
            f"{lora.path} has rank {rank}, above model.lora.max_lora_rank {lora.max_lora_rank}",
            "leave max_lora_rank out: the smallest that holds the adapter is taken",
        )
    if rank > _RANKS[-1]:
        raise ModelError(f"{lora.path} has rank {rank}; vLLM runs up to {_RANKS[-1]}", "merge it into the model")
    return lora.max_lora_rank or min(step for step in _RANKS if step >= rank)


def require_adapter(lora: LoraSpec, base: ModelShape | None, stores: Stores | None = None) -> None:
    """Raise ModelError if vLLM cannot run the adapter on the model. `base`: None if the model's shape is unknown."""
    if base is not None and base.architecture in NO_LORA:
        raise ModelError(
            f"vLLM runs {base.architecture} without LoRA", "merge the adapter into the model, or leave model.lora out"
        )
    max_lora_rank(lora, read_adapter_config(lora, stores))


def local_adapter(lora: LoraSpec, folder: str, stores: Stores | None = None) -> Adapter:
    """The adapter on this machine; an adapter in a store is copied into `folder`. Raises ModelError, StorageError."""
    config = read_adapter_config(lora, stores)
    place = _adapter_place(lora, [ADAPTER_CONFIG, ADAPTER_WEIGHTS], stores)
    if "://" in place:
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(storage_for(place, stores).read(join(place, name)))
        place = folder
    return Adapter(place, max_lora_rank(lora, config))


def require_draft(speculative: SpeculativeSpec, base: ModelShape | None) -> None:
    """Raise ModelError if the draft model cannot be loaded or has another vocabulary size.

    A repository of the hub is not checked here.
    """
    if speculative.model is None:
        return
    path = local_path(speculative.model)
    if not os.path.isdir(path):
        if speculative.model.count("/") != 1 or speculative.model.startswith((".", "/", "~")):
            raise ModelError(
                f"model.speculative.model {speculative.model!r} is neither a folder here nor a repository id",
                "give a folder with config.json, or a name like org/model",
            )
        return
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        raise ModelError(f"{path} has no readable config.json: it is not a model folder", "give a model") from None
    require_weights(path, os.listdir(path), None)
    # Heads trained for one model (eagle, medusa) may have a smaller vocabulary and a mapping.
    theirs = config.get("vocab_size")
    if speculative.method == "draft_model" and base is not None and theirs != base.vocab_size:
        raise ModelError(
            f"the draft model {speculative.model} has a vocabulary of {theirs} tokens, the model {base.vocab_size}",
            "take a draft model of the same family, or method ngram",
        )
