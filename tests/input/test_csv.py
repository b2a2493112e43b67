"""CSV as programs write it: values stay what they are, and what is wrong is named by file and line."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchinfer.errors import InputError
from batchinfer.input import build_manifest, csv
from batchinfer.jobspec import CsvSpec
from batchinfer.prompting.prompts import needed_columns
from tests.support.builders import make_fingerprint, make_spec, rows_of

PLAIN = b'id,body\n007,hi\n1e5,"a\nb"\n12345678901234567890,"say ""x"""\n'
ROWS = [("007", "hi"), ("1e5", "a\nb"), ("12345678901234567890", 'say "x"')]


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


def read(path: Path, data: bytes, rows: int = 2, form: dict[str, Any] | None = None, **keys: Any) -> list[Any]:
    """(id, body) and further `columns` of a file's rows, through a manifest of shards of two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    given = {"uri": str(path.parent), "format": "csv", "id_column": "id", "csv": form or {}, **keys}
    spec = make_spec(input=given, prompt={"column": "body"}, shards={"rows": rows})
    manifest = build_manifest(spec, needed_columns(spec), make_fingerprint())
    found = rows_of(manifest, path.parent, "csv", CsvSpec(**(form or {})))
    return [tuple(row[name] for name in ("id", "body", *keys.get("columns", []))) for row in found]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.csv", bytes),
        ("a.csv.gz", gzip.compress),
        ("part-0000.csv.gz", lambda data: gzip.compress(data[:30]) + gzip.compress(data[30:])),
        ("a.csv.zst", zstd),
        ("packed-and-not-named-so.csv", gzip.compress),
        ("a.csv", lambda data: b"\xef\xbb\xbf" + data),
        ("a.csv.gz", lambda data: gzip.compress(b"\xef\xbb\xbf" + data)),
        ("a.csv", lambda data: b"\n\n" + data.removesuffix(b"\n")),
    ],
    ids=["plain", "gzip", "gzip of two members", "zstd", "magic bytes", "mark", "packed mark", "blank lines"],
)
def test_values_are_those_of_the_file(tmp_path, name, pack):
    assert read(tmp_path / "in" / name, pack(PLAIN)) == ROWS


def test_ends_of_lines_of_windows_are_read(tmp_path):
    assert read(tmp_path / "in" / "a.csv", PLAIN.replace(b"\n", b"\r\n")) == [
        (number, body.replace("\n", "\r\n")) for number, body in ROWS
    ]


@pytest.mark.parametrize(
    ("data", "form", "rows"),
    [
        (b"id;body\n1;a,b\n", {"delimiter": ";"}, [("1", "a,b")]),
        (b"id\tbody\n1\ta\n", {"delimiter": "\t"}, [("1", "a")]),
        (b"id,body\n1,'a,b'\n", {"quote": "'"}, [("1", "a,b")]),
        (b'id,body\n1,"a\n', {"quote": None}, [("1", '"a')]),
        (b'id,body\n1,"a \\"q\\", b"\n', {"escape": "\\"}, [("1", 'a "q", b')]),
        (b'id,body\n1,5" screen\n2,x\n', {}, [("1", '5" screen'), ("2", "x")]),
        (b"1,a\n2,b\n", {"header": False, "columns": ["id", "body"]}, [("1", "a"), ("2", "b")]),
        (b'id,body\n1,\n2,""\n3,NA\n', {}, [("1", None), ("2", ""), ("3", "NA")]),
        (b"id,body\n1,\n3,NA\n", {"nulls": ["NA"]}, [("1", ""), ("3", None)]),
        (b",body,id,\n0,a,1,\n", {}, [("1", "a")]),
        ("id,body\n1,größe\n".encode("latin-1"), {"encoding": "latin-1"}, [("1", "größe")]),
        ("id,body\n1,größe\n".encode("utf-16"), {"encoding": "utf-16"}, [("1", "größe")]),
        (b"", {}, []),
        (b"id,body\n", {}, []),
    ],
)
def test_the_form_of_the_file_is_what_the_spec_says(tmp_path, data, form, rows):
    assert read(tmp_path / "in" / "a.csv", data, form=form) == rows


def test_columns_have_the_types_of_cast_and_are_text_otherwise(tmp_path):
    data = b"id,body,n,t\n1,a,5,2026-01-01 02:03:04\n2,b,,2026-01-01T00:00:00+01:00\n3,c,7,2026-01-02\n"
    found = read(
        tmp_path / "in" / "a.csv",
        data,
        columns=["n", "t"],
        cast={"n": "int64", "t": "timestamp"},
        where="n IS NULL OR n > 5",
    )
    assert found == [
        ("2", "b", None, datetime(2025, 12, 31, 23, tzinfo=UTC)),
        ("3", "c", 7, datetime(2026, 1, 2, tzinfo=UTC)),
    ]


@pytest.mark.parametrize(
    ("data", "message", "remedy"),
    [
        (b"id,body\n1,a\n\n2,b,c\n", ":4: the row has 3 fields, and the header has 2: 2,b,c", "on_bad_file: skip"),
        (b'id,body\n1,"a\nb\nc"\n2\n', ":5: the row has 1 field, and the header has 2: 2", "on_bad_file: skip"),
        (
            b'id,body\n1,"never closed\n2,x\n',
            ":2: a quote opens in this row and does not close",
            "input.csv.quote: null",
        ),
        ("id,body\n1,a\n2,größe\n".encode("latin-1"), ":3: byte 0xf6 is not utf-8 text", "such as cp1252"),
        ("id,body\n1,a\n".encode("utf-16"), ":1: byte 0xff is not utf-8 text", "set input.csv.encoding: utf-16"),
        ("id,body\n1,a\n".encode("utf-16-le"), "the header has NUL characters", "set input.csv.encoding: utf-16-le"),
        (b"id;body\n1;a\n", "the header has one column, 'id;body'", 'set input.csv.delimiter: ";"'),
        (b"id,body,id\n1,a,2\n", "the header has the column 'id' twice", "rename"),
        (b"id,body\r1,a\r2,b\r", ":1: its lines end with CR alone", "tr "),
        (b"PK\x03\x04zzz\n1,2\n", " is not CSV: it is a zip archive", "unpack it"),
        (b"id,bodi\n1,a\n", "did you mean 'bodi'?", "the columns are: bodi, id"),
        (b"id,body\n1,a\n1,b\n", "id column 'id' has '1' twice: row 0 of ", "make them unique"),
    ],
)
def test_what_is_wrong_is_one_message_with_file_line_and_remedy(tmp_path, data, message, remedy):
    with pytest.raises(InputError) as caught:
        read(tmp_path / "in" / "a.csv", data)
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert "\n" not in caught.value.message


def test_a_value_that_is_not_of_its_type_is_named_with_its_line(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv:4: column 'n' holds 'x', which is not of the type"):
        read(tmp_path / "in" / "a.csv", b'id,body,n\n1,"a\nb",5\n2,b,x\n', columns=["n"], cast={"n": "int64"})


@pytest.mark.parametrize("damage", [lambda d: gzip.compress(d)[:-9], lambda d: zstd(d)[:-4]], ids=["gzip", "zstd"])
def test_a_packed_file_that_is_cut_off_is_one_bad_file(tmp_path, damage):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.csv").write_bytes(PLAIN)
    with pytest.raises(InputError, match=r"bad\.csv cannot be unpacked"):
        read(tmp_path / "in" / "bad.csv", damage(PLAIN * 1000))
    assert read(tmp_path / "in" / "bad.csv", damage(PLAIN * 1000), on_bad_file="skip") == ROWS


@pytest.mark.integration
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_shards_of_many_blocks_hold_the_rows_of_the_file(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(csv, "_BLOCK_BYTES", 64)
    wanted = [(f"{i:04}", f'x,"y"\n{i}' * (i % 9 + 1)) for i in range(300)]
    lines = "".join(f'{number},"{body.replace(chr(34), chr(34) * 2)}"\r\n' for number, body in wanted)
    data = pack(("id,body\r\n" + lines).encode())
    for rows in (1, 7, 1000):
        assert read(tmp_path / "in" / "a.csv", data, rows=rows) == wanted
    some = read(tmp_path / "in" / "a.csv", data, rows=5, where="id LIKE '%7' AND id > '0100'")
    assert some == [row for row in wanted if row[0].endswith("7") and row[0] > "0100"]


def test_a_packed_row_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(csv, "LONGEST_ROW", 2**22)
    with pytest.raises(InputError, match=r"a row is longer than 4,194,304 bytes"):
        read(tmp_path / "in" / "a.csv.gz", gzip.compress(b"id,body\n1," + b"x" * 2**25))


def test_files_beside_the_csv_files_are_named_and_not_skipped_silently(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README.txt").write_text("about")
    with pytest.raises(InputError, match=r"README\.txt would not be read: its name does not end as csv files do"):
        read(tmp_path / "in" / "a.csv", PLAIN)
    assert read(tmp_path / "in" / "a.csv", PLAIN, ignore=["*.txt"]) == ROWS
