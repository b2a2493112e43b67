"""The keys of `input`: where the rows are, how their files are written, and which rows run."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from batchinfer.jobspec.base import Keys, Text
from batchinfer.jobspec.schedule_keys import IncrementalSpec, PlaceWithVariables
from batchinfer.jobspec.table_keys import CatalogName, require_table_name
from batchinfer.jobspec.where import where_columns


class CsvSpec(Keys):
    """How the files of `format: csv` are written. Every column is text, as it stands in the file: `007` stays `007`.
    `input.cast` gives a column another type.
    """

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """The character between two fields. Example: `";"`, or `"\\t"` for a tab."""
    quote: str | None = Field(default='"', min_length=1, max_length=1)
    """The character around a field that holds delimiters or ends of lines; in the field it stands twice.

    null: no field is quoted, and every end of a line ends a row."""
    escape: str | None = Field(default=None, min_length=1, max_length=1)
    """The character that takes the meaning from the next one: `"\\\\"` for files of Spark and MySQL. null: none."""
    header: bool = True
    """Whether the first line of each file has the names of the columns. Without it, `columns` names them."""
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The names of the columns of files without a header, in order."""
    nulls: tuple[str, ...] = ("",)
    """Unquoted fields that mean null, as in `["", "NULL"]`. A quoted field is never null: `""` is an empty text."""
    encoding: str = "utf-8"
    """The encoding of the files, by Python's name, as `cp1252`, `latin-1` or `utf-16`."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            # The codecs that Python counts as encodings of text; `base64` and `rot13` are codecs as well.
            "".encode(name)
        except (LookupError, ValueError):
            raise ValueError(f"there is no encoding {name!r}: write utf-8, cp1252, latin-1, utf-16, ...") from None
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.header and self.columns is not None:
            raise ValueError("columns names what the header names: set header: false, or leave columns out")
        if not self.header and self.columns is None:
            raise ValueError("header: false needs the names of the columns: set columns")
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ValueError("columns names a column twice")
        marks = [mark for mark in (self.delimiter, self.quote, self.escape) if mark is not None]
        if len(set(marks)) < len(marks):
            raise ValueError("delimiter, quote and escape must be three different characters")
        for mark in marks:
            if mark in "\r\n" or not mark.isascii():
                raise ValueError(f"{mark!r} cannot be a delimiter, quote or escape: write one ASCII character")
        return self


class SampleSpec(Keys):
    """A random part of the rows that `input.where` selects."""

    rows: int = Field(ge=1)
    """How many rows to run; all of them if there are fewer. A sample of more rows holds that of fewer."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Another seed is another sample; the same seed over the same files is the same one."""


REQUEST_COLUMNS = ("custom_id", "method", "url", "body")
"""The keys of a line of `format: openai_batch`."""


class InputSpec(Keys):
    """Where the rows come from, and which of their columns stay with the results."""

    uri: PlaceWithVariables
    """The rows: a folder, a file or a glob, local or on `s3://`.

    Files are read in the natural order of their paths; see `ignore` for those that are left out. Folders named
    `key=value` become columns, unless the files have a column of that name. Links to folders are refused, and so are
    folders of Delta, Iceberg and Hudi tables, unless `format` says so. Relative paths start where the command runs. May
    hold the variables of `output.uri`, as in `s3://tickets/{{ run.date - 1 }}`.

    Of `format: delta` the folder of the table, of `format: iceberg` its name in the catalog, as `sales.tickets`."""
    format: Literal["parquet", "jsonl", "csv", "arrow", "delta", "iceberg", "openai_batch"] = "parquet"
    """The format of the files, or of the table.

    In a folder, `parquet` reads `.parquet`, `.parq` and `.pq`; `jsonl` reads `.jsonl`, `.ndjson` and `.json`, one
    object a line; `csv` reads `.csv` and `.tsv`. The last two also read these packed with gzip (`.gz`) or zstd
    (`.zst`). `arrow` reads `.arrow`, `.arrows`, `.ipc` and `.feather`: Arrow's IPC streams and files, as `save_to_disk`
    of Hugging Face's datasets writes them. A pattern in `uri` reads whatever it matches.

    `openai_batch` reads JSON lines of OpenAI's Batch API, `{custom_id, method, url, body}`: each line is a whole
    request with its own sampling, and the job has no `prompt` (it may have `prompt.chat_template`,
    `chat_template_kwargs` and `allow_special_tokens`). What a body leaves out is as `sampling` says; there,
    `temperature` is 1 by default, no answer ends for repeating itself, and `max_tokens` has no limit but the
    context. The results have the column `response`, the body of OpenAI's response as JSON text."""
    split: Text | None = Field(default=None, min_length=1)
    """The split to read of a dataset of Hugging Face, as `train`: a folder of `save_to_disk`, or a copy of a repository
    whose files are named as `data/train-00000-of-00002.parquet`. A folder with several splits needs one."""
    version: int | str | None = None
    """The version of a table to read. null: the latest when the run begins; a resume stays with it.

    Of Delta a number, or an instant as `2026-11-20T00:00:00Z`. Of Iceberg the id of a snapshot, or the name of a branch
    or a tag."""
    catalog: CatalogName | None = None
    """The catalog of an Iceberg table: its name, or `{name: ..., properties: {...}}`. null: the one named `default`."""
    models: tuple[str, ...] | None = Field(default=None, min_length=1)
    """With `format: openai_batch`: the names by which requests may call the model, as in `[gpt-4o-mini]`.

    A request for another model fails with `model_not_found`; responses have the first name. null: any name will do,
    and responses have `model.source`."""
    csv: CsvSpec = CsvSpec()
    """How CSV files are written: delimiter, quotes, header, nulls, encoding."""
    where: str | None = None
    """Run only the rows for which this is true: an expression of SQL (DuckDB's) over the columns of the input.

    Example: `"lang = 'de' AND length(body) > 20"`. Its columns are read even if the job uses them for nothing else, and
    have the types of `cast`. A row for which it is null is not selected. The rows are selected once, when the input is
    cut into shards. It reaches no file and no network; subqueries, and functions of the clock or of chance, are
    refused. null: all rows."""
    limit: int | None = Field(default=None, ge=1)
    """Run only so many rows: the first ones, in input order, that `where` selects. null: no limit.

    In an incremental job each run has the limit, and later runs do not come back to the rows beyond it."""
    sample: SampleSpec | None = None
    """Run only a random sample of the rows that `where` selects, in input order, as in `{rows: 200, seed: 7}`.

    Instead of `limit`. null: no sample."""
    id_column: str | None = None
    """The column that identifies a row; its values must be unique, and it is the first column of the results.

    It holds texts, numbers, dates, times or UUIDs: true and false, lists and objects tell no rows apart.

    null: the results have the column `row_number` instead, the row's position in the input, from 0."""
    columns: tuple[str, ...] = ()
    """Columns to copy into the results as they are, as in `[customer, received]`.

    None of them may have the name of a result column, such as `finish_reason`."""
    group_by: str | None = None
    """A column: neighbouring rows with the same value stay in one shard as far as they fit.

    Such rows can then share a prefix in the KV cache. The column holds texts or numbers. Nothing is sorted: `validate`
    and `plan` say if sorting the input by this column would bring more rows together. null: rows are not grouped."""
    ignore: tuple[str, ...] = ()
    """Files in the folder of `uri` that are no input: patterns of names, as in `["*.gzip", "README.md"]`.

    A pattern is compared with the path below `uri` and with each name on it. What every tool ignores is left out
    anyway: names that begin with `_` or `.`, `*.crc` and markers of folders. Any other file that the format does not
    read stops the job, so that no row is missing silently."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """What becomes of a file that cannot be read.

    `fail`: the job is refused, with the file's name. `skip`: the others are run, and the report lists the file with
    the reason; an incremental job tries it again in its next run."""
    on_bad_row: Literal["fail", "set_aside"] = "fail"
    """What becomes of a line of `jsonl` that cannot be read.

    Such a line is no JSON object, or holds a value that the job cannot read: no text, above 64 bits, not of `cast`.
    `fail`: the file is bad, see `on_bad_file`. `set_aside`: the row fails with
    `input_invalid`; its other values are kept, and its id is null if that cannot be read. In Parquet files a value
    that is no text always fails its row alone."""
    cast: dict[str, Literal["string", "int64", "double", "boolean", "date", "timestamp", "binary"]] = Field(
        default_factory=dict
    )
    """The type of columns that differ between files or lines, as in `{amount: string}`.

    Without it, types that fit together without loss become one, and others are refused. `timestamp` is microseconds
    in UTC; a time without a zone is taken as UTC. A value that does not fit the type is refused."""
    incremental: IncrementalSpec | None = None
    """Read only the files, or the partitions, that no earlier run of this job has read. null: all, every time.

    Of a table: the rows that were added since the version that the job's last run read."""

    @model_validator(mode="before")
    @classmethod
    def _batch_files_have_ids(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("format") != "openai_batch":
            return values
        return {"id_column": "custom_id", "on_bad_row": "set_aside", **values}

    @field_validator("columns")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(columns)) != len(columns):
            raise ValueError("names a column twice")
        return columns

    @field_validator("where")
    @classmethod
    def _expression(cls, where: str | None) -> str | None:
        if where is not None:
            where_columns(where)
        return where

    @model_validator(mode="after")
    def _rows_chosen_once(self) -> Self:
        if self.limit is not None and self.sample is not None:
            raise ValueError("limit and sample both say how many rows to run: leave one of the two out")
        if self.format == "iceberg":
            require_table_name("iceberg", self.uri)
        if self.catalog is not None and self.format != "iceberg":
            raise ValueError(f"catalog is for format: iceberg, and format is {self.format}: leave it out")
        if self.version is not None and not self.is_table:
            raise ValueError(f"version is for tables, and format is {self.format}: leave it out")
        if self.is_table and self.ignore:
            raise ValueError("ignore is for folders: a table says which files it has")
        if self.is_table and self.incremental is not None:
            if self.incremental.by == "partition":
                raise ValueError("incremental.by: partition is for folders: of a table, what was added since is read")
            if self.version is not None:
                raise ValueError("incremental reads up to the latest version of a table: leave version out")
            if self.on_bad_file == "skip":
                raise ValueError("on_bad_file: skip does not go with incremental reads of a table, which come once")
        if self.split is not None and (self.is_table or self.format == "openai_batch"):
            raise ValueError(f"split is for folders of datasets, and format is {self.format}: leave it out")
        if self.format != "csv" and self.csv != CsvSpec():
            raise ValueError(f"csv says how CSV files are written, and format is {self.format}: set format: csv")
        if self.format == "csv" and self.on_bad_row == "set_aside":
            raise ValueError("on_bad_row: set_aside is for jsonl; a CSV file with such a row is bad: set on_bad_file")
        return self

    @model_validator(mode="after")
    def _reads_batch_files_as_they_are(self) -> Self:
        if self.format != "openai_batch":
            if self.models is not None:
                raise ValueError("models are names that requests of format: openai_batch use: leave it out")
            return self
        if self.id_column != "custom_id":
            raise ValueError("the rows of format: openai_batch have the id custom_id: leave id_column out")
        if self.cast:
            raise ValueError("the keys of format: openai_batch have types of their own: leave cast out")
        return self

    @property
    def casts(self) -> dict[str, str]:
        """The types of columns that are not those of the files: `cast`, and those of a batch file."""
        return dict.fromkeys(REQUEST_COLUMNS, "string") if self.format == "openai_batch" else dict(self.cast)

    @property
    def sets_aside(self) -> bool:
        """Is a line that cannot be read a failed row of its own?"""
        return self.on_bad_row == "set_aside"

    @property
    def is_table(self) -> bool:
        """Are the rows those of a table of Delta or Iceberg?"""
        return self.format in ("delta", "iceberg")

    @property
    def is_parquet(self) -> bool:
        """Are the rows in Parquet files?"""
        return self.format == "parquet" or self.is_table

    @property
    def selects(self) -> bool:
        """May rows of the input be left out?"""
        return self.where is not None or self.limit is not None or self.sample is not None
