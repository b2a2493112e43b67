"""Models of the catalog that meet conditions, as in `context>=32768 and licence=commercial and size<=30e9`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from batchinfer.catalog.models import Model, models
from batchinfer.errors import UserError

_NUMBERS: Mapping[str, Callable[[Model], float]] = {
    "size": lambda model: model.shape.parameters().total,
    "active": lambda model: model.shape.parameters().active,
    "context": lambda model: model.shape.context,
}
_TEXTS: Mapping[str, Callable[[Model], set[str]]] = {
    "licence": lambda model: {model.licence.title.lower(), _commercial(model)},
    "family": lambda model: {model.family.lower()},
    "name": lambda model: {model.name.lower()},
    "gated": lambda model: {{True: "yes", False: "no", None: "unknown"}[model.gated]},
    "quantization": lambda model: {model.native, *model.checkpoints},
}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip


def chosen_models(text: str, task: str = "generate") -> list[Model]:
    """The models for a task that meet all conditions and that today's engine runs, in the catalog's order. Raises
    UserError."""
    conditions = [_condition(part.strip()) for part in re.split(r"\s+and\s+", text.strip(), flags=re.IGNORECASE)]
    return [
        model
        for model in models().values()
        if model.task == task and model.engine.until is None and all(meets(model) for meets in conditions)
    ]


def _commercial(model: Model) -> str:
    return {True: "commercial", False: "not commercial", None: "depends"}[model.licence.commercial_use]


def _condition(text: str) -> Callable[[Model], bool]:
    found = re.fullmatch(r"(\w+)\s*(>=|<=|!=|=|>|<)\s*(.+)", text)
    known = ", ".join([*_NUMBERS, *_TEXTS])
    if found is None or found[1] not in {*_NUMBERS, *_TEXTS}:
        raise UserError(
            f"--catalog: {text!r:.100} is not a condition",
            f"write KEY, one of >= <= > < = !=, and a value, joined by `and`; the keys are {known}",
        )
    key, compare, value = found[1], found[2], found[3].strip().strip("'\"").lower()
    if key in _TEXTS:
        if compare not in ("=", "!="):
            raise UserError(f"--catalog: {text!r:.100}: a text is equal or not", f"write {key}={value}")
        texts, wanted = _TEXTS[key], compare == "="
        return lambda model: (value in texts(model)) == wanted
    try:
        limit = float(value)
    except ValueError:
        raise UserError(f"--catalog: {text!r:.100}: {value!r} is not a number", f"write {key}{compare}30e9") from None
    number = _NUMBERS[key]
    return lambda model: _COMPARE[compare](number(model), limit)
