"""What a model's folder says of its tokenizer: its configuration and its chat template, read without `transformers`."""

from __future__ import annotations

import json
import os
from typing import Any

from batchinfer.errors import ModelError

_LARGEST = 2**24
"""Bytes of such a file: those of real models have some kilobytes, templates included."""


def tokenizer_config(folder: str | None) -> dict[str, Any]:
    """The object in `tokenizer_config.json`, empty without the file. Raises ModelError for a file that is none."""
    text = _read(folder, "tokenizer_config.json")
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _damaged(os.path.join(folder or "", "tokenizer_config.json"), "it is no JSON object")
    return found


def chat_template_text(folder: str | None) -> str | None:
    """The chat template of a model: the file of its own goes before the one in the configuration. Raises ModelError."""
    text = _read(folder, "chat_template.jinja")
    if text is None:
        text = tokenizer_config(folder).get("chat_template")
    return text if isinstance(text, str) else None


def _read(folder: str | None, name: str) -> str | None:
    path = os.path.join(folder, name) if folder else ""
    if not os.path.isfile(path):
        return None
    if os.path.getsize(path) > _LARGEST:
        raise _damaged(path, f"it has more than {_LARGEST:,} bytes")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: str, why: str) -> ModelError:
    return ModelError(f"{path} cannot be used: {why}", "save or download the model again")
