"""Pages of a list, as OpenAI's API has them: at most `limit` objects that follow the id `after`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from batchinfer.gateway.problems import ApiProblem


def limit_of(query: Mapping[str, str], default: int, most: int) -> int:
    """The `limit` of the query. Raises ApiProblem."""
    text = query.get("limit", str(default))
    # Without the length, a number of millions of digits would take long to read.
    if not (text.isascii() and text.isdigit() and len(text) < 8) or not 1 <= int(text) <= most:
        raise ApiProblem(400, f"limit must be a number from 1 to {most:,}", param="limit")
    return int(text)


def page_of(
    ids: Iterable[str],
    after: str | None,
    limit: int,
    show: Callable[[str], dict[str, Any] | None],
    newest_first: bool = True,
) -> dict[str, Any]:
    """A page of the objects with these ids, which are in the order of names if the newest are first, else in reverse.

    `show`: the object of an id, None if it is not there.
    """
    found: list[dict[str, Any]] = []
    more = False
    for one in ids:
        if after is not None and (one <= after if newest_first else one >= after):
            continue
        shown = show(one)
        if shown is None:
            continue
        if len(found) == limit:
            more = True
            break
        found.append(shown)
    return {
        "object": "list",
        "data": found,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
        "has_more": more,
    }
