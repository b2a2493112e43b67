"""What a commit into a table is, whatever the table's format."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.errors import UserError
from batchinfer.tables.column_types import Fitted

Way = Literal["append", "overwrite", "upsert", "replace"]
"""What a commit does with the rows of the table; `replace` puts the run's rows in the place of those that it had."""

Batches = Callable[[], Iterator[pa.RecordBatch]]
"""The rows of a commit, from the first again at each call: a commit that meets another one is tried again."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a commit carries. `revision`: 0 for the results as the run made them, more after each retry."""

    run_id: str
    job: str
    revision: int


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of a snapshot.

    `stored`: for each column of the table its name in the file, None if the file lacks it; None where the file has the
    table's names. `values`: columns that are not in the file: their name, value as text, and type as in `input.cast`.
    `kept`: for each row of the file whether it is not deleted; None if none is.
    """

    uri: str
    stored: tuple[tuple[str, str | None], ...] | None = None
    values: tuple[tuple[str, str | None, str], ...] = ()
    kept: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a table at one version, in order; of an increment, those that came since an earlier version."""

    version: str
    files: tuple[DataFile, ...]
    columns: tuple[str, ...] = ()
    """The names of the table's columns, also of those that no file has yet."""


class Conflict(Exception):
    """Another commit came first, and this one left no trace: look at the table again."""


class Destination(Protocol):
    """A table to write to, as it was when it was opened."""

    @property
    def schema(self) -> pa.Schema | None:
        """The table's columns; None if the table does not exist."""

    @property
    def version(self) -> str | None:
        """The version, or the snapshot, that the table has; None if it has none."""

    def revision_of(self, run_id: str) -> int | None:
        """The last revision of the run that the table holds; None if it holds none."""

    def commit(
        self, fitted: Fitted, batches: Batches, way: Way, keys: tuple[str, ...], mark: Mark, run_column: str | None
    ) -> str:
        """Write the rows in one commit with the mark, and return the new version. `keys`: the columns of an upsert.

        Raises Conflict if the table changed since it was opened in a way that the commit would have to know. A table
        that does not exist is created first, without rows.
        """


def library(name: str, extra: str) -> ModuleType:
    """A package of an extra. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{extra} tables need the package {name.partition('.')[0]}, which is not installed: {error}",
            f"pip install 'batchinfer[{extra}]'",
        ) from None


def first_line(error: BaseException) -> str:
    """The first line of the message, at most 500 characters: the libraries append stacks and responses to it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
