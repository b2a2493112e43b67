"""The base of every section of a job spec."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo


def _place_without_secrets(uri: str) -> str:
    """Raise ValueError for a URI that holds a secret: specs are stored with the results and shown in reports."""
    if "\0" in uri:
        raise ValueError("contains a NUL, which no path or URI may contain")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*@", uri):
        raise ValueError(
            "holds a user or a password, and a spec is kept with the results: take it out, and give "
            "credentials in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, HF_TOKEN, ...)"
        )
    if re.search(r"[?&](X-Amz-(Signature|Credential|Security-Token)|AWSAccessKeyId|sig|signature|token)=", uri, re.I):
        raise ValueError("is a signed URL, and a spec is kept with the results: give credentials in the environment")
    return uri


Place = Annotated[str, Field(min_length=1), AfterValidator(_place_without_secrets)]
"""A folder, a file, a URI or a repository id."""


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by the names that users write."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


class Keys(BaseModel):
    """A section of the spec: frozen, and without unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # A key whose name Python keeps for itself (`as`) has another one in the code only.
        serialize_by_alias=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse True and False for a number: YAML 1.1 reads `yes` and `on` as True, which Python counts as 1."""
        kind = str(cls.model_fields[str(info.field_name)].annotation)
        for one in value if isinstance(value, list) and "int" in kind else [value]:
            if isinstance(one, bool) and "bool" not in kind:
                raise ValueError(f"{one!r} is read by YAML as true or false: write a number, or quote a text")
        return value


def _text_only(value: Any) -> Any:
    """Refuse values that are no text: YAML reads `no`, `1.10` and `2026-01-01` as other types."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is read by YAML as {type(value).__name__}, not as text: put it in quotes")
    return value


Text = Annotated[str, BeforeValidator(_text_only)]
"""A text, and nothing that YAML takes for another type."""


def is_json(value: Any) -> bool:
    """Whether JSON can say the value: no dates, no keys that are numbers."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
