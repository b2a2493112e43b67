"""A message of a conversation, as rows hold it and as chat templates read it."""

from __future__ import annotations

import json
from typing import Any

from batchinfer.jobspec.printed import Map

Message = dict[str, Any]
"""A message of a chat: `role` and `content`, which are texts, and what else chat templates read (`MESSAGE_KEYS`)."""

MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
"""The keys of a message that are handed to the chat template. Others are the user's own notes."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation. A chat template writes a role beside its control tokens, unseen."""

NO_MESSAGES = "the messages are not a list of {role, content} with texts"

_TEXT_PARTS = ("text", "input_text", "output_text")
"""OpenAI's types of content parts that hold a text."""


def read_message(value: Any) -> Message | str:
    """The message for the chat template, or what is wrong with it."""
    if isinstance(value, Map):
        value = dict(value)
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return NO_MESSAGES
    if value["role"] not in ROLES:
        return f"a message has the role {value['role']!r:.100}; roles are {', '.join(ROLES)}"
    # Rows of a table have every key of the column's type: what is null was not written.
    kept = {key: value[key] for key in MESSAGE_KEYS if value.get(key) is not None}
    calls = kept.pop("tool_calls", None)
    if calls:
        read = _tool_calls(calls)
        if isinstance(read, str):
            return read
        kept["tool_calls"] = read
    content = kept.get("content", "" if calls else None)
    if isinstance(content, list):
        refused = _refused_part(content)
        if refused is not None:
            return refused
        # One a line, as vLLM's server joins them.
        content = "\n".join(dict(part)["text"] for part in content)
    if not isinstance(content, str):
        return NO_MESSAGES
    return {
        "role": value["role"],
        "content": content,
        **{k: v for k, v in kept.items() if k not in ("role", "content")},
    }


def _refused_part(parts: list[Any]) -> str | None:
    """What is wrong with the first of OpenAI's content parts that is no text."""
    for part in parts:
        part = dict(part) if isinstance(part, dict | Map) else {"type": None}
        kind = part.get("type", "text")
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            return f"a message holds a part of type {kind!r:.40}, and this job reads text only"
    return None


def _tool_calls(calls: Any) -> list[dict[str, Any]] | str:
    """Calls as templates read them: the arguments an object, where OpenAI has the JSON text of one."""
    wrong = "a message's tool_calls are not a list of {function: {name, arguments}}"
    if not isinstance(calls, list):
        return wrong
    read = []
    for call in calls:
        call = {k: v for k, v in call.items() if v is not None} if isinstance(call, dict | Map) else None
        function = dict(call["function"]) if call and isinstance(call.get("function"), dict | Map) else None
        if call is None or function is None or not isinstance(function.get("name"), str):
            return wrong
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return "the arguments of a tool call are not JSON"
        read.append({**call, "function": {**function, "arguments": {} if arguments is None else arguments}})
    return read
