"""The keys of `reduce`: one answer for all rows that have the same value in a column."""

from __future__ import annotations

from pydantic import Field, field_validator

from batchinfer.jobspec.base import Keys

COUNT, MEMBERS = "count", "members"
"""The columns that a group has beside its key and the columns of its prompt."""


class ReduceSpec(Keys):
    """One answer for each group of rows.

    Templates have each column as a list of its values in the group's rows, in input order. They go through it as in
    `{% for text in body %}- {{ text }}{% endfor %}`. The key and `count`, the number of rows, are single values.

    `input.where`, `limit` and `sample` select rows first, and the selected rows are grouped.
    """

    key: str = Field(min_length=1)
    """The column whose equal values make a group; the rows of a group may lie anywhere in the input.

    It is the first column of the results, and holds texts, numbers, dates, times, UUIDs or booleans. Rows whose key
    is null are one group, as in SQL's GROUP BY."""
    members: bool = False
    """Whether the results have the column `members`, with the ids of the group's rows.

    These are the values of `input.id_column`, or the rows' positions in the input, from 0."""

    @field_validator("key")
    @classmethod
    def _is_no_made_column(cls, key: str) -> str:
        if key in (COUNT, MEMBERS):
            raise ValueError(f"{key!r} is the name of a column that each group has: rename the column of the input")
        return key

    @property
    def made(self) -> tuple[str, ...]:
        """The columns of the results that tell of a group, beside its key."""
        return (COUNT, MEMBERS) if self.members else (COUNT,)
