"""`output.model`: a pydantic class of the user's becomes the JSON Schema that travels with the job.

The class is imported where the spec is read, once. Replicas, clusters and schedules see the schema alone.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from typing import Any

from pydantic import BaseModel

_SHOWN = 200
"""Characters of an error of the user's module that a message repeats."""


def schema_of_class(reference: str) -> dict[str, Any]:
    """The JSON Schema of `package.module:Class`. Raises ValueError, in words."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", reference):
        raise ValueError(f"model {reference!r:.{_SHOWN}} is not of the form package.module:Class")
    module_name, _, class_name = reference.partition(":")
    module = _imported(module_name)
    found: Any = module
    for part in class_name.split("."):
        found = getattr(found, part, None)
    if found is None:
        classes = [name for name, _ in inspect.getmembers(module, _is_model)]
        near = difflib.get_close_matches(class_name, classes, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"its pydantic classes are {', '.join(classes[:9]) or 'none'}"
        raise ValueError(f"model {reference!r}: {module_name} has no {class_name}; {hint}")
    if not _is_model(found):
        raise ValueError(f"model {reference!r} is not a pydantic class (a subclass of pydantic.BaseModel)")
    return schema_of(found, f"model {reference!r}")


def schema_of(model: type[BaseModel], name: str) -> dict[str, Any]:
    """The JSON Schema of a class, which messages call `name`. Raises ValueError."""
    try:
        return model.model_json_schema()
    except Exception as error:
        # A class may hold anything that JSON cannot, and hooks of its own.
        raise ValueError(f"{name} has no JSON Schema: {error!s:.{_SHOWN}}") from None


def _is_model(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseModel) and value is not BaseModel


def _imported(name: str) -> Any:
    here = os.getcwd()
    # `python -m` looks in the current folder, the installed command does not.
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"model {name!r} cannot be imported: there is no module {error.name!r} in {here} or among the installed "
            "packages; run the command in the folder of the module, or give the schema itself as json_schema"
        ) from None
    except (Exception, SystemExit) as error:
        # The user's code, which may raise whatever it likes.
        raise ValueError(
            f"model {name!r} cannot be imported: it raises {type(error).__name__}: {error!s:.{_SHOWN}}"
        ) from None
    finally:
        if added:
            sys.path.remove(here)
