"""A model folder in a store, brought to this machine once for all replicas on it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from batchinfer.errors import InputError, ModelError, StorageError
from batchinfer.events import tell
from batchinfer.storage import REQUESTS_AT_ONCE, Entry, Stores, storage_for

PIECE_BYTES = 64 * 2**20
WAIT_TOLD_SECONDS = 30.0

STALLED_SECONDS = 3600.0
"""Another process's download that has not grown for so long hangs. Longer than a store's outage is waited for, and
than the checksums of the largest models take."""

_LIST = ".batchinfer.json"


def is_remote(source: str) -> bool:
    """Does `model.source` name a folder in a store?"""
    return source.startswith("s3://")


def cache_folder() -> Path:
    """Where models are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "batchinfer", "models")


def local_model(uri: str, stores: Stores) -> str:
    """The folder on this machine that holds the model at `uri`, downloaded now if it is not there yet.

    One process of the machine downloads, others wait for it. A copy that is there is used if every file has
    the size and the checksum that were noted when it came. Raises ModelError, StorageError.
    """
    entries = list(storage_for(uri, stores).list(uri))
    if not entries:
        raise ModelError(f"there is no model at {uri}", "check model.source")
    files = {_name(uri, entry): [entry.size, entry.tag] for entry in entries}
    # A model that changed under its name is another model: its name here is what it holds.
    version = hashlib.sha256(json.dumps([uri, sorted(files.items())]).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{uri.rstrip('/').rsplit('/', 1)[-1]}-{version}"
    with _naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(folder.name + ".partial")
        with _alone(folder, partial):
            if not _is_whole(folder, files):
                for left in (folder, partial):
                    shutil.rmtree(left, ignore_errors=True)
                _download(uri, entries, partial, stores)
                partial.rename(folder)
    return str(folder)


@contextlib.contextmanager
def _alone(folder: Path, partial: Path) -> Iterator[None]:
    """Wait while another process of this machine downloads the model, for as long as its download grows."""
    lock, began, moved_at, seen = FileLock(f"{folder}.lock"), time.monotonic(), time.monotonic(), 0
    while True:
        try:
            lock.acquire(timeout=WAIT_TOLD_SECONDS)
            break
        except Timeout:
            now, last = time.monotonic(), _last_written(partial)
            tell("lock waited for", uri=f"{folder}.lock", holder="another download", seconds=round(now - began))
            if last != seen:
                seen, moved_at = last, now
            elif now - moved_at > STALLED_SECONDS:
                raise StorageError(
                    f"another process holds {folder}.lock, and has downloaded nothing for {now - moved_at:.0f} s",
                    "end that process, then run the same command again",
                ) from None
    try:
        yield
    finally:
        lock.release()


def _last_written(folder: Path) -> int:
    """When a file below `folder` was written last (ns), 0 where there is none."""
    newest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime_ns)
    return newest


def _name(uri: str, entry: Entry) -> str:
    name = entry.uri.removeprefix(uri.rstrip("/") + "/")
    if name == entry.uri or ".." in name.split("/") or name.startswith("/"):
        raise ModelError(f"{entry.uri} cannot be a file of a model folder", "point model.source at the model's folder")
    return name


def _download(uri: str, entries: list[Entry], folder: Path, stores: Stores) -> None:
    pieces: list[tuple[Entry, Path, int]] = []
    for entry in entries:
        path = folder / _name(uri, entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(entry.size)
        pieces.extend((entry, path, offset) for offset in range(0, entry.size, PIECE_BYTES))

    def fetch(piece: tuple[Entry, Path, int]) -> None:
        entry, path, offset = piece
        wanted = min(PIECE_BYTES, entry.size - offset)
        with storage_for(uri, stores).open(entry.uri, entry.tag) as source, path.open("r+b") as target:
            source.seek(offset)
            target.seek(offset)
            data = source.read(wanted)
            if len(data) != wanted:
                raise StorageError(f"{entry.uri} broke off", "run the same command again")
            target.write(data)

    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        for _ in pool.map(fetch, pieces):
            pass
    except InputError as error:
        raise ModelError(f"{uri} was changed while it was downloaded", "run again when it is complete") from error
    finally:
        pool.shutdown(cancel_futures=True)
    listed = {_name(uri, entry): [entry.size, entry.tag, *_checksum(folder / _name(uri, entry))] for entry in entries}
    (folder / _LIST).write_text(json.dumps(listed))


def _checksum(path: Path) -> tuple[str, int]:
    """SHA-256, and when the file was last written (ns)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_mtime_ns


def _is_whole(folder: Path, files: dict[str, list[Any]]) -> bool:
    """Is every file as it came? One that was not written since is not read again."""
    try:
        listed = json.loads((folder / _LIST).read_text())
    except (OSError, ValueError):
        return False
    if {name: noted[:2] for name, noted in listed.items()} != files:
        return False
    for name, (size, _, digest, written) in listed.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return False
        if path.stat().st_mtime_ns != written and _checksum(path)[0] != digest:
            return False
    return True


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the model cannot be kept at {folder}: {error.strerror or error}",
            "make room there, or set XDG_CACHE_HOME to a larger disk; then run the same command again",
        ) from error
