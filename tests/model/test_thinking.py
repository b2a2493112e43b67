"""Which parser `reasoning.parser: auto` finds, and what a model's folder says of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import ModelError
from batchinfer.model.thinking import reasoning_parser
from batchinfer.model.tokenizer_files import chat_template_text, tokenizer_config
from tests.support.builders import make_spec

OPENS = "{% if add_generation_prompt %}<think>{% endif %}"


def thinking(prompt: dict[str, Any] | None = None) -> Any:
    return make_spec(model={"source": "/m"}, reasoning={}, prompt={"template": "{{ text }}", **(prompt or {})})


def test_the_chat_template_of_the_spec_goes_before_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert reasoning_parser(thinking(), str(tmp_path)) is None
    assert reasoning_parser(thinking({"chat_template": OPENS}), str(tmp_path)) == "deepseek_r1"


def test_a_template_in_a_file_of_its_own_goes_before_the_one_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "bos_token": "<s>"}))
    assert chat_template_text(str(tmp_path)) == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert chat_template_text(str(tmp_path)) == "new"
    assert tokenizer_config(str(tmp_path))["bos_token"] == "<s>"
    assert chat_template_text(None) is None


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_configuration_is_one_message_with_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"tokenizer_config.json cannot be used"):
        chat_template_text(str(tmp_path))
