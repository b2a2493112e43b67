"""Hostile specs, expressions, schemas, templates and conversations: each ends in time with a result or a message.

    python benchmarks/hostile.py [--inputs 2000] [--seed 1]

Prints how many inputs of each kind were tried, how they ended, and the slowest; exits with 1 at the first that raises
anything but batchinfer's own errors. The same seed makes the same inputs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import jinja2
import pyarrow as pa

from batchinfer.errors import BatchinferError, RowError
from batchinfer.jobspec import OutputSpec, PromptSpec, parse
from batchinfer.jobspec.regex import compile_regex
from batchinfer.jobspec.templates import compile_template
from batchinfer.prompting.answers import OutputCheck
from batchinfer.prompting.prompts import PromptMaker

SPEC: dict[str, Any] = {
    "name": "a-job",
    "model": {"source": "scripted"},
    "input": {"uri": "/in", "id_column": "id", "columns": ["a"]},
    "prompt": {"template": "Say {{ text }}", "system": "Be brief."},
    "sampling": {"max_tokens": 8, "stop": ["\n"], "bad_words": ["x"], "logit_bias": {"5": 1.0}},
    "output": {"uri": "/out", "choices": ["yes", "no"]},
    "engine": {"max_model_len": 512},
    "resources": {"replicas": {"min": 1, "max": 2}},
    "limits": {"max_error_rate": 0.1},
    "labels": {"team": "search"},
}
ODD: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1e308, "", "\0", " ", "\ufdd0", "ａ", "<|im_end|>", "x" * 10_000, "{{", "{% for",
    "(", "[", r"\A", "(?=a)", "a" * 50 + "{999}", [], {}, [[]], [None], {"": {}}, {"a": {"b": {"c": []}}}, "2026-13-45",
    "!!python/object:os.system", "&a [*a]", "s3://", "../..", "%s", "'", '"', ":", "- -", "#", "|", "\ttab", "\u2028",
]  # fmt: skip
ATOMS = [
    "a",
    "b",
    ".",
    "[ab]",
    "[^a]",
    r"\d",
    r"\w",
    r"\s",
    "^",
    "$",
    r"\A",
    r"\b",
    "(?=a)",
    r"\1",
    "(?i)",
    "é",
    "[",
    "(",
]
COUNTS = ["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "++", "{999}", "{0}", "{3000}"]
VALUES = [
    "big",
    "many",
    "text",
    "number",
    "nested",
    "nothing",
    "[big] * 9",
    "'x'",
    "1",
    "10**9",
    "{'a': big}",
    "(1, 2)",
]
FILTERS = sorted(jinja2.Environment().filters)
METHODS = ["join", "replace", "translate", "format", "format_map", "split", "center", "zfill", "expandtabs", "encode",
           "ljust", "splitlines", "upper", "__class__", "items", "keys", "get", "count", "index"]  # fmt: skip
ROW = {
    "big": "ab\t{0}%s\n" * 5_000,
    "many": ["ab", "{0}", "%s"] * 10_000,
    "text": "xy",
    "number": 99,
    "nested": {"a": [{"b": None}], "97": "z" * 10_000},
    "nothing": None,
}


def hostile_spec(random: Random) -> str:
    """A spec with one to three places changed, as JSON, or its text cut and mixed."""
    spec = json.loads(json.dumps(SPEC))
    for _ in range(random.randint(1, 3)):
        at = spec
        while True:
            key = random.choice(list(at)) if at and random.random() < 0.9 else random.choice(["x", "", "json_schema"])
            if isinstance(at.get(key), dict) and at[key] and random.random() < 0.8:
                at = at[key]
                continue
            at[key] = random.choice([*ODD, expression(random), schema(random)])
            break
    text = json.dumps(spec, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.3:
        cut = random.randrange(len(text))
        text = text[:cut] + random.choice(["", "\n", "{", "]", "*a", "&a ", "\\ud800", ": :"]) + text[cut + 1 :]
    return text


def expression(random: Random, depth: int = 0) -> str:
    """A regular expression, most of them valid."""
    kind = random.random()
    if depth > 4 or kind < 0.35:
        return random.choice(ATOMS[:8] if random.random() < 0.95 else ATOMS)
    if kind < 0.55:
        return expression(random, depth + 1) + expression(random, depth + 1)
    if kind < 0.7:
        return f"({expression(random, depth + 1)}|{expression(random, depth + 1)})"
    return f"({expression(random, depth + 1)}){random.choice(COUNTS)}"


def schema(random: Random, depth: int = 0) -> Any:
    """A JSON Schema, with branches, references to itself and expressions."""
    kind = random.choice(["type", "object", "array", "anyOf", "ref", "pattern", "enum", "not", "properties", "bool"])
    if depth > 5 or kind == "type":
        return {"type": random.choice(["string", "integer", "null", "boolean", ["string", "null"]])}
    if kind == "ref":
        return {"$ref": random.choice(["#", "#/$defs/a", "#/properties/a", "#/anyOf/0"])}
    if kind == "pattern":
        return {"type": "string", "pattern": expression(random)}
    if kind == "enum":
        return {"enum": [random.choice(ODD[:12]) for _ in range(3)]}
    if kind == "bool":
        return random.random() < 0.5
    if kind == "anyOf":
        one = schema(random, depth + 1)
        return {random.choice(["anyOf", "oneOf", "allOf"]): [one, one, schema(random, depth + 1), one]}
    if kind == "not":
        return {"not": schema(random, depth + 1)}
    if kind == "array":
        return {"items": schema(random, depth + 1), "uniqueItems": True, "contains": schema(random, depth + 1)}
    if kind == "properties":
        return {"patternProperties": {expression(random): schema(random, depth + 1)}, "additionalProperties": False}
    inner = schema(random, depth + 1)
    return {"type": "object", "properties": {"a": inner, "b": inner}, "required": ["a"], "$defs": {"a": inner}}


def answer(random: Random, depth: int = 0) -> str:
    """A text that is nearly JSON."""
    kind = random.random()
    if depth > 6 or kind < 0.3:
        return random.choice(
            ['"a"', '"' + "a" * 3000 + '!"', "1", "null", "true", "NaN", '"a\n\x00"', "1e999", "", " "]
        )
    if kind < 0.6:
        key = random.choice(["a", "b", "a" * 2000 + "!", "\\ud800"])
        return f'{{"{key}":{answer(random, depth + 1)},"{random.choice("ab")}":{answer(random, depth + 1)}}}'
    if kind < 0.9:
        return "[" + ",".join(answer(random, depth + 1) for _ in range(random.randint(0, 4))) + "]"
    return random.choice(["[" * 50_000, "{", '{"a":', "a" * 5000, "\n" * 500, "9" * 5000])


def term(random: Random, depth: int = 0) -> str:
    """An expression of the template language."""
    kind = random.random()
    if depth > 3 or kind < 0.25:
        return random.choice(VALUES)
    if kind < 0.6:
        given = ", ".join(term(random, depth + 1) for _ in range(random.randint(0, 2)))
        return f"({term(random, depth + 1)} | {random.choice(FILTERS)}{f'({given})' if given else ''})"
    if kind < 0.8:
        given = ", ".join(term(random, depth + 1) for _ in range(random.randint(0, 2)))
        return f"({term(random, depth + 1)}).{random.choice(METHODS)}({given})"
    sign = random.choice(["+", "*", "**", "%", "~", "/", "//", "==", "in", "and"])
    return f"({term(random, depth + 1)} {sign} {term(random, depth + 1)})"


def template(random: Random) -> str:
    """A template, with loops and macros."""
    body = f"{{{{ {term(random)} }}}}"
    kind = random.random()
    if kind < 0.15:
        body = f"{{% for x in {term(random)} %}}{{% for y in {term(random)} %}}{body}{{% endfor %}}{{% endfor %}}"
    elif kind < 0.25:
        body = f"{{% macro m(n) %}}{body}{{{{ m(n - 1) if n }}}}{{{{ m(n - 1) if n }}}}{{% endmacro %}}{{{{ m(50) }}}}"
    elif kind < 0.35:
        body = (
            f"{{% set n = namespace(x=big) %}}{{% for i in range(99) %}}{{% set n.x = n.x ~ n.x %}}{body}{{% endfor %}}"
        )
    return body + "{{ text }}"


def try_spec(random: Random) -> str:
    message = ""
    try:
        parse(hostile_spec(random))
    except BatchinferError as error:
        message = str(error)
    assert len(message) < 20_000
    return "refused" if message else "valid"


def try_expression(random: Random) -> str:
    try:
        source = expression(random)
        compile_regex(source)
    except ValueError:
        return "refused"
    check = OutputCheck(OutputSpec(uri="/out", regex=source))
    text = random.choice(["a" * 3000, "ab" * 2000 + "!", "a b " * 800, "", "\n", "1" * 999 + "é"])
    return "does not fit" if check.check(text, random.choice(["stop", "length"])).problem else "fits"


def try_schema(random: Random) -> str:
    try:
        check = OutputCheck(OutputSpec(uri="/out", json_schema=schema(random)), 8)
    except ValueError:
        return "refused"
    text, problem, _ = check.check(answer(random), random.choice(["stop", "length", "error"]))
    (problem or "").encode()
    return "does not fit" if problem else f"fits {json.loads(text) is not text}"[:4]


def try_template(random: Random) -> str:
    source = template(random)
    try:
        compile_template(source)
        maker = PromptMaker(PromptSpec(template=source))
    except ValueError:
        return "refused"
    made = maker.prompts(pa.table({name: [value] for name, value in ROW.items()} | {"x": ["x"], "y": ["y"]}))[0]
    if isinstance(made, RowError):
        made.message.encode()
        return "the row's error"
    assert "Undefined" not in made.text
    assert " at 0x" not in made.text
    return "a prompt"


def try_conversation(random: Random) -> str:
    roles = ["user", "system", "assistant", "tool", "developer", "wizard", "user<|im_end|>", "", "USER", None, 1]
    message = {"role": random.choice(roles), "content": random.choice([*ODD, "hello", "hello", "<|im_start|>system"])}
    value: Any = [message, {"role": "user", "content": "x"}]
    text = json.dumps(random.choice([value, value, message, [value], ODD[random.randrange(len(ODD))]]))
    if random.random() < 0.2:
        text = text[: random.randrange(len(text) + 1)] + random.choice(["", "[" * 9999, "\\ud800"])
    made = PromptMaker(PromptSpec(messages_column="m")).prompts(pa.table({"m": [text]}))[0]
    return "the row's error" if isinstance(made, RowError) else "a prompt"


KINDS: dict[str, tuple[int, Callable[[Random], str]]] = {
    "spec": (30, try_spec),
    "expression": (20, try_expression),
    "schema": (20, try_schema),
    "template": (15, try_template),
    "conversation": (15, try_conversation),
}
"""How many of a hundred inputs are of the kind, and what is done with one."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for kind, (share, attempt) in KINDS.items():
        ends, slowest = run(kind, attempt, given.inputs * share // 100, given.seed)
        print(f"{kind:>14}: {sum(ends.values()):5,} inputs, slowest {slowest:.2f} s, {dict(ends)}", flush=True)
    return 0


def run(kind: str, attempt: Callable[[Random], str], inputs: int, seed: int) -> tuple[Counter[str], float]:
    """How the inputs of a kind ended, and the seconds of the slowest; raises what is no end of an input."""
    ends: Counter[str] = Counter()
    slowest = 0.0
    for number in range(inputs):
        began = time.process_time()
        try:
            ends[attempt(Random(f"{kind} {seed} {number}"))] += 1
        except Exception:
            print(f"{kind} {number} of seed {seed}:", file=sys.stderr)
            raise
        slowest = max(slowest, time.process_time() - began)
    return ends, slowest


if __name__ == "__main__":
    sys.exit(main())
