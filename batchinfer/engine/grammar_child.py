"""Compiles one grammar as the engine will, and says whether its backend takes it. A program of its own.

It runs in a child process with limits on time and memory, so that a schema that no machine can compile ends the child
and nothing else. It imports the backend without torch and transformers, which the compiler does not use: half a second
instead of ten. Standard input: one JSON object (`main`). Standard output: one JSON object a line, the last one with
`accepted`, `refused` or `missing`, those before it with the part of a schema that is tried.
"""

from __future__ import annotations

import importlib.util
import json
import re
import resource
import sys
import types
from collections.abc import Iterator
from typing import Any

MANY = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
ONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")

_FORMATS = {
    *("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference"),
    *("uri-template", "json-pointer", "relative-json-pointer"),
}


def main() -> None:
    """`kind` is json, regex or ebnf, `source` the schema or the text. `parts`: find the part that is refused too.
    `tokenizer`: the path of a tokenizer.json, or null. `seconds` and `bytes` are the limits.
    """
    # The folder of this file has modules of ours by the names of packages.
    del sys.path[0]
    given = json.loads(sys.stdin.read())
    resource.setrlimit(resource.RLIMIT_CPU, (given["seconds"], given["seconds"] + 5))
    resource.setrlimit(resource.RLIMIT_AS, (given["bytes"], given["bytes"]))
    kind, source = given["kind"], given["source"]
    guidance = kind == "json" and needs_guidance(source)
    try:
        take = Guidance(given["compact"]) if guidance else Xgrammar(given["tokenizer"], given["compact"])
    except ImportError as error:
        say(missing=str(error))
        return
    if given["parts"]:
        say(**smallest_part(take, source))
        return
    try:
        take(kind, source)
    except Exception as error:
        # RuntimeError of C++, ValueError of Rust, RecursionError: all say that the grammar is refused.
        say(refused=told(error))
    else:
        say(accepted="guidance" if guidance else "xgrammar")


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def told(error: BaseException) -> str:
    """The error's own words, without the time and the line of C++ before them."""
    lines = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", str(error).strip()).splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def needs_guidance(schema: Any) -> bool:
    """Whether vLLM gives the schema to guidance, since xgrammar would not hold answers to all of it.

    The same rule as vLLM 0.32's own, whose import takes ten seconds; a test compares the two.
    """
    if isinstance(schema, list):
        return any(map(needs_guidance, schema))
    if not isinstance(schema, dict):
        return False
    kind = schema.get("type")
    kinds = {kind} if isinstance(kind, str) else {one for one in kind or () if isinstance(one, str)}
    lists = {"uniqueItems", "contains", "minContains", "maxContains"}
    branches = schema.get("allOf")
    return (
        (bool(kinds & {"integer", "number"}) and "multipleOf" in schema)
        or ("array" in kinds and not lists.isdisjoint(schema))
        or ("string" in kinds and (schema.get("format", "date") not in _FORMATS or _bounded(schema)))
        or ("object" in kinds and _unusual_keys(schema))
        or (isinstance(branches, list) and len(branches) >= 2)
        or any(map(needs_guidance, schema.values()))
    )


def _bounded(schema: dict[str, Any]) -> bool:
    return ("pattern" in schema or "format" in schema) and ("minLength" in schema or "maxLength" in schema)


def _unusual_keys(schema: dict[str, Any]) -> bool:
    """Rules for the names of keys that xgrammar does not have together."""
    patterns = schema.get("patternProperties")
    if "propertyNames" in schema:
        names = schema["propertyNames"]
        beside = "patternProperties" in schema or "properties" in schema
        closed = schema.get("unevaluatedProperties", True) is not True
        if beside or closed or (isinstance(names, dict) and _bounded(names)):
            return True
    return isinstance(patterns, dict) and ("properties" in schema or len(patterns) > 1)


class Xgrammar:
    """xgrammar's compiler, with the real vocabulary where the tokenizer is at hand."""

    def __init__(self, tokenizer: str | None, compact: bool) -> None:
        self._import_bare()
        from xgrammar.compiler import GrammarCompiler
        from xgrammar.grammar import Grammar
        from xgrammar.tokenizer_info import TokenizerInfo, VocabType

        self._grammar = Grammar
        self._form: dict[str, Any] = {"any_whitespace": not compact, "separators": (",", ":") if compact else None}
        if tokenizer is None:
            info = TokenizerInfo(
                [bytes([code]) for code in range(256)] + [b"</s>"], VocabType.RAW, stop_token_ids=[256]
            )
        else:
            info = self._vocabulary(tokenizer, TokenizerInfo, VocabType)
        self._compiler = GrammarCompiler(info, max_threads=2)

    @staticmethod
    def _import_bare() -> None:
        """Make the package importable without what its `__init__` imports, and without torch and transformers."""
        found = importlib.util.find_spec("xgrammar")
        if found is None:
            raise ImportError("xgrammar is not installed")
        package = types.ModuleType("xgrammar")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["xgrammar"] = package
        sys.modules["torch"] = None  # type: ignore[assignment]
        transformers: Any = types.ModuleType("transformers")
        transformers.PreTrainedTokenizerBase = transformers.PreTrainedTokenizerFast = type("Unused", (), {})
        sys.modules["transformers"] = transformers
        importlib.import_module("xgrammar.load_binding")

    @staticmethod
    def _vocabulary(path: str, info: Any, kinds: Any) -> Any:
        from tokenizers import Tokenizer

        tokens = Tokenizer.from_file(path).get_vocab(with_added_tokens=True)
        words = [""] * (max(tokens.values()) + 1)
        for token, number in tokens.items():
            words[number] = token
        kind = info._detect_vocab_type_from_vocab(tokens) or kinds.RAW
        return info(words, kind, stop_token_ids=[0])

    def __call__(self, kind: str, source: Any) -> None:
        if kind == "json":
            # First without the vocabulary: it says in words what is wrong, and nothing else is as fast.
            self._grammar.from_json_schema(json.dumps(source), **self._form)
            self._compiler.compile_json_schema(json.dumps(source), **self._form)
        elif kind == "regex":
            self._compiler.compile_regex(source)
        else:
            self._compiler.compile_grammar(source)


class Guidance:
    """llguidance, for schemas that xgrammar does not hold answers to."""

    def __init__(self, compact: bool) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher
        self._defaults: Any = {"whitespace_flexible": not compact}

    def __call__(self, kind: str, source: Any) -> None:
        grammar = self._matcher.grammar_from_json_schema(json.dumps(source), defaults=self._defaults)
        problem = self._matcher.validate_grammar(grammar, None)
        if problem:
            raise ValueError(problem)


def parts(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The schemas inside a schema, the innermost first, and last the schema itself."""
    if not isinstance(schema, dict):
        yield path, schema
        return
    for key in MANY:
        for name, inner in schema[key].items() if isinstance(schema.get(key), dict) else ():
            yield from parts(inner, (*path, key, name))
    for key in ONE:
        if isinstance(schema.get(key), dict):
            yield from parts(schema[key], (*path, key))
    for key in LISTS:
        for place, inner in enumerate(schema[key] if isinstance(schema.get(key), list) else ()):
            yield from parts(inner, (*path, key, str(place)))
    yield path, schema


def smallest_part(take: Any, schema: Any) -> dict[str, Any]:
    """The first part that is refused by itself, with the definitions of the whole."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema.get(key), dict)}
    for path, part in parts(schema):
        whole = {**shared, **part} if isinstance(part, dict) else part
        if path and '"$ref": "#/' in re.sub(r'"#/(\$defs|definitions)/', '"', json.dumps(part)):
            # It refers to a place that it does not have without the rest.
            continue
        say(trying=path)
        try:
            take("json", whole)
        except Exception as error:
            # As in `main`.
            return {"refused": told(error), "path": path}
    return {"accepted": ""}


if __name__ == "__main__":
    main()
