"""The note of a run on the tables that hold its results, so that no later command writes them there again."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from batchinfer.accounting.report import Published
from batchinfer.rundir.ownership import overwrite
from batchinfer.rundir.paths import Layout, reading


class Publication(Published):
    """One table that holds the run's results."""

    generations: Mapping[int, int] = Field(default_factory=dict)
    """By shard: the retries whose results the table has, where there are any."""


class Publications(BaseModel):
    """The content of `_run/published.json`, the latest publication last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    tables: tuple[Publication, ...] = ()

    def of(self, table: str) -> Publication | None:
        """What is noted of a table."""
        return next((one for one in self.tables if one.table == table), None)


def read_publications(layout: Layout, run_id: str) -> Publications:
    """The note of the run; empty if there is none, or that of an earlier run. Raises OutputError if it is damaged."""
    if layout.storage.stat(layout.published) is None:
        return Publications(run_id=run_id)
    with reading(layout.published, "move it away: the run's next command looks into the table"):
        found = Publications.model_validate_json(layout.storage.read(layout.published))
    return found if found.run_id == run_id else Publications(run_id=run_id)


def note_publication(layout: Layout, run_id: str, made: Publication) -> None:
    """Write the note, with `made` in the place of an earlier publication to the same table."""
    others = tuple(one for one in read_publications(layout, run_id).tables if one.table != made.table)
    noted = Publications(run_id=run_id, tables=(*others, made))
    overwrite(layout, layout.published, noted.model_dump_json(indent=2).encode())


def published(layout: Layout, run_id: str) -> Published | None:
    """The latest table that holds the run's results, for the report."""
    tables = read_publications(layout, run_id).tables
    return Published.model_validate(tables[-1].model_dump(exclude={"generations"})) if tables else None
