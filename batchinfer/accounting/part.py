"""The base of the values that reports and comparisons are made of."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A value that never changes, with its fields documented at the fields. `model` is a usual name for one."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())
