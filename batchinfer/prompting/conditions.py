"""Which rows a step's `when` holds for."""

from __future__ import annotations

import jinja2
import pyarrow as pa

from batchinfer.errors import RowError
from batchinfer.input.bad_rows import BAD_ROW
from batchinfer.jobspec.templates import Template
from batchinfer.prompting.prompts import NO_ANSWERS, Answers, column_values, rendered


def holds(condition: Template, rows: pa.Table, answers: Answers = NO_ANSWERS) -> list[bool | RowError]:
    """For each row whether the condition is true, or why it cannot be told.

    A comparison with null is not true. A row that cannot be read is let through: its prompt has the error.
    """
    columns = {name: answers[name] if name in answers else column_values(rows, name) for name in condition.columns}
    bad = rows.column(BAD_ROW).is_valid().to_pylist() if BAD_ROW in rows.column_names else [False] * rows.num_rows
    render = condition.renderer()

    def of_row(place: int) -> bool | RowError:
        row = {name: values[place] for name, values in columns.items()}
        wrong = next((value for value in row.values() if isinstance(value, RowError)), None)
        if wrong is not None:
            return wrong
        try:
            found = rendered(render, row)
        except jinja2.UndefinedError:
            return False
        return found if isinstance(found, RowError) else found != ""

    return [True if bad[place] else of_row(place) for place in range(rows.num_rows)]
