"""`input.where`: an expression over the columns of a row, and nothing else."""

from __future__ import annotations

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec.where import ROWS_TABLE, sandbox, where_columns
from tests.support.builders import make_spec


@pytest.mark.parametrize(
    ("expression", "columns"),
    [
        ("lang = 'de' AND length(body) > 20", ("lang", "body")),
        ("a.b.c > 1", ("a",)),
        ('"Order No." = 7', ("Order No.",)),
        ("list_contains(tags, 'x') -- a comment", ("tags",)),
        ("len(list_filter(tags, x -> x = lang)) > 0", ("tags", "lang")),
        ("len(list_filter(tags, lambda x, i: x = i)) > 0", ("tags",)),
        ("json_extract_string(j -> 'a', 'b') = 'c'", ("j",)),
        ("CASE WHEN a THEN b ELSE FALSE END", ("a", "b")),
    ],
)
def test_the_columns_of_an_expression_are_known_without_data(expression, columns):
    assert where_columns(expression) == columns


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("lang = AND", "line 1, character 8: syntax error"),
        ("lang = 'de' AND\n= 3", "line 2, character 1: syntax error"),
        ("a = 1; DROP TABLE x", "syntax error"),
        ("a FROM read_csv('/etc/passwd')", "syntax error"),
        ("TRUE) FROM read_csv('/etc/passwd') WHERE (TRUE", "more than one expression"),
        ("a IN (SELECT content FROM read_text('/etc/passwd'))", "a subquery"),
        ("EXISTS (SELECT 1)", "a subquery"),
        ("row_number() OVER () > 3", "the window function row_number"),
        ("a = ?", "a parameter"),
        ("COLUMNS('a') > 1", "name the columns"),
        ("random() < 0.5 AND a", "calls random, whose value is another in each call: use input.sample"),
        ("day > now()", "calls now"),
        ("day = CURRENT_DATE", "calls current_date"),
        ("age(day) > INTERVAL 1 DAY", "calls age"),
        ("1 = 1", "names no column"),
        ("day = '{{ run.date }}'", "only URIs have variables"),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused_with_the_spec(expression, words):
    with pytest.raises(SpecError) as caught:
        make_spec(input={"uri": "/in", "where": expression})
    assert "input.where: " in str(caught.value)
    assert words.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO '/tmp/written-by-a-where.csv'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH '/tmp/other.db'",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "SELECT * FROM in_python",
    ],
)
def test_the_database_reaches_nothing_outside(statement):
    in_python = {"a": [1]}
    assert in_python
    with (
        sandbox() as connection,
        pytest.raises(Exception, match=r"(?i)permission|disabled|locked|does not exist|cannot"),
    ):
        connection.execute(statement)


def test_no_expression_names_the_table_itself():
    with pytest.raises(SpecError, match="name the column alone"):
        make_spec(input={"uri": "/in", "where": f"{ROWS_TABLE}.a = 1"})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"limit": 3, "sample": {"rows": 2}}, "leave one of the two out"),
        ({"csv": {"delimiter": ";"}}, "set format: csv"),
        ({"format": "csv", "csv": {"encoding": "base64"}}, "there is no encoding 'base64'"),
        ({"format": "csv", "csv": {"header": False}}, "needs the names of the columns"),
        ({"format": "csv", "csv": {"columns": ["a"]}}, "set header: false"),
        ({"format": "csv", "csv": {"header": False, "columns": ["a", "a"]}}, "names a column twice"),
        ({"format": "csv", "csv": {"delimiter": '"'}}, "three different characters"),
        ({"format": "csv", "csv": {"delimiter": "§"}}, "one ASCII character"),
    ],
)
def test_keys_that_contradict_one_another_are_refused(keys, words):
    with pytest.raises(SpecError, match=words):
        make_spec(input={"uri": "/in", **keys})
