"""Where files live: list, read, create-if-absent, compare-and-swap. The only place that knows a store.

A commit needs one promise from a store: `create` makes the whole object or nothing, and of many
callers exactly one is told True. The local file system gives it by linking a synced temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from batchinfer.errors import OutputError, StorageError, UserError

TEMPORARY = ".writing-"
"""Prefix of files that are being written; one left behind by a crash is not part of any result."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a store. `tag` changes whenever the content does."""

    uri: str
    size: int
    tag: str


class Storage(Protocol):
    """What batchinfer asks of a store. All calls raise StorageError, naming the URI."""

    def list(self, uri: str) -> Iterator[Entry]:
        """Every object under `uri`, in order of its URI; nothing when there is none."""

    def names(self, uri: str) -> Sequence[str]:
        """What lies directly in the folder `uri`; nothing when there is none."""

    def stat(self, uri: str) -> Entry | None:
        """The object at `uri`, None when there is none."""

    def open(self, uri: str) -> BinaryIO:
        """A seekable reader of the object at `uri`."""

    def read(self, uri: str) -> bytes:
        """The whole object at `uri`."""

    def create(self, uri: str, data: bytes) -> bool:
        """Make the object unless there is one: True for exactly one of all callers, ever."""

    def replace(self, uri: str, data: bytes, tag: str) -> bool:
        """Swap the object's content if its tag is still `tag`; False if it has changed."""

    def put(self, uri: str, data: bytes) -> None:
        """Write the object, whole or not at all; the last writer wins. May be lost in a power cut."""

    def delete(self, uri: str) -> None:
        """Remove the object if it is there."""

    def remove_leftovers(self, uri: str) -> None:
        """Delete what writers that were killed left half-written under `uri`."""

    def require_writable(self, uri: str) -> None:
        """Raise OutputError unless objects can be made under the folder `uri`."""

    def lock(self, uri: str) -> contextlib.AbstractContextManager[None]:
        """Hold `uri` alone; raises OutputError if another process does. Ends with the process."""


def storage_for(uri: str) -> Storage:
    """The store that `uri` lives in."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise UserError(f"{uri}: {scheme}:// is not a store that this version reads or writes", "use a local path")
    return LocalStorage()


def local_path(uri: str) -> str:
    """`uri` as an absolute path without `file://`, links resolved: one place has one name."""
    return os.path.realpath(os.path.expanduser(uri.removeprefix("file://")))


def join(uri: str, *parts: str) -> str:
    """A URI below `uri`."""
    return "/".join((uri.rstrip("/"), *parts))


class LocalStorage:
    """The local file system, or one mounted there that has links and locks."""

    def list(self, uri: str) -> Iterator[Entry]:
        root = local_path(uri)
        if os.path.isfile(root):
            yield self._entry(root)
            return
        with _naming(uri):
            for folder, folders, files in os.walk(root, onerror=_raise):
                folders.sort()
                for name in sorted(files):
                    if not name.startswith(TEMPORARY):
                        with contextlib.suppress(FileNotFoundError):
                            yield self._entry(os.path.join(folder, name))

    def _entry(self, path: str) -> Entry:
        status = os.stat(path)
        return Entry(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}")

    def names(self, uri: str) -> Sequence[str]:
        with _naming(uri):
            try:
                return sorted(os.listdir(local_path(uri)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def stat(self, uri: str) -> Entry | None:
        path = local_path(uri)
        with _naming(uri):
            try:
                return self._entry(path)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open(self, uri: str) -> BinaryIO:
        with _naming(uri):
            return open(local_path(uri), "rb")

    def read(self, uri: str) -> bytes:
        with self.open(uri) as file, _naming(uri):
            return file.read()

    def create(self, uri: str, data: bytes) -> bool:
        path = local_path(uri)
        with _naming(uri), self._temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            _sync_folder(os.path.dirname(path))
            return True

    def replace(self, uri: str, data: bytes, tag: str) -> bool:
        path = local_path(uri)
        # The lock is on the folder: it holds off other replacers between the comparison and the rename.
        with _naming(uri), self._temporary(path, data) as temporary, _flock(os.path.dirname(path)):
            if self._entry(path).tag != tag:
                return False
            os.rename(temporary, path)
            _sync_folder(os.path.dirname(path))
            return True

    def put(self, uri: str, data: bytes) -> None:
        path = local_path(uri)
        with _naming(uri), self._temporary(path, data, sync=False) as temporary:
            os.rename(temporary, path)

    @contextlib.contextmanager
    def _temporary(self, path: str, data: bytes, sync: bool = True) -> Iterator[str]:
        """A file with `data` beside `path`; gone afterwards unless it was renamed."""
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def delete(self, uri: str) -> None:
        with _naming(uri), contextlib.suppress(FileNotFoundError):
            os.unlink(local_path(uri))

    def remove_leftovers(self, uri: str) -> None:
        with _naming(uri):
            for path in Path(local_path(uri)).rglob(TEMPORARY + "*"):
                if path.is_dir():  # the probe of require_writable
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)

    def require_writable(self, uri: str) -> None:
        path = local_path(uri)
        try:
            existing = path
            while not os.path.lexists(existing):
                existing = os.path.dirname(existing)
            if not os.path.isdir(existing):
                raise NotADirectoryError(errno.ENOTDIR, "is not a folder", existing)
            if not os.access(existing, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "no permission to write", existing)
            # Root passes every permission check: only a write tells about a read-only file system.
            probe = os.path.join(existing, f"{TEMPORARY}{uuid.uuid4().hex}")
            os.mkdir(probe)
            os.rmdir(probe)
        except OSError as error:
            raise OutputError(
                f"cannot write to {uri}: {error.strerror} ({error.filename})",
                "set output.uri to a folder that you may write to",
            ) from None

    @contextlib.contextmanager
    def lock(self, uri: str) -> Iterator[None]:
        path = local_path(uri)
        with _naming(uri):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 100).decode(errors="replace").strip() or "unknown"
                raise OutputError(
                    f"another batchinfer is writing to this output (process {holder})",
                    "wait for it to end, or stop it; then run the same command again",
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
            yield
        finally:
            os.close(handle)


@contextlib.contextmanager
def _flock(folder: str) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync_folder(folder: str) -> None:
    """Make a new name in `folder` survive a power cut, as the file's content already does."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextlib.contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Turn the system's error into a StorageError that names the URI and what to do."""
    try:
        yield
    except OSError as error:
        remedies = {
            errno.ENOSPC: "make room there, then run the same command again: committed shards are kept",
            errno.EACCES: "check the permissions there, then run the same command again",
            errno.ENOENT: "check that it still exists",
        }
        reason = error.strerror or str(error)
        remedy = remedies.get(error.errno or 0, "check that place, then run the same command again")
        raise StorageError(f"{uri}: {reason}", remedy) from error
