"""Specs made to hang, to blow up, to fill a screen or to hold a secret: refused in one short message."""

from __future__ import annotations

import time

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec import load, parse
from tests.support.builders import SPEC, make_spec

LONG = "x" * 100_000
ALIASES = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
SCHEMAS = "x0: &x0 {enum: [a]}\n" + "".join(
    f"x{i}: &x{i} {{anyOf: [*x{i - 1},*x{i - 1},*x{i - 1}]}}\n" for i in range(1, 30)
)
MERGES = "b0: &b0 {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{','.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


def refusal(text, overrides=()):
    began = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse(text, "job.yaml", overrides)
    assert time.process_time() - began < 10
    message = str(caught.value) + caught.value.remedy
    assert len(message) < 12_000
    message.encode()
    return message


def changed(old, new):
    assert old in SPEC
    return SPEC.replace(old, new)


@pytest.mark.parametrize(
    "text",
    [
        SPEC + ALIASES,
        SPEC + MERGES,
        SCHEMAS + changed("{uri: /out}", "{uri: /out, json_schema: *x29}"),
        ALIASES + changed("id_column: id", "columns: *a9"),
    ],
    ids=["values", "merges", "schemas", "columns"],
)
def test_aliases_of_aliases_are_refused_before_they_are_written_out(text):
    assert "stands for more than 100,000 values" in refusal(text)


def test_an_override_is_no_way_round():
    assert "stands for more than 100,000 values" in refusal(SPEC, ["x=[" + ALIASES.replace("\n", ",") + "]"])


def test_an_alias_that_stands_for_little_is_fine():
    text = "x".join(["name: &n a-job", SPEC.split("\n", 1)[1]]).replace("x", "\n", 1)
    assert parse(text.replace("uri: /in", "uri: *n")).input.uri == "a-job"


@pytest.mark.parametrize(
    "text",
    [
        SPEC + f"? {LONG}\n: 1\n",
        SPEC + f"? {LONG}\n: 1\n? {LONG}\n: 2\n",
        SPEC + f"sampling: {{max_tokens: {LONG}}}\n",
        SPEC + "".join(f"key{i}: 1\n" for i in range(3000)),
        SPEC + f"sampling: {{stop_token_ids: [{','.join(['x'] * 3000)}]}}\n",
        changed("a-job", LONG),
        SPEC + f"schedule: {{cron: x, timezone: {LONG}}}\n",
        changed("{{ text }}", "{{ text " + LONG),
        changed("{uri: /out}", f"{{uri: /out, json_schema: {{type: {LONG}}}}}"),
        changed("{uri: /out}", f"{{uri: /out, json_schema: {{$ref: {LONG}}}}}"),
        changed("{uri: /out}", "{uri: /out, json_schema: " + "{not: " * 200 + "{}" + "}" * 200 + "}"),
        changed("{uri: /out}", f"{{uri: /out, regex: '({LONG}'}}"),
        changed("{{ text }}", "{{ " + "(" * 5000 + "text" + ")" * 5000 + " }}"),
        changed("{{ text }}", "{{ text | nosuch }}"),
    ],
    ids=range(14),
)
def test_a_huge_mistake_is_told_in_short(text):
    refusal(text)


@pytest.mark.parametrize("override", [LONG, f"{LONG}=[", f"name.{LONG}=1", f"x={LONG}["])
def test_a_huge_override_is_told_in_short(override):
    refusal(SPEC, [override])


def test_thousands_of_mistakes_are_counted_and_the_first_are_told():
    message = refusal(SPEC + "".join(f"key{i}: 1\n" for i in range(3000)))
    assert message.startswith("3,000 mistakes:\n  job.yaml:6: key0: unknown key")
    assert "key19: " in message
    assert "key20: " not in message


@pytest.mark.parametrize("name", ["America", "x" * 300, "../../etc/passwd", '"a\\0b"', "/etc/passwd", ""])
def test_what_is_no_time_zone_is_refused_whatever_lies_at_that_path(name):
    assert "timezone" in refusal(SPEC + f"schedule: {{cron: x, timezone: {name}}}\n")


@pytest.mark.parametrize(
    "text",
    [
        changed("{{ text }}", "{{ text }} \\ud800"),
        changed("/in", '"/\\ud800"'),
        changed("{uri: /out}", '{uri: /out, choices: ["\\ud800", b]}'),
        SPEC + '"\\ud800": 1\n',
    ],
)
def test_half_a_surrogate_pair_is_refused_with_its_line(text):
    assert "half of a surrogate pair" in refusal(text)


@pytest.mark.parametrize("key", ["model", "input", "output"])
def test_a_place_with_a_nul_is_refused(key):
    name = "source" if key == "model" else "uri"
    with pytest.raises(SpecError, match="contains a NUL"):
        make_spec(**{key: {name: "/a\0b"}})


def test_a_path_with_a_nul_is_no_spec():
    with pytest.raises(SpecError, match="is not a path"):
        load("a\0b")


SECRET = "s3cr3t-marker"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIAEXAMPLE:{SECRET}@bucket/rows",
        f"https://user:{SECRET}@host/rows",
        f"https://{SECRET}@host/rows",
        f"s3://bucket/rows?X-Amz-Signature={SECRET}",
        f"https://host/rows?a=b&sig={SECRET}",
    ],
)
@pytest.mark.parametrize("key", ["model.source", "input.uri", "output.uri", "engine.tokenizer"])
def test_a_secret_in_a_place_is_refused_and_not_repeated(uri, key):
    message = refusal(SPEC, [f"{key}={uri}"])
    assert key in message
    assert "in the environment" in message
    assert SECRET not in message


@pytest.mark.parametrize("uri", ["/data/a@b/c", "data/user@host:x", "s3://bucket/a@b.parquet", "/a?b=c"])
def test_an_at_sign_in_a_path_is_no_secret(uri):
    assert make_spec(input={"uri": uri}).input.uri == uri


def test_code_of_a_model_is_not_trusted_unless_asked():
    assert make_spec().model.trust_remote_code is False
    assert make_spec(model={"source": "a/b", "trust_remote_code": True}).model.trust_remote_code is True


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("x: '" + "a b " * 7_500_000 + "'\n", "is longer than 1,048,576 bytes"),
        ("".join(f"key{i}: 1\n" for i in range(90_000)), "is longer than 1,048,576 bytes"),
        ("".join(f"k{i}: 1\n" for i in range(60_000)), "holds more than 50,000 keys and values"),
        ("x: [" + "a," * 90_000 + "]\n", "holds more than 50,000 keys and values"),
    ],
    ids=["text", "keys", "short keys", "list"],
)
def test_a_spec_of_many_pages_is_refused_at_once(more, words, tmp_path):
    began = time.process_time()
    assert words in refusal(SPEC + more)
    (tmp_path / "job.yaml").write_text(SPEC + more)
    with pytest.raises(SpecError, match=words):
        load(tmp_path / "job.yaml")
    assert time.process_time() - began < 5


def test_a_device_is_no_spec():
    with pytest.raises(SpecError, match="is longer than"):
        load("/dev/zero")


def test_ten_thousand_choices_are_a_spec():
    choices = ",".join(f"choice number {i}" for i in range(10_000))
    assert len(parse(changed("{uri: /out}", f"{{uri: /out, choices: [{choices}]}}")).output.choices) == 10_000
