"""Downloads a model folder from a store, once for all replicas on this machine."""

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
"""After so many seconds without progress, another process's download counts as hung. Shorter would give up during a
store's outage, which is retried, or during the checksums of the largest models."""

_LIST = ".batchinfer.json"


def is_remote(source: str) -> bool:
    """Is `model.source` a folder in a store?"""
    return source.startswith("s3://")


def cache_folder() -> Path:
    """The folder for downloaded models: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "batchinfer", "models")


def local_model(uri: str, stores: Stores) -> str:
    """The folder on this machine that holds the model at `uri`; downloads the model if there is no intact copy.

    One process of the machine downloads, and the others wait. A copy is intact if every file has the size and the
    checksum that were recorded after the download. Raises ModelError, StorageError.
    """
    entries = list(storage_for(uri, stores).list(uri))
    if not entries:
        raise ModelError(f"there is no model at {uri}", "check model.source")
    files = {_name(uri, entry): [entry.size, entry.tag] for entry in entries}
    # The folder's name includes a hash of the files, so a model that changed at its URI is downloaded again.
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
    """Hold the model's lock; waits for another process's download as long as that download makes progress."""
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
    """The time of the last write below `folder` (ns since 1970); 0 without files."""
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
    """The file's SHA-256, and the time of its last write (ns since 1970)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_mtime_ns


def _is_whole(folder: Path, files: dict[str, list[Any]]) -> bool:
    """Is every file as it was downloaded? A file is read again only if it was written since."""
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
