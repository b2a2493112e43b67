"""What all keys of a spec have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class SpecModel(BaseModel):
    """Frozen, and refuses unknown keys and booleans where a number is meant."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts True as 1, and YAML 1.1 reads `yes` and `on` as True."""
        kind = str(cls.model_fields[str(info.field_name)].annotation)
        for one in value if isinstance(value, list) and "int" in kind else [value]:
            if isinstance(one, bool) and "bool" not in kind:
                raise ValueError(f"{one!r} is read by YAML as true or false: write a number, or quote a text")
        return value
