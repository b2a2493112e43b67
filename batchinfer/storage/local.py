"""The local file system: whole objects by linking and renaming synced temporary files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from batchinfer.errors import OutputError, StorageError
from batchinfer.storage.base import TEMPORARY, Entry, input_changed


def local_path(uri: str) -> str:
    """`uri` as an absolute path without `file://`, links resolved: one place has one name."""
    return os.path.realpath(os.path.expanduser(uri.removeprefix("file://")))


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

    def match(self, pattern: str) -> Iterator[Entry]:
        for path in glob.iglob(local_path(pattern), recursive=True):
            if os.path.isfile(path) and (entry := self.stat(path)):
                yield entry

    def names(self, uri: str) -> Sequence[str]:
        with _naming(uri):
            try:
                return sorted(os.listdir(local_path(uri)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def _entry(self, path: str, handle: int | None = None) -> Entry:
        status = os.stat(path if handle is None else handle)
        return Entry(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}")

    def stat(self, uri: str) -> Entry | None:
        path = local_path(uri)
        with _naming(uri):
            try:
                return self._entry(path)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open(self, uri: str, tag: str | None = None) -> BinaryIO:
        path = local_path(uri)
        with _naming(uri):
            try:
                file = open(path, "rb")  # noqa: SIM115 # the caller closes it
            except FileNotFoundError:
                if tag is None:
                    raise
                raise input_changed(uri, gone=True) from None
            if tag is not None and self._entry(path, file.fileno()).tag != tag:
                file.close()
                raise input_changed(uri, gone=False)
            return file

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
    def lock(self, uri: str) -> Iterator[Callable[[], None]]:
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
            yield _held
        finally:
            os.close(handle)


def _held() -> None:
    """The system takes a lock from nobody but a process that ends."""


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
