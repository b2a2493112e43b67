"""The keys of tables: the catalog of Iceberg, and `output.publish`, which writes the results of a run into a table."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from batchinfer.jobspec.base import Keys, Place, Text

_SECRET = re.compile(r"secret|token|passw|credential|access[-_.]?key|session", re.IGNORECASE)


def _without_secrets(properties: dict[str, str]) -> dict[str, str]:
    for key, value in properties.items():
        if _SECRET.search(key):
            raise ValueError(
                f"{key} is a secret, which a spec never holds: put it into the environment of pyiceberg, as in "
                f"PYICEBERG_CATALOG__NAME__{re.sub('[^A-Z]', '_', key.upper())}, and give the catalog that name"
            )
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*:[^/?#]*@", value):
            raise ValueError(f"{key} holds a password, and a spec is kept with the results: use the environment")
    return properties


class CatalogSpec(Keys):
    """How to reach the catalog of an Iceberg table: by its name in pyiceberg's own configuration, by properties, or
    both. Never a secret.
    """

    name: str = Field(default="default", min_length=1)
    """The catalog's name in `.pyiceberg.yaml` or in the environment (`PYICEBERG_CATALOG__<NAME>__URI`)."""
    properties: Annotated[dict[Text, Text], AfterValidator(_without_secrets)] = Field(default_factory=dict)
    """pyiceberg's properties, as in `{type: sql, uri: "sqlite:////data/catalog.db", warehouse: s3://lake}`.

    `type` is `sql` (also SQLite), `rest` or `glue`. They come before those of the configuration. The files of the table
    are reached as `storage` says, unless the catalog or these properties say otherwise."""


CatalogName = CatalogSpec | Annotated[str, Field(min_length=1)]


def catalog_of(given: CatalogName | None) -> CatalogSpec:
    """The catalog as a section, if the spec has its name alone, or nothing."""
    if given is None:
        return CatalogSpec()
    return CatalogSpec(name=given) if isinstance(given, str) else given


TableFormat = Literal["delta", "iceberg"]


def require_table_name(to: str, name: str) -> None:
    """Raise ValueError for a name that no table of the format has."""
    if to == "iceberg" and not re.fullmatch(r"[^./\s:]+(\.[^./\s:]+)+", name):
        raise ValueError(f"an Iceberg table is named by its namespace and name, as sales.tickets: {name!r} is not")


class PublishSpec(Keys):
    """Write the results into a table of Delta Lake or Iceberg: one commit when every row is there, with the run's id.
    The files of the run stay as they are.
    """

    to: TableFormat
    """The format of the table. Needs an extra: `pip install 'batchinfer[delta]'`, or `'batchinfer[iceberg]'`."""
    table: Place
    """The table: of Delta a folder, local or on `s3://`; of Iceberg its name in the catalog, as `sales.labels`."""
    catalog: CatalogName | None = None
    """The catalog of an Iceberg table: its name, or `{name: ..., properties: {...}}`. null: the one named `default`."""
    mode: Literal["append", "overwrite", "upsert"] = "append"
    """What becomes of the rows that the table has.

    `append` keeps them. `overwrite` replaces them all. `upsert` replaces those whose `join_cols` are equal, and adds
    the rest; columns of the table that the results lack keep their values."""
    join_cols: tuple[str, ...] = ()
    """For `upsert`: the columns that identify a row, as in `[ticket_id]`. No two results may have the same values."""
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The columns of the results to write, in this order. null: all."""
    failed_rows: bool = True
    """Whether rows that failed are written too, with their `error_code` and without an answer."""
    run_column: str | None = Field(default=None, min_length=1)
    """A column of text for the run's id, as `run_id`. With it, `append` can replace the run's rows after a `retry`.
    null: none."""
    create: bool = True
    """Whether a table that does not exist is created. Iceberg's namespace must exist."""
    schema_evolution: Literal["refuse", "additive"] = "refuse"
    """What to do with columns that the table lacks: `refuse` the job before it starts, or add them to the table
    (`additive`). Types of columns are never changed."""

    @field_validator("join_cols", "columns")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("names a column twice")
        return names

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        require_table_name(self.to, self.table)
        if self.mode == "upsert" and not self.join_cols:
            raise ValueError("mode: upsert needs join_cols: the columns that identify a row of the table")
        if self.mode != "upsert" and self.join_cols:
            raise ValueError(f"join_cols is for mode: upsert, and mode is {self.mode}: leave it out")
        if self.to == "delta" and self.catalog is not None:
            raise ValueError("catalog is for Iceberg: a Delta table is named by its folder")
        missing = [name for name in self.join_cols if self.columns is not None and name not in self.columns]
        if missing:
            raise ValueError(f"columns leaves out {missing[0]!r}, which join_cols names")
        if self.run_column is not None and self.run_column in (*self.join_cols, *(self.columns or ())):
            raise ValueError(f"run_column {self.run_column!r} is the name of another column: choose another")
        return self
