from __future__ import annotations

import os

import pyarrow as pa
import pytest

from batchinfer.errors import InputError
from batchinfer.input.files import find_input, input_entries, partition_schema, partition_values


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "in"


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def found(folder, uri=None, file_format="parquet"):
    return [os.path.relpath(entry.uri, folder) for entry in input_entries(str(uri or folder), file_format)]


def partitions(folder, uri=None):
    uri = str(uri or folder)
    return partition_schema(uri, [entry.uri for entry in input_entries(uri, "parquet")])


def test_files_come_in_the_order_a_person_would_count_them(folder):
    make(folder, "part-10.parquet", "part-2.parquet", "part-1.parquet", "day10/a.parquet", "day9/a.parquet")
    assert found(folder) == [
        "day9/a.parquet",
        "day10/a.parquet",
        "part-1.parquet",
        "part-2.parquet",
        "part-10.parquet",
    ]


def test_a_glob_and_its_folder_give_the_same_order(folder):
    names = [f"{part}.parquet" for part in ("a1", "a01", "a001", "a²", "1²3", "b", "A", "10", "9")]
    make(folder, *names)
    assert found(folder, f"{folder}/*.parquet") == found(folder)
    assert sorted(found(folder)) == sorted(names)
    assert found(folder)[-1] == "b.parquet"


def test_hidden_files_and_folders_are_left_out(folder):
    make(folder, "a.parquet", "_SUCCESS.parquet", ".b.parquet", "_temporary/0/c.parquet", ".git/d.parquet")
    assert found(folder) == ["a.parquet"]
    assert found(folder, f"{folder}/**/*.parquet") == ["a.parquet"]


def test_a_hidden_folder_above_the_input_hides_nothing(folder):
    make(folder, ".cache/_x/a.parquet")
    assert found(folder, folder / ".cache" / "_x") == [".cache/_x/a.parquet"]
    assert found(folder, f"{folder}/.cache/_x/*") == [".cache/_x/a.parquet"]


def test_a_file_that_is_named_is_read_whatever_its_name(folder):
    make(folder, "data.snappy", "_hidden.parquet")
    assert found(folder, folder / "data.snappy") == ["data.snappy"]
    assert found(folder, folder / "_hidden.parquet") == ["_hidden.parquet"]


@pytest.mark.parametrize(
    ("file_format", "names"),
    [
        ("parquet", ["a.PARQUET", "b.parq", "c.pq"]),
        ("jsonl", ["d.jsonl", "e.ndjson", "f.json", "g.jsonl.gz", "h.json.zst"]),
    ],
)
def test_in_a_folder_the_endings_of_the_format_count(folder, file_format, names):
    make(folder, *names)
    assert found(folder, file_format=file_format) == names


@pytest.mark.parametrize("other", ["part-1.parquet.gzip", "part-2", "000003_0", "b.csv", "sub/b.jsonl.gz", "notes.txt"])
def test_a_file_that_would_not_be_read_is_refused_by_name(folder, other):
    make(folder, "part-0.parquet", other)
    with pytest.raises(InputError) as caught:
        input_entries(str(folder), "parquet")
    assert str(caught.value).startswith(f"{folder}/{other} would not be read")
    assert "input.ignore" in caught.value.remedy
    assert "a pattern in input.uri" in caught.value.remedy
    assert sorted(found(folder, f"{folder}/**/*")) == sorted(["part-0.parquet", other])


def test_many_files_that_would_not_be_read_are_counted(folder):
    make(folder, "a.parquet", *(f"b{i}" for i in range(12)))
    with pytest.raises(InputError, match=r"b0 and 11 more files would not be read"):
        input_entries(str(folder), "parquet")


def test_what_every_tool_ignores_is_left_out_and_told(folder):
    ignored = [
        "_SUCCESS",
        "_metadata",
        "_common_metadata",
        ".a.parquet.crc",
        "a.parquet.crc",
        "sub_$folder$",
        ".DS_Store",
    ]
    make(folder, "a.parquet", *ignored)
    there = find_input(str(folder), "parquet")
    assert [os.path.basename(entry.uri) for entry in there.entries] == ["a.parquet"]
    assert sorted(map(os.path.basename, there.left_out)) == sorted(ignored)


@pytest.mark.parametrize("pattern", ["*.gzip", "old/*", "part-1.parquet.gzip", "old"])
def test_input_ignore_leaves_out_names_and_paths(folder, pattern):
    make(folder, "a.parquet", "old/part-1.parquet.gzip")
    there = find_input(str(folder), "parquet", ignore=[pattern])
    assert [os.path.basename(entry.uri) for entry in there.entries] == ["a.parquet"]
    assert there.left_out == (f"{folder}/old/part-1.parquet.gzip",)


def test_a_link_to_a_file_that_is_gone_is_refused_unless_it_is_ignored(folder):
    make(folder, "a.parquet")
    (folder / "b.parquet").symlink_to(folder / "gone")
    with pytest.raises(InputError, match=r"b.parquet is a link to .*gone, which does not exist"):
        input_entries(str(folder), "parquet")
    with pytest.raises(InputError, match=r"b.parquet is a link to a file that does not exist"):
        input_entries(f"{folder}/*.parquet", "parquet")
    assert [e.uri for e in input_entries(str(folder), "parquet", ignore=["b.*"])] == [f"{folder}/a.parquet"]


def test_links_to_files_count_by_their_own_names(folder, tmp_path):
    make(tmp_path / "cache", ".blobs/1", ".blobs/2")
    make(folder, "k=1/a.parquet")
    (folder / "k=2").mkdir()
    for name, target in (("k=1/b.parquet", "1"), ("k=2/a.parquet", "2"), ("k=2/b.parquet", "2")):
        (folder / name).symlink_to(tmp_path / "cache" / ".blobs" / target)
    names = ["k=1/a.parquet", "k=1/b.parquet", "k=2/a.parquet", "k=2/b.parquet"]
    assert found(folder) == names
    assert found(folder, f"{folder}/*/*.parquet") == names
    assert partitions(folder, f"{folder}/*/*.parquet") == pa.schema([("k", pa.int64())])


@pytest.mark.parametrize(
    ("log", "what", "data"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table", "a.parquet"),
        ("_delta_log/00000000000000000000.json", "a Delta table", "day=1/a.parquet"),
        ("metadata/00000-uuid.metadata.json", "an Iceberg table", "data/a.parquet"),
        ("metadata/v1.metadata.json", "an Iceberg table", "data/k=1/a.parquet"),
        (".hoodie/hoodie.properties", "a Hudi table", "a.parquet"),
    ],
)
def test_the_files_of_a_table_are_refused_with_the_tables_kind(folder, log, what, data):
    make(folder, data, log)
    uris = {str(folder), str((folder / data).parent), f"{(folder / data).parent}/*.parquet"}
    for uri in uris:
        with pytest.raises(InputError) as caught:
            input_entries(uri, "parquet")
        assert f" is {what}: " in str(caught.value)
        assert "input.format" in caught.value.remedy or "live rows" in caught.value.remedy
    assert found(folder, folder / data) == [data]


def test_a_partition_may_begin_with_an_underscore(folder):
    make(folder, "_date=2026-01-01/a.parquet", "_temporary/b.parquet")
    assert found(folder) == ["_date=2026-01-01/a.parquet"]
    assert partitions(folder).names == ["_date"]


def test_a_folder_that_is_a_partition_twice_or_no_text_is_refused(folder):
    make(folder, "a=1/a=2/x.parquet")
    with pytest.raises(InputError, match="two of its folders are values of the partition 'a'"):
        partitions(folder)
    make(folder.with_name("other"), "k=%E9/x.parquet")
    with pytest.raises(InputError, match="the folder 'k=%E9' is not UTF-8"):
        partitions(folder.with_name("other"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("**/*.parquet", ["a.parquet", "b.parquet", "deep/er/d.parquet"]),
        ("[b-z].parquet", ["b.parquet"]),
        ("?.txt", ["c.txt"]),
        ("deep/*/*", ["deep/er/d.parquet"]),
    ],
)
def test_a_glob_means_what_it_matches_files_only(folder, pattern, names):
    make(folder, "a.parquet", "b.parquet", "c.txt", "deep/er/d.parquet")
    assert found(folder, f"{folder}/{pattern}") == names


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    folder = tmp_path / "year[2026]"
    (folder / "day=1").mkdir(parents=True)
    (folder / "day=1" / "a.parquet").write_bytes(b"x")
    (entry,) = input_entries(str(folder), "parquet")
    assert partition_values(str(folder), entry.uri) == {"day": "1"}


def test_entries_tell_size_and_version(folder):
    make(folder, "a.parquet")
    before = input_entries(str(folder), "parquet")
    assert before[0].size == len("a.parquet")
    assert input_entries(str(folder), "parquet") == before
    (folder / "a.parquet").write_bytes(b"longer than before")
    assert input_entries(str(folder), "parquet")[0].tag != before[0].tag


@pytest.mark.parametrize(
    ("names", "uri", "file_format", "remedy"),
    [
        (["a.jsonl"], "", "parquet", "it has jsonl files: set input.format: jsonl"),
        (["a.parquet"], "", "jsonl", "it has parquet files: set input.format: parquet"),
        (["a.csv.gz"], "", "parquet", "it has csv files: set input.format: csv"),
        (["a.xml"], "", "parquet", "it has no such files"),
        (["_old/a.parquet"], "", "parquet", "it has files that tools ignore by their names, such as {folder}/_old/a"),
        (["docs/a.parquet"], "dcos", "parquet", "did you mean {folder}/docs?"),
        (["a.parquet"], "x/y/z", "parquet", "the folder {folder}/x/y does not exist"),
        (["a.parquet"], "b*.parquet", "parquet", "did you mean {folder}/a.parquet?"),
    ],
)
def test_where_there_is_nothing_to_read_the_error_says_what_to_do(folder, names, uri, file_format, remedy):
    make(folder, *names)
    with pytest.raises(InputError) as caught:
        input_entries(f"{folder}/{uri}", file_format)
    assert f"there are no {file_format} files at input.uri {folder}/{uri}" in str(caught.value)
    assert caught.value.remedy.startswith(remedy.format(folder=folder))


def test_folders_named_key_value_are_columns(folder):
    make(folder, "year=2026/kind=news/a.parquet", "year=2025/kind=a%2Fb/b.parquet")
    assert partitions(folder) == pa.schema([("year", pa.int64()), ("kind", pa.string())])
    assert partition_values(str(folder), str(folder / "year=2025/kind=a%2Fb/b.parquet")) == {
        "year": "2025",
        "kind": "a/b",
    }


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "20", "0"], pa.int64()),
        (["-1", "0", "1"], pa.int64()),
        (["-0"], pa.string()),
        (["1", "007"], pa.string()),
        (["1", "x"], pa.string()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
        (["a", "__HIVE_DEFAULT_PARTITION__"], pa.string()),
        (["99999999999999999999"], pa.string()),
        (["²"], pa.string()),
        ([""], pa.string()),
    ],
)
def test_a_partition_is_a_number_only_where_no_value_would_lose_by_it(folder, values, kind):
    make(folder, *(f"k={value}/a.parquet" for value in values))
    assert partitions(folder) == pa.schema([("k", kind)])


def test_hives_mark_for_null_is_null(folder):
    path = str(folder / "k=__HIVE_DEFAULT_PARTITION__" / "a.parquet")
    assert partition_values(str(folder), path) == {"k": None}


def test_partitions_that_only_some_files_have_are_refused_with_both_files(folder):
    make(folder, "year=2026/a.parquet", "b.parquet")
    with pytest.raises(InputError) as caught:
        partitions(folder)
    assert str(folder / "b.parquet") in str(caught.value)
    assert str(folder / "year=2026/a.parquet") in str(caught.value)


def test_key_value_folders_above_the_input_are_no_columns(folder):
    make(folder, "year=2026/kind=x/a.parquet")
    assert partitions(folder, folder / "year=2026").names == ["kind"]
    assert partitions(folder, f"{folder}/year=2026/*/a.parquet").names == ["kind"]
    assert partitions(folder, f"{folder}/year=*/*/a.parquet").names == ["year", "kind"]
    assert partitions(folder, folder / "year=2026/kind=x/a.parquet").names == []
