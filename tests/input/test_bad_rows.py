"""`input.on_bad_row: set_aside`: a row that cannot be read fails alone, whatever is wrong with it."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import InputError, RowError
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.prompts import Prompt, PromptMaker, needed_columns
from tests.support.builders import make_fingerprint, make_spec, write_lines

BAD = {
    "cut off": ('{"id": "b", "text": "te', None, "not a line of JSON"),
    "no object": ('["b"]', None, "a line is a JSON object, not list"),
    "not UTF-8": (b'{"id": "b", "text": "\xff\xfe"}', None, "it is not UTF-8"),
    "not JSON's number": ('{"id": "b", "text": NaN}', None, "NaN is not JSON"),
    "a key twice": ('{"id": "b", "text": "x", "text": "y"}', None, "the key 'text' is there twice"),
    "half a character": ('{"id": "b", "text": "\\ud83d"}', "b", "column 'text' holds half of a surrogate pair"),
    "a number of 30 digits": (f'{{"id": "b", "text": "x", "n": {10**29}}}', "b", "column 'n' has more than 64 bits"),
    "an id that is no text": ('{"id": "\\ud83d", "text": "x"}', None, "column 'id' holds half of a surrogate pair"),
}


def spec_of(folder: Path, **values: Any) -> JobSpec:
    given = {"uri": str(folder), "format": "jsonl", "id_column": "id", "columns": ["n"], "on_bad_row": "set_aside"}
    return make_spec(input=given | values, prompt={"template": "{{ text }}"}, shards={"rows": 3})


def manifest_of(spec: JobSpec) -> Manifest:
    return build_manifest(spec, needed_columns(spec), make_fingerprint())


def read(spec: JobSpec) -> tuple[list[dict[str, Any]], list[Prompt | RowError]]:
    """The rows of all shards and their prompts."""
    manifest = manifest_of(spec)
    rows, made = [], []
    for _, table in read_shards(manifest.shards, manifest.schema, manifest.partitions, spec.input):
        rows += table.to_pylist()
        made += PromptMaker(spec.prompt).prompts(table)
    assert manifest.rows == len(rows)
    return rows, made


def write_bytes(path: Path, *lines: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("packed", [False, True])
def test_a_row_that_cannot_be_read_fails_alone_and_keeps_its_id_if_that_can_be_read(tmp_path, kind, packed):
    line, its_id, words = BAD[kind]
    write_bytes(
        tmp_path / "a.jsonl", '{"id": "a", "text": "one", "n": 1}', "", line, '{"id": "c", "text": "two", "n": 3}'
    )
    if packed:
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
        (tmp_path / "a.jsonl").unlink()
    rows, made = read(spec_of(tmp_path))
    assert [(row["id"], row["n"]) for row in rows] == [("a", 1), (its_id, None), ("c", 3)]
    assert [one.text for one in made if isinstance(one, Prompt)] == ["one", "two"]
    assert isinstance(made[1], RowError)
    assert made[1].code == "input_invalid"
    assert words in made[1].message
    assert f"row 1 of {tmp_path}/a.jsonl" in made[1].message


@pytest.mark.parametrize("kind", BAD)
def test_without_the_key_it_is_a_bad_file_named_with_its_line(tmp_path, kind):
    write_bytes(tmp_path / "a.jsonl", '{"id": "a", "text": "one", "n": 1}', BAD[kind][0])
    with pytest.raises(InputError, match=r"a\.jsonl:2: "):
        manifest_of(spec_of(tmp_path, on_bad_row="fail"))


def test_a_value_that_does_not_fit_its_cast_fails_its_row(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"id": 1, "text": "a", "n": 1}, {"id": 2, "text": "b", "n": "many"})
    rows, made = read(spec_of(tmp_path, cast={"n": "int64"}))
    assert [row["n"] for row in rows] == [1, None]
    assert isinstance(made[1], RowError)
    assert "column 'n' does not fit int64" in made[1].message


def test_a_column_of_mixed_kinds_is_still_the_whole_jobs_mistake(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"id": 1, "text": "a", "n": 1}, {"id": 2, "text": "b", "n": "many"})
    with pytest.raises(InputError, match=r"a\.jsonl:2: column 'n' holds values that do not fit one type"):
        manifest_of(spec_of(tmp_path))


def test_a_row_that_can_be_read_needs_an_id_all_the_same(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"id": "a", "text": "x"}, "{", {"text": "y"})
    with pytest.raises(InputError, match="id column 'id' has 1 null values"):
        manifest_of(spec_of(tmp_path, columns=[]))


def test_ids_are_unique_among_the_rows_that_can_be_read_and_are_named_by_their_place(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"id": "a", "text": "x"}, '{"', "{", {"id": "a", "text": "y"})
    with pytest.raises(InputError) as caught:
        manifest_of(spec_of(tmp_path, columns=[]))
    assert f"row 0 of {tmp_path}/a.jsonl and row 3 of {tmp_path}/a.jsonl" in caught.value.message


@pytest.mark.parametrize("begins", ["[", "{", "PAR1", "id,text", '{"id": 1}\r{"id": 2}'])
def test_a_file_of_another_kind_is_no_bad_row(tmp_path, begins):
    write_bytes(tmp_path / "a.jsonl", begins, '"id": "a"')
    write_lines(tmp_path / "b.jsonl", {"id": "a", "text": "x", "n": 1})
    with pytest.raises(InputError, match=r"a\.jsonl"):
        manifest_of(spec_of(tmp_path))


def test_an_input_without_a_bad_row_has_the_manifest_that_it_has_without_the_key(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"id": "a", "text": "x", "n": 1})
    with_key, without = manifest_of(spec_of(tmp_path)), manifest_of(spec_of(tmp_path, on_bad_row="fail"))
    assert with_key == without
    assert with_key.schema.names == ["id", "n", "text"]


@pytest.mark.parametrize("seed", range(8))
def test_rows_in_are_rows_out_wherever_lines_are_damaged(tmp_path, seed):
    chance = random.Random(seed)
    lines, good = [], []
    for number in range(300):
        row = {"id": f"r{number}", "text": f"text {number}", "n": number, "extra": {"k": [1, None]}}
        line = json.dumps(row).encode()
        damage = chance.random()
        if damage < 0.1 and number:
            # A line with another key would be a row without an id: cut, or with a byte that is nowhere allowed.
            at = chance.randrange(1, len(line) - 1)
            line = chance.choice([line[:at], line[:at] + b"\xff" + line[at + 1 :], line[at:]])
        elif damage < 0.15 and number:
            line = json.dumps(row | chance.choice([{"text": "\udc00"}, {"n": 2**64}, {"id": "\ud800x"}])).encode()
        else:
            good.append(f"r{number}")
        lines.append(line)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows, made = read(spec_of(tmp_path, columns=["n", "extra"], cast={"n": "int64"}))
    assert len(rows) == len(made) == 300
    assert [row["id"] for row, one in zip(rows, made, strict=True) if isinstance(one, Prompt)] == good
    assert {one.code for one in made if isinstance(one, RowError)} == {"input_invalid"}
