"""Sampling of single rows: the keys that `sampling_column` overrides for a row."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from batchinfer.errors import InputError, RowError
from batchinfer.jobspec import JobSpec, SamplingSpec
from batchinfer.jobspec.base import keys_of
from batchinfer.jobspec.printed import Map, as_json
from batchinfer.prompting.prompts import Prompt, column_values

OF_ALL_ROWS = ("n", "logprobs", "skip_special_tokens")
"""Keys that no row may override: the columns of the results depend on them."""

REMEMBERED = 4096
"""Different overrides whose sampling is kept. Fewer are checked anew more often, which takes 0.1 ms each."""

_SHOWN = 300


def require_sampling_columns(spec: JobSpec, schema: pa.Schema) -> None:
    """Raise InputError if a `sampling_column` has a type that cannot hold keys and values."""
    for job in spec.step_jobs:
        name = job.sampling_column
        kind = None if name is None or name not in schema.names else schema.field(name).type
        if kind is not None and not _may_hold_keys(kind):
            raise InputError(
                f"sampling_column names {name!r}, a column of {kind}",
                'it needs a struct, a map, or JSON text, as in {"temperature": 0.2, "max_tokens": 50}',
            )


def _may_hold_keys(kind: pa.DataType) -> bool:
    kinds = pa.types
    if kinds.is_dictionary(kind):
        return _may_hold_keys(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _may_hold_keys(kind.storage_type)
    texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_binary, kinds.is_large_binary)
    return any(is_kind(kind) for is_kind in (*texts, kinds.is_null, kinds.is_struct, kinds.is_map))


class RowSampling:
    """The sampling of the rows of a job. Safe to use from several threads.

    `spec`: one of `JobSpec.step_jobs`.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._usual = spec.sampling.model_dump(mode="json")
        self._checked = functools.lru_cache(REMEMBERED)(self._check)
        self.read = functools.lru_cache(REMEMBERED)(self._read)
        """The sampling of a row, of the text in `Prompt.sampling`."""

    def of(self, prompt: Prompt) -> SamplingSpec:
        """How the answer to a prompt is sampled."""
        return self._spec.sampling if prompt.sampling is None else self.read(prompt.sampling)

    def add(self, prompts: list[Prompt | RowError], rows: pa.Table) -> list[Prompt | RowError]:
        """The prompts with what their rows override, or with the reason why a row's override cannot be used."""
        column = self._spec.sampling_column
        if column is None:
            return prompts
        values = column_values(rows, column)
        made: list[Prompt | RowError] = []
        for prompt, value in zip(prompts, values, strict=True):
            if isinstance(prompt, RowError) or value is None:
                made.append(prompt)
                continue
            found = value if isinstance(value, RowError) else self._override(value)
            made.append(found if isinstance(found, RowError) else prompt._replace(sampling=found))
        return made

    def _override(self, value: Any) -> str | RowError | None:
        """The keys in which the row differs from the job, as JSON with sorted keys; None if it does not differ."""
        if isinstance(value, dict | Map):
            try:
                value = json.dumps(as_json(value))
            except (TypeError, ValueError, RecursionError) as error:
                return _invalid(str(error))
        return self._checked(value) if isinstance(value, str) else _invalid("it is not an object with keys and values")

    def _check(self, text: str) -> str | RowError | None:
        try:
            given = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return _invalid(f"it is not JSON: {error}")
        if given is None:
            return None
        if not isinstance(given, dict):
            return _invalid("it is not an object with keys and values")
        # A struct has each of its keys in each row, so a null says nothing.
        given = {key: value for key, value in given.items() if value is not None}
        fixed = next((key for key in OF_ALL_ROWS if key in given), None)
        if fixed is not None:
            return _invalid(f"{fixed} holds for all rows: set it in sampling")
        try:
            mine = self.with_keys(given)
            self._spec.require_sampling(mine)
        except ValidationError as error:
            return _invalid(first_mistake(error))
        except ValueError as error:
            return _invalid(str(error))
        return self.difference(mine)

    def with_keys(self, keys: Mapping[str, Any]) -> SamplingSpec:
        """The job's sampling with these keys. Raises ValidationError."""
        return SamplingSpec.model_validate({**self._usual, **keys})

    def difference(self, mine: SamplingSpec) -> str | None:
        """`Prompt.sampling` of a row that is sampled so: the keys that differ, sorted; None if none does."""
        differs = {key: v for key, v in mine.model_dump(mode="json").items() if v != self._usual[key]}
        return json.dumps(differs, sort_keys=True) if differs else None

    def _read(self, text: str) -> SamplingSpec:
        return self.with_keys(json.loads(text))


def first_mistake(error: ValidationError) -> str:
    """The first mistake, with the key that it is in."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, keys_of(SamplingSpec), n=1, cutoff=0.5)
        return f"there is no key {key!r:.60}" + (f": did you mean {near[0]!r}?" if near else "")
    if isinstance(first["input"], bool):
        return f"{key}: {json.dumps(first['input'])} is not a number"
    message = str(first["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key}: {message}, not {first['input']!r:.60}" if key else message


def _invalid(why: str) -> RowError:
    return RowError("sampling_invalid", f"sampling_column: {why}".encode(errors="backslashreplace").decode()[:_SHOWN])


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number of JSON")
