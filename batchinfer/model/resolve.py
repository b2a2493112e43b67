"""Resolves `model.source` (a folder, a name of the catalog or a repository) to the facts that planning needs.

Reads `config.json` and nothing larger; no weight is read.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchinfer.catalog import (
    Model,
    ModelShape,
    QuantizationName,
    find_model,
    near_models,
    quantization_of_config,
    shape_from_config,
)
from batchinfer.errors import ModelError
from batchinfer.jobspec import SCRIPTED, JobSpec, ModelSpec
from batchinfer.model.download import is_remote
from batchinfer.storage import Stores, join, local_path, normal_uri, storage_for


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts of a model.

    `location`: what the engine loads, unless the plan names another checkpoint. `quantization`: that of `location`.
    `shape`: None if unknown, for the scripted engine or an architecture that only the engine may know. `folder`: the
    folder on this machine that may have tokenizer.json.
    """

    name: str
    location: str
    entry: Model | None
    shape: ModelShape | None
    quantization: QuantizationName
    folder: str | None
    config: Mapping[str, Any] = field(default_factory=dict)
    """`config.json`; empty for a model of the catalog, which is not read for it."""

    @property
    def context(self) -> int | None:
        """The model's own longest sequence, in tokens; None if unknown."""
        return self.shape.context if self.shape is not None else None

    @property
    def vector_size(self) -> int | None:
        """The numbers of a hidden state, and so of an embedding; None if unknown."""
        size = self.config.get("hidden_size") if self.shape is None else self.shape.hidden_size
        return size if isinstance(size, int) else None


def model_facts(spec: ModelSpec, stores: Stores | None = None) -> ModelFacts:
    """The facts of the spec's model, from disk, the catalog or the hub. Raises ModelError."""
    source = spec.source
    if source == SCRIPTED:
        return ModelFacts(source, source, None, None, "none", None)
    if is_remote(source):
        uri = normal_uri(source)
        return _config_facts(source, uri, _read_config(join(uri, "config.json"), stores), None)
    path = local_path(source)
    if os.path.isdir(path):
        return _config_facts(source, path, _read_config(join(path, "config.json"), stores), path)
    entry = find_model(source)
    if entry is not None:
        return _catalog_facts(source, entry, spec.revision)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source):
        config = repository_config(source, spec.revision)
        return _config_facts(source, source, config, _cached_folder(source, spec.revision))
    raise ModelError(
        f"unknown model {source!r}: neither a folder here, a name of the catalog nor a repository id",
        _did_you_mean(source, path),
    )


def _catalog_facts(source: str, entry: Model, revision: str | None) -> ModelFacts:
    """The facts of a catalog entry. A short name means the entry's repository; a repository id means itself."""
    location = source if "/" in source else entry.repository
    folder = _cached_folder(location, revision)
    return ModelFacts(source, location, entry, entry.shape, entry.stored_as(source), folder)


def _config_facts(source: str, location: str, config: dict[str, Any], folder: str | None) -> ModelFacts:
    try:
        return ModelFacts(
            source, location, None, shape_from_config(config), quantization_of_config(config), folder, config
        )
    except ModelError:
        # The engine may know an architecture that the planner does not; if not, the engine reports it.
        return ModelFacts(source, location, None, None, "none", folder, config)


def _read_config(uri: str, stores: Stores | None = None) -> dict[str, Any]:
    storage = storage_for(uri, stores)
    if storage.stat(uri) is None:
        folder = uri.rpartition("/")[0]
        raise ModelError(f"{folder} has no config.json: it is not a model folder", "point model.source at the model")
    try:
        config = json.loads(storage.read(uri))
    except ValueError as error:
        raise ModelError(f"{uri} cannot be read: {error}", "download the model again, whole") from None
    if not isinstance(config, dict):
        raise ModelError(f"{uri} is not a JSON object", "download the model again, whole")
    return config


def _did_you_mean(source: str, path: str) -> str:
    names = near_models(source)
    parent, wanted = os.path.split(path)
    if os.path.isdir(parent):
        # Suggest model folders only: the name of another folder is similar by chance.
        there = [n for n in os.listdir(parent) if os.path.isfile(os.path.join(parent, n, "config.json"))]
        names += [os.path.join(os.path.dirname(source), n) for n in difflib.get_close_matches(wanted, there, n=1)]
    if names:
        return f"did you mean {' or '.join(names[:3])}?"
    return "give a folder with config.json, a name that `batchinfer models` lists, or one like org/model"


def _cached_folder(repository: str, revision: str | None) -> str | None:
    """The folder in the hub's local cache with the repository's tokenizer or config; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("tokenizer.json", "config.json"):
        found = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            return os.path.dirname(found)
    return None


def repository_config(source: str, revision: str | None) -> dict[str, Any]:
    """The `config.json` of a repository of the hub, from the local cache if it is there.

    Raises ModelError if the repository does not exist, is gated without a token, or cannot be reached.
    """
    # Imported here because it is slow to import, and only repositories need it.
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import logging

    folder = _cached_folder(source, revision)
    if folder is not None and os.path.isfile(os.path.join(folder, "config.json")):
        return _read_config(os.path.join(folder, "config.json"))
    logging.set_verbosity_error()
    try:
        # Without a network this request fails at once, while a download would retry for half a minute.
        HfApi().model_info(source, revision=revision, timeout=10)
        return _read_config(hf_hub_download(source, "config.json", revision=revision))
    except ModelError:
        raise
    except GatedRepoError:
        raise ModelError(
            f"{source} is gated: its licence must be accepted",
            "accept it on its page, then set HF_TOKEN to a token that may read it",
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"unknown model {source!r}: the hub has none of that name, or it is private",
            "check the name, or set HF_TOKEN",
        ) from None
    except LocalEntryNotFoundError as error:
        raise _unreachable(source, error) from None
    except HfHubHTTPError as error:
        raise ModelError(f"{source} cannot be looked up: {_brief(error)}", "check the name and the revision") from None
    except Exception as error:
        # The client's transport errors have no common type.
        raise _unreachable(source, error) from None


def generation_config(spec: ModelSpec, stores: Stores | None = None) -> dict[str, Any]:
    """The model's `generation_config.json`: how its makers would sample. Empty without one. Raises ModelError."""
    facts = model_facts(spec, stores)
    if facts.location == SCRIPTED:
        return {}
    place = facts.location if is_remote(facts.location) else facts.folder
    if place is not None:
        uri = join(place, _GENERATION)
        storage = storage_for(uri, stores)
        if is_remote(place) or os.path.isfile(uri) or os.path.isdir(local_path(facts.location)):
            return _read_config(uri, stores) if storage.stat(uri) is not None else {}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _read_config(hf_hub_download(facts.location, _GENERATION, revision=spec.revision))
    except ModelError:
        raise
    except EntryNotFoundError:
        return {}
    except Exception as error:
        # As in `repository_config`.
        raise _unreachable(facts.location, error) from None


_GENERATION = "generation_config.json"


def _unreachable(source: str, error: Exception) -> ModelError:
    return ModelError(
        f"unknown model {source!r}: neither a folder here nor in the hub's local cache, and the hub cannot "
        f"be reached ({_brief(error)})",
        "give a model folder, or run where the hub can be reached",
    )


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def require_access(facts: ModelFacts, revision: str | None) -> None:
    """Raise ModelError for a repository that cannot be read, before an engine starts."""
    if facts.folder is None and facts.location != SCRIPTED:
        repository_config(facts.location, revision)


def tokenizer_folder(spec: JobSpec, checkpoint: str | None = None) -> str | None:
    """The folder with the model's tokenizer and chat template, if it lies on this machine. `checkpoint`: see `Plan`."""
    source = local_path(spec.engine.tokenizer or checkpoint or spec.model.source)
    return source if os.path.isdir(source) else model_facts(spec.model, spec.storage).folder
