"""Facts about models, as data with source and date: `models/<family>.yaml` beside this file."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator

from batchinfer.catalog.quantization import QuantizationName
from batchinfer.catalog.shape import ModelShape


class _ModelFacts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Licence(_ModelFacts):
    """What a licence forbids, in short. commercial_use: whether it is allowed; None: it depends.
    verified: read in a source; otherwise general knowledge."""

    title: str
    forbids: str
    commercial_use: bool | None
    verified: bool = False


class EngineSupport(_ModelFacts):
    """The first and the last release of vLLM that runs an architecture. until None: vLLM 0.32 runs it."""

    since: str | None = None
    until: str | None = None
    since_verified: bool = False


class Checkpoint(_ModelFacts):
    """A repository with the quantized model. verified: named in a source; otherwise it may not exist.
    alternatives: other repositories in the same quantization."""

    repository: str
    verified: bool = False
    alternatives: tuple[Checkpoint, ...] = ()


class Score(_ModelFacts):
    """A published score in percent. `source`: where it was published."""

    benchmark: str
    value: float
    source: str
    verified: bool = False


class Thinking(_ModelFacts):
    """A model that thinks before it answers. parser: vLLM's reasoning parser for it. switch: the key of
    `chat_template_kwargs` that turns thinking off with `false`; None: it always thinks. source, date: where and when
    both were read. verified: both were read there; otherwise one of them is general knowledge."""

    parser: str
    switch: str | None = None
    source: str
    date: datetime.date
    verified: bool = False


class Model(_ModelFacts):
    """One model of the catalog.

    repository: the model's id on the Hugging Face hub. aliases: other repositories of the same dimensions.
    native: the quantization of `repository`. checkpoints: repositories in other quantizations.
    gated: the hub requires an approval; None: unknown. replacement: the catalog's name of the model to use
    if vLLM has dropped the architecture. source, date: where and when the dimensions were read.
    unverified: fields of this entry or of `shape` whose value was not read in a source.
    """

    name: str
    family: str
    repository: str
    aliases: tuple[str, ...] = ()
    shape: ModelShape
    native: Literal["none", "fp8", "mxfp4"] = "none"
    task: Literal["generate", "embed", "score"] = "generate"
    """What it was trained for: to write text, to make vectors, or to judge how well texts belong together."""
    licence: Licence
    gated: bool | None
    checkpoints: dict[QuantizationName, Checkpoint] = {}
    scores: tuple[Score, ...] = ()
    engine: EngineSupport
    replacement: str | None = None
    thinking: Thinking | None = None
    """None for a model that answers at once."""
    source: str
    date: datetime.date
    unverified: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _marks_are_fields(self) -> Self:
        if unknown := set(self.unverified) - {*Model.model_fields, *ModelShape.model_fields}:
            raise ValueError(f"unverified names no field: {sorted(unknown)}")
        return self

    def repositories(self) -> dict[str, QuantizationName]:
        """Every repository of this entry, with the quantization of its weights."""
        found: dict[str, QuantizationName] = {self.repository: self.native}
        found |= dict.fromkeys(self.aliases, self.native)
        for quantization, checkpoint in self.checkpoints.items():
            for one in (checkpoint, *checkpoint.alternatives):
                found[one.repository] = quantization
        return found

    def stored_as(self, name: str) -> QuantizationName:
        """The quantization of the weights under `name`: a repository of this entry, or its short name, which
        means `repository`. Raises KeyError for any other name."""
        if name.lower() == self.name.lower():
            return self.native
        return {repository.lower(): quantization for repository, quantization in self.repositories().items()}[
            name.lower()
        ]


def _load(*path: str) -> Any:
    return yaml.safe_load(resources.files(__package__).joinpath(*path).read_text(encoding="utf-8"))


@cache
def licences() -> dict[str, Licence]:
    """Every licence of the catalog, by the name that entries use."""
    return TypeAdapter(dict[str, Licence]).validate_python(_load("licences.yaml"))


@cache
def _engine_support() -> dict[str, EngineSupport]:
    return TypeAdapter(dict[str, EngineSupport]).validate_python(_load("architectures.yaml"))


def engine_support(architecture: str) -> EngineSupport | None:
    """The releases of vLLM that run `architecture` (the class in `config.json`); None if it is not in the catalog."""
    return _engine_support().get(architecture)


@cache
def models() -> MappingProxyType[str, Model]:
    """Every model of the catalog by its short name, in the order of the files."""
    found: dict[str, Model] = {}
    folder = resources.files(__package__) / "models"
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        family = file.name.removesuffix(".yaml")
        for name, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            assert name not in found, f"{file.name}: {name} is in the catalog twice"
            entry["licence"] = licences()[entry["licence"]]
            entry["engine"] = _engine_support()[entry["shape"]["architecture"]]
            found[name] = Model(name=name, family=family, **entry)
    return MappingProxyType(found)


@cache
def _answers() -> dict[str, Model]:
    """Every model by its short name and by its repositories, in lower case."""
    return {name.lower(): model for model in models().values() for name in (model.name, *model.repositories())}


def find_model(name: str) -> Model | None:
    """The entry of a short name, a repository id, an alias or the repository of a checkpoint, in any case."""
    return _answers().get(name.lower())


def near_models(text: str, count: int = 3) -> list[str]:
    """Short names of up to `count` models whose short name or repository is nearest to `text`, best first."""
    wanted = text.lower()
    scored = [
        (max(_likeness(wanted, answer) for answer in _short_and_long(model)), model.name) for model in models().values()
    ]
    scored.sort(key=lambda pair: -pair[0])
    return [name for likeness, name in scored[:count] if likeness >= 0.6]


def _short_and_long(model: Model) -> Iterable[str]:
    yield model.name.lower()
    for repository in (model.repository, *model.aliases):
        yield repository.lower()
        yield repository.lower().split("/")[-1]


def _likeness(wanted: str, answer: str) -> float:
    return difflib.SequenceMatcher(None, wanted, answer, autojunk=False).ratio()
