"""engines.yaml: the models that a gateway offers, each with the keys of a job spec; and the job of a batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchinfer.errors import SpecError
from batchinfer.gateway.names import is_owner
from batchinfer.gateway.records import BatchRecord
from batchinfer.jobspec import JobSpec, StoreSpec, from_keys
from batchinfer.storage import Stores

_LARGEST_FILE = 2**20
"""Bytes of an engines file, as of a spec."""

_OURS = ("name", "input", "output", "schedule", "steps", "evaluate")
"""Sections that a batch brings itself, or that no batch has."""


class _GatewayKeys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class GatewayLimits(_GatewayKeys):
    """What clients may ask of the gateway. A key may have limits of its own."""

    max_file_bytes: int = Field(default=2**30, ge=1)
    """Bytes of one uploaded file."""
    requests_per_minute: int = Field(default=6000, ge=1)
    """Calls of the API that an owner may make in a minute, at each replica of the gateway."""


class EngineEntry(BaseModel):
    """A model that the gateway offers: keys of the job spec, and who may use it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    owners: tuple[str, ...] = ()
    """Owners of keys that may use the model. Empty: all."""

    @property
    def keys(self) -> dict[str, Any]:
        """The sections of the job spec."""
        return dict(self.model_extra or {})

    @property
    def task(self) -> str:
        return str(self.keys.get("task", "generate"))

    def is_for(self, owner: str) -> bool:
        return not self.owners or owner in self.owners


class Engines(_GatewayKeys):
    """The content of engines.yaml."""

    engines: dict[str, EngineEntry] = Field(min_length=1)
    """The models, by the names that requests use."""
    limits: GatewayLimits = GatewayLimits()
    storage: dict[str, StoreSpec] = Field(default_factory=dict)
    """How to reach the root's store, as in a job spec."""

    @property
    def stores(self) -> Stores:
        return self.storage


def load_engines(path: str) -> Engines:
    """The engines of the file. Raises SpecError for a mistake in it, also in the keys of a model."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise SpecError(f"{path} is longer than 1 MiB", "an engines file names models and their keys")
        found = yaml.safe_load(text.decode())
        made = Engines.model_validate(found)
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: {_told(error)}", "jobs/gateway/engines.yaml is one to start from") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error!s:.200}", "check indentation, colons and quotes") from None
    made = made.model_copy(update={"engines": {name: _absolute(entry) for name, entry in made.engines.items()}})
    for name, entry in made.engines.items():
        _require_usable(path, name, entry, made.storage)
    return made


def _absolute(entry: EngineEntry) -> EngineEntry:
    """The entry with a model's folder as an absolute path: a later gateway may start elsewhere."""
    model = entry.keys.get("model")
    source = model.get("source") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(source, str) or not os.path.isdir(source):
        return entry
    return EngineEntry(**{**entry.model_dump(), "model": {**model, "source": os.path.abspath(source)}})


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    return getattr(error, "strerror", None) or str(error)[:200]


def _require_usable(path: str, name: str, entry: EngineEntry, storage: Mapping[str, StoreSpec]) -> None:
    wrong = [key for key in _OURS if key in entry.keys]
    if wrong:
        raise SpecError(f"{path}: engines.{name}.{wrong[0]}: a batch says that itself", "leave it out")
    for owner in entry.owners:
        if not is_owner(owner):
            raise SpecError(
                f"{path}: engines.{name}.owners: {owner!r:.80} is no owner", "`batchinfer keys list` has them"
            )
    tried = BatchRecord(
        id="batch_" + "0" * 32,
        owner="owner",
        input_file_id="",
        endpoint="",
        completion_window="24h",
        created_at=0,
        expires_at=0,
        model=name,
        engine=entry.keys,
    )
    job_of_batch(tried, "/tmp/in.jsonl", "/tmp/out", storage, called=f"{path}: engines.{name}")


def job_of_batch(
    record: BatchRecord, input_uri: str, output_uri: str, storage: Mapping[str, StoreSpec], called: str = "batch"
) -> JobSpec:
    """The job that answers the requests of a batch. `called`: how messages name it. Raises SpecError."""
    keys: dict[str, Any] = json.loads(json.dumps(record.engine, default=str))
    for name in ("limits", "labels", "storage"):
        if not isinstance(keys.setdefault(name, {}), dict):
            raise SpecError(f"{called}: {name} is not a mapping of keys", f"`batchinfer explain {name}` shows its keys")
    # Failed requests are in the error file; a batch does not fail because of them.
    limits = {"max_error_rate": 1.0, **keys.pop("limits")}
    labels = {**keys.pop("labels"), **record.labels, "owner": record.owner}
    if record.monthly_usd is not None:
        within = output_uri.rstrip("/").rpartition("/")[0]
        limits["monthly"] = {"label": "owner", "usd": record.monthly_usd, "within": [within]}
    if storage:
        keys["storage"] = {
            **{prefix: store.model_dump() for prefix, store in storage.items()},
            **keys.get("storage", {}),
        }
    return from_keys(
        {
            **keys,
            "name": "gateway",
            "input": {"uri": input_uri, "format": "openai_batch", "models": [record.model]},
            "output": {"uri": output_uri, "format": "openai_batch"},
            "labels": labels,
            "limits": limits,
        },
        called,
    )
