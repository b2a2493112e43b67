"""Recognises the files of a run folder that batchinfer wrote. No other file is ever deleted or overwritten.

A file is recognised by its name and by a mark in its content, never by its folder alone. Before a run changes
anything, `require_own` refuses a folder with other files. Each overwrite and each delete checks again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import OutputError, StorageError
from batchinfer.input.gather import GROUPS_FOOTER
from batchinfer.input.manifest import FOOTER as MANIFEST_FOOTER
from batchinfer.rundir.commit import FOOTER
from batchinfer.rundir.paths import Layout
from batchinfer.storage import REQUESTS_AT_ONCE, Entry, delete_many, join

SPEC_MARK = b"# Written by batchinfer"
LOG_MARK = b"# The log of a batchinfer run"
EVENTS_MARK = b'{"written_by": "batchinfer", "file": "events"'
PAGE_MARK = b'<meta name="generator" content="batchinfer '
BATCH_LINE = "batch_req_"
"""How the id of each line of a batch file of results begins."""
STOP_MARK = b"batchinfer: no shard starts any more\n"

_LARGEST_JSON = 256 * 2**20
"""Bytes. A larger JSON file is refused unread, to save memory; the largest plan or report is far smaller."""

_WHERE_PAGE_MARK = 1000
"""Bytes of a page that hold its mark."""

_NAMED = 3

_Check = Callable[[BinaryIO], bool]


def _begins(mark: bytes) -> _Check:
    return lambda file: file.read(len(mark)) == mark


def _parquet_footer(key: bytes) -> _Check:
    return lambda file: key in (pq.read_metadata(file).metadata or {})


def _parquet_columns(*names: str) -> _Check:
    return lambda file: set(names) <= set(pq.read_schema(file).names)


def _json(*keys: str) -> _Check:
    def check(file: BinaryIO) -> bool:
        text = file.read(_LARGEST_JSON + 1)
        found = json.loads(text) if len(text) <= _LARGEST_JSON else None
        return isinstance(found, dict) and set(keys) <= found.keys()

    return check


def _page(file: BinaryIO) -> bool:
    return PAGE_MARK in file.read(_WHERE_PAGE_MARK)


def _lock(file: BinaryIO) -> bool:
    # A lock on a disk names a process; a lock in a store is a lease.
    text = file.read(10_000)
    return bool(re.match(rb"\d+ on ", text)) or "lease" in json.loads(text)


_KINDS: dict[str, _Check] = {
    r"data/shard-\d{6,}\.parquet": _parquet_footer(FOOTER),
    r"accounting/shard-\d{6,}(\.retry-\d+)?\.parquet": _parquet_columns("run_id", "shard_id", "replica_id", "meter"),
    r"_run/manifest\.parquet": _parquet_footer(MANIFEST_FOOTER),
    r"_run/groups/part-\d{4,}\.parquet": _parquet_footer(GROUPS_FOOTER),
    r"_run/spec\.yaml": _begins(SPEC_MARK),
    r"_run/plan\.json": _json("accelerator", "max_replicas", "price_per_gpu_hour", "price_source"),
    r"_run/plans/session-\d{4,}\.json": _json("session", "command", "plan"),
    r"_run/report\.json": _json("run_id", "job_name", "rows_in_input", "cost_usd"),
    r"_run/report\.html": _page,
    r"_run/retry\.json": _json("run_id", "shards"),
    r"_run/published\.json": _json("run_id", "tables"),
    r"_run/skipped\.json": _json("job", "tick", "because"),
    r"_run/replicas\.parquet": _parquet_columns("replica_id", "run_id", "wasted_seconds", "killed"),
    r"_run/replicas/[0-9a-f]{12}\.json": _json("replica_id", "run_id", "meter", "shards_in_flight"),
    r"_run/events/[0-9a-f]{12}\.jsonl": _begins(EVENTS_MARK),
    r"_run/lock": _lock,
    r"_run/run\.log": _begins(LOG_MARK),
    r"batch/(output|errors)\.jsonl": _begins(f'{{"id":"{BATCH_LINE}'.encode()),
    r"_run/stop": _begins(STOP_MARK),
}
"""By path below the output: the check that batchinfer wrote the file."""

_LASTING = r"(data|accounting)/.*"
"""Two files for each shard, too many to read before each session. They are read if the shard has only one of the two,
and before a delete."""


def require_own(layout: Layout, thorough: bool = False) -> None:
    """Raise OutputError if the run's folders hold a file that batchinfer did not write. Changes nothing.

    Checks every name and reads every file, except the results and the accounting of shards that have both. `thorough`
    reads these too.
    """
    _refuse(layout, _foreign(layout, _entries(layout), thorough))


def overwrite(layout: Layout, uri: str, data: bytes) -> None:
    """Write the run's file at `uri`. Raises OutputError if it exists and batchinfer did not write it."""
    _require_own_file(layout, uri)
    layout.storage.put(uri, data)


def overwrite_parts(layout: Layout, uri: str, parts: Iterable[bytes]) -> None:
    """As `overwrite`, for a file that need not fit into memory."""
    _require_own_file(layout, uri)
    layout.storage.put_parts(uri, parts)


def remove(layout: Layout, uri: str) -> None:
    """Delete the run's file at `uri` if it exists. Raises OutputError if batchinfer did not write it."""
    _require_own_file(layout, uri)
    layout.storage.delete(uri)


def clear(layout: Layout, kept: Iterable[str]) -> None:
    """Delete every file of the run except the URIs `kept`.

    All files are read and checked first: OutputError is raised before anything is deleted.
    """
    entries = _entries(layout)
    _refuse(layout, _foreign(layout, entries, thorough=True))
    spared = set(kept)
    delete_many(layout.storage, [entry.uri for entry in entries if entry.uri not in spared])


def remove_leftovers(layout: Layout) -> None:
    """Delete the temporary files of killed writers in the folders of the run."""
    for folder in (
        *(layout.root, *layout.folders),
        *(layout.journals_folder, layout.events_folder, layout.plans_folder, layout.groups_folder),
    ):
        layout.storage.remove_leftovers(folder)


def _entries(layout: Layout) -> list[Entry]:
    storage = layout.storage
    # Checked before the listing, which fails at a link that leads to itself.
    _refuse(layout, sorted(uri for folder in layout.folders for uri in storage.irregular(folder)))
    found = [entry for folder in layout.folders for entry in storage.list(folder)]
    listed = {entry.uri for entry in found}
    # A folder with the name of a run's file is not listed, but no write can replace it.
    names = [join(folder, name.rstrip("/")) for folder in layout.folders for name in storage.names(folder)]
    hidden = [uri for uri in names if uri not in listed and _check_of(_below(layout, uri)) is not None]
    for entry in map(storage.stat, hidden):
        if entry is not None and not _is_own(layout, entry):
            _refuse(layout, [entry.uri])
    return found


def _require_own_file(layout: Layout, uri: str) -> None:
    entry = layout.storage.stat(uri)
    if entry is None:
        _refuse(layout, layout.storage.irregular(uri))
    else:
        _refuse(layout, _foreign(layout, [entry], thorough=True))


def _foreign(layout: Layout, entries: Iterable[Entry], thorough: bool) -> Iterator[str]:
    """The URIs of files that batchinfer did not write. `thorough`: read every file."""
    storage = layout.storage
    odd = {uri for folder in layout.folders for uri in storage.irregular(folder)}
    yield from sorted(odd)
    regular = [entry for entry in entries if entry.uri not in odd and _lies_in(entry.uri, odd) is None]
    with_data, accounted = (
        {_shard_of(layout, entry.uri) for entry in regular if entry.uri.startswith(join(folder, ""))}
        for folder in (layout.data_folder, layout.accounting_folder)
    )
    whole = with_data & accounted
    looked_into = []
    for entry in regular:
        path = _below(layout, entry.uri)
        if _check_of(path) is None:
            yield entry.uri
            continue
        half = _shard_of(layout, entry.uri) not in whole
        if thorough or half or not re.fullmatch(_LASTING, path):
            looked_into.append(entry)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for entry, own in zip(looked_into, pool.map(lambda e: _is_own(layout, e), looked_into), strict=True):
            if not own:
                yield entry.uri


def _lies_in(uri: str, folders: set[str]) -> str | None:
    return next((folder for folder in folders if uri.startswith(join(folder, ""))), None)


def _below(layout: Layout, uri: str) -> str:
    return uri.removeprefix(join(layout.root, ""))


def _shard_of(layout: Layout, uri: str) -> str | None:
    """The shard of a results or accounting file, by its name; None for other files."""
    match = re.match(r"(?:data|accounting)/(shard-\d+)\.", _below(layout, uri))
    return match[1] if match else None


def _check_of(path: str) -> _Check | None:
    return next((check for pattern, check in _KINDS.items() if re.fullmatch(pattern, path)), None)


def _is_own(layout: Layout, entry: Entry) -> bool:
    check = _check_of(_below(layout, entry.uri))
    try:
        with layout.storage.open(entry.uri) as file:
            return check is not None and check(file)
    except (pa.ArrowException, OSError, ValueError, RecursionError):
        # The content is not that of a file with this name.
        return False
    except StorageError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            return False
        # Another process of this run may have deleted the file since it was listed.
        if layout.storage.stat(entry.uri) is None:
            return True
        raise


def _refuse(layout: Layout, foreign: Iterable[str]) -> None:
    found = list(foreign)
    if not found:
        return
    shown = "\n".join(f"  {uri}" for uri in found[:_NAMED])
    more = f"\n  and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    raise OutputError(
        f"{layout.root} holds files where a run writes that batchinfer did not write, or that are damaged:\n"
        f"{shown}{more}",
        "choose an output.uri of its own, or move these files away; nothing was changed",
    )
