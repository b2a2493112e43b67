"""`input.where`: one expression of SQL, parsed by DuckDB before any row is read."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

ROWS_TABLE = "rows_of_the_input"
"""The table that an expression reads. No column may be named like it: SQL would take the column for the whole row."""

_MEMORY = "1GB"
"""Most memory of DuckDB for one batch of rows. An expression that needs more, as `repeat('a', 4000000000)`, fails."""

# fmt: off
_CLOCK_AND_SESSION = frozenset({
    "now", "today", "current_date", "current_time", "current_timestamp", "current_localtime", "current_localtimestamp",
    "localtime", "localtimestamp", "get_current_time", "get_current_timestamp", "transaction_timestamp", "txid_current",
    "current_setting", "getvariable", "getenv", "current_database", "current_schema", "current_schemas",
    "in_search_path", "current_user", "session_user", "current_role", "current_catalog", "version",
})
"""Functions whose value depends on when or where they are called. DuckDB also reads most of them without brackets."""

_CHANGING = frozenset({
    "random", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "setseed", "nextval", "currval", "setval", "write_log",
    "sleep_ms", "stats", "vector_type", "current_query", "current_query_id", "current_connection_id",
    "current_transaction_id", "error",
})
"""Functions with another value in each call, or with an effect beside their value."""

_WITH_LAMBDA = frozenset({
    "apply", "array_apply", "array_filter", "array_reduce", "array_transform", "filter", "list_apply", "list_filter",
    "list_reduce", "list_transform", "reduce", "transform",
})
"""Functions that take a lambda, whose parameters are no columns. Elsewhere `a -> 'b'` reads JSON of the column a."""
# fmt: on


def sandbox() -> duckdb.DuckDBPyConnection:
    """A database in memory that reaches no file, no network and no Python variable, and stays so."""
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
            "memory_limit": _MEMORY,
            # One thread returns rows in the order in which they were given.
            "threads": "1",
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    return connection


def selected(expression: str) -> str:
    """The query whose only column says which rows of `ROWS_TABLE` are selected. The expression begins its line 2."""
    return f"SELECT (\n{expression}\n) FROM {ROWS_TABLE}"


@functools.lru_cache(maxsize=64)
def where_columns(expression: str) -> tuple[str, ...]:
    """The columns that an expression reads; raises ValueError for what is no expression over the columns of a row."""
    if "{{" in expression:
        # As text in quotes it would select no row, and nobody would know why.
        raise ValueError("holds {{ }}, and only URIs have variables: name the folder of a run's rows in input.uri")
    with sandbox() as connection:
        text = f"SELECT (\n{expression}\n)"
        try:
            found = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchone()
        except Exception as error:
            raise ValueError(f"is not an SQL expression: {told(error)}") from None
    parsed = json.loads(found[0]) if found else {}
    if parsed.get("error"):
        place = _place(text, int(parsed.get("position") or 0))
        raise ValueError(f"is not an SQL expression: {place}: {parsed.get('error_message')}")
    columns: dict[str, None] = {}
    for name in _read(_only_expression(parsed), frozenset()):
        columns.setdefault(name)
    if not columns:
        raise ValueError("names no column of the input: write a condition on a row, as \"lang = 'de'\"")
    return tuple(columns)


def told(error: Exception) -> str:
    """A message of DuckDB on one line, with the place in the expression that it points to."""
    text = re.sub(r"^[A-Za-z ]*Error: ", "", str(error).strip())
    message = " ".join(text.split("\n\n")[0].splitlines()[0].split())
    pointed = re.search(r"^(LINE (\d+): )(?!\.\.\.).*\n( *)\^", text, re.MULTILINE)
    if pointed is None:
        return f"{message:.300}"
    return f"line {int(pointed[2]) - 1}, character {len(pointed[3]) - len(pointed[1]) + 1}: {message:.300}"


def _place(text: str, position: int) -> str:
    """Line and character in the expression of a position in the bytes of `text`, whose first line is not of it."""
    before = text.encode()[:position].decode(errors="ignore").split("\n")
    lines = text.split("\n")
    line = min(len(before) - 1, len(lines) - 2)
    # Behind the expression stands a bracket that the user did not write.
    at = len(before[-1]) if line == len(before) - 1 else len(lines[line])
    return f"line {line}, character {at + 1}"


def _only_expression(parsed: Any) -> Any:
    """The tree of the expression. Raises ValueError where brackets in it close the query around it."""
    statements = parsed["statements"]
    node = statements[0]["node"]
    plain = (
        len(statements) == 1
        and node["type"] == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not any(node.get(key) for key in ("modifiers", "where_clause", "group_expressions", "having", "qualify"))
        and not node.get("sample")
        and not node["cte_map"]["map"]
        and not node["select_list"][0].get("alias")
    )
    if not plain:
        raise ValueError("is more than one expression: write a condition on a row, without SELECT, FROM and WHERE")
    return node["select_list"][0]


def _read(node: Any, parameters: frozenset[str]) -> Iterator[str]:
    """The columns that a tree reads; `parameters` are those of the lambdas around it. Raises ValueError."""
    if isinstance(node, list):
        for one in node:
            yield from _read(one, parameters)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind == "SUBQUERY":
        raise ValueError("holds a subquery: a row is selected by its own columns alone")
    if kind == "WINDOW":
        raise ValueError(f"holds the window function {node.get('function_name')}: a row is selected by its own columns")
    if kind == "STAR":
        raise ValueError("holds * or COLUMNS(...): name the columns")
    if kind == "PARAMETER":
        raise ValueError("holds a parameter (? or $1), which has no value: write the value, texts in single quotes")
    if kind == "COLUMN_REF":
        yield from _column(node["column_names"], parameters)
        return
    if kind == "FUNCTION":
        yield from _function(node, parameters)
        return
    for value in node.values():
        yield from _read(value, parameters)


def _column(names: list[str], parameters: frozenset[str]) -> Iterator[str]:
    if names[0] in parameters:
        return
    if len(names) == 1 and names[0].lower() in _CLOCK_AND_SESSION:
        raise _not_the_same(names[0])
    if names[0].lower() == ROWS_TABLE:
        raise ValueError(f"names {names[0]}: name the column alone")
    yield names[0]


def _function(node: Any, parameters: frozenset[str]) -> Iterator[str]:
    name = str(node["function_name"]).lower()
    # DuckDB 2 wraps each argument, earlier releases do not.
    given = [a.get("expression", a) for a in node.get("arguments") or node.get("children") or []]
    if name in _CLOCK_AND_SESSION | _CHANGING or (name == "age" and len(given) == 1):
        raise _not_the_same(name)
    for argument in given:
        if argument.get("class") == "LAMBDA" and name in _WITH_LAMBDA:
            yield from _read(argument["expr"], parameters | _names(argument["lhs"]))
        else:
            yield from _read(argument, parameters)
    yield from _read(node.get("filter"), parameters)


def _names(node: Any) -> frozenset[str]:
    """The parameters on the left side of a lambda."""
    if isinstance(node, dict) and node.get("class") == "COLUMN_REF":
        return frozenset(node["column_names"])
    inner: Iterable[Any] = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return frozenset().union(*map(_names, inner))


def _not_the_same(name: str) -> ValueError:
    remedy = "use input.sample" if name == "random" else "write the value itself, as DATE '2026-01-31'"
    return ValueError(f"calls {name}, whose value is another in each call: {remedy}")
