"""The local file system: whole objects by linking and renaming synced temporary files.

A mount without hard links, as many of FUSE, SMB and FAT, gets the same promise from a lock and a rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from batchinfer.errors import InputError, OutputError, StorageError
from batchinfer.storage.base import (
    Entry,
    fixed_temporary_name,
    foreign_lock,
    input_changed,
    is_temporary,
    locked_output,
    temporary_name,
)


def local_path(uri: str) -> str:
    """`uri` as an absolute path without `file://`, links resolved: one place has one name."""
    return os.path.realpath(os.path.expanduser(uri.removeprefix("file://")))


def _written_path(uri: str) -> str:
    """The path to write or delete: links in the folders above are resolved, one at the name itself is not.

    Raises StorageError for such a link: what it leads to belongs to somebody else.
    """
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))))
    path = os.path.join(os.path.realpath(folder), name)
    if os.path.islink(path):
        raise StorageError(f"{uri} is a link, and links are not written through", "remove the link, then run again")
    return path


class LocalStorage:
    """The local file system, or one mounted there that has links and locks."""

    def list(self, uri: str) -> Iterator[Entry]:
        root = local_path(uri)
        if os.path.isfile(root):
            yield self._entry(root)
            return
        with _naming(uri):
            for folder, folders, files in os.walk(root, onerror=_raise):
                folders[:] = sorted(name for name in folders if not is_temporary(name))
                for name in sorted(files):
                    if not is_temporary(name):
                        with contextlib.suppress(FileNotFoundError):
                            yield self._entry(os.path.join(folder, name))

    def match(self, pattern: str) -> Iterator[Entry]:
        seen: set[tuple[str, str]] = set()
        for path in glob.iglob(local_path(pattern), recursive=True):
            # Links to folders may lead to one file by several ways; a link to a file is a file of its own name.
            place = (os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            if place not in seen and os.path.isfile(path):
                seen.add(place)
                with contextlib.suppress(FileNotFoundError), _naming(path):
                    yield self._entry(path)
            elif os.path.islink(path) and not os.path.exists(path):
                raise InputError(
                    f"{path} is a link to a file that does not exist", "restore that file, or remove the link"
                )

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
        path = _written_path(uri)
        with _naming(uri), self._temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                if not _rename_if_absent(temporary, path):
                    return False
            _sync_folder(os.path.dirname(path))
            return True

    def replace(self, uri: str, data: bytes, tag: str) -> bool:
        path = _written_path(uri)
        # The lock holds off other replacers between the comparison and the rename.
        with _naming(uri), self._temporary(path, data) as temporary, _alone(os.path.dirname(path)):
            if self._entry(path).tag != tag:
                return False
            os.rename(temporary, path)
            _sync_folder(os.path.dirname(path))
            return True

    def put(self, uri: str, data: bytes) -> None:
        path = _written_path(uri)
        with _naming(uri), self._temporary(path, data, sync=False) as temporary:
            os.rename(temporary, path)

    @contextlib.contextmanager
    def _temporary(self, path: str, data: bytes, sync: bool = True) -> Iterator[str]:
        """A file with `data` beside `path`; gone afterwards unless it was renamed."""
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, temporary_name())
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
            os.unlink(_written_path(uri))

    def irregular(self, uri: str) -> Iterator[str]:
        path = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
        with _naming(uri):
            if os.path.lexists(path) and not _is_plain(path):
                yield path
                return
            for folder, folders, files in os.walk(path, onerror=_raise):
                for name in (*folders, *files):
                    if not _is_plain(os.path.join(folder, name)):
                        yield os.path.join(folder, name)

    def remove_leftovers(self, uri: str) -> None:
        with _naming(uri):
            for name in filter(is_temporary, self.names(uri)):
                path = os.path.join(local_path(uri), name)
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISDIR(os.lstat(path).st_mode):
                        _remove_probe(path)
                    else:
                        os.unlink(path)

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
            # Root passes every permission check: only writes tell what the file system does.
            probe = os.path.join(existing, temporary_name())
            os.mkdir(probe)
            try:
                self._prove(os.path.join(probe, PROBE), existing)
            finally:
                _remove_probe(probe)
        except OSError as error:
            raise OutputError(
                f"cannot write to {uri}: {error.strerror} ({error.filename})",
                "set output.uri to a folder that you may write to",
            ) from None

    def _prove(self, path: str, folder: str) -> None:
        """Do on a file of our own what commits and locks rest on. Raises OSError or OutputError."""
        try:
            made = self.create(path, b"1")
            kept = not self.create(path, b"2") and self.read(path) == b"1"
            tag = self._entry(path).tag
            swapped = self.replace(path, b"33", tag) and not self.replace(path, b"4", tag)
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StorageError as error:
            # As the system said it.
            raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None
        if not (made and kept and swapped and self.read(path) == b"33"):
            raise OutputError(
                f"cannot write to {folder}: the file system there does not keep two writers apart",
                "set output.uri to a local disk, a network file system with locks, or s3://bucket/...",
            )

    @contextlib.contextmanager
    def lock(self, uri: str) -> Iterator[Callable[[], None]]:
        path = _written_path(uri)
        with _naming(uri):
            me = f"{os.getpid()} on {os.uname().nodename}\n".encode()
            if not os.path.lexists(path):
                # Whole from the beginning: an empty file here is never a lock of ours.
                self.create(path, me)
            # A pipe would wait for its other end.
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not LOCK_CONTENT.fullmatch(os.pread(handle, 1000, 0)):
                raise foreign_lock(uri)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 100, 0).decode(errors="replace").strip()
                raise locked_output(holder) from None
            # In this order the file is never empty, whenever the process is killed.
            os.pwrite(handle, me, 0)
            os.ftruncate(handle, len(me))
            yield _held
        finally:
            os.close(handle)


LOCK_CONTENT = re.compile(rb"\d+ on [^\n]+\n.*", re.DOTALL)
"""What a lock holds: its holder's process and machine; the rest of a longer name while it is replaced."""

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems say that have no hard links, or no room for one more on this file."""

PROBE = "probe"
WAIT_SECONDS = 60.0
"""A swap of a file takes milliseconds. Who waits longer waits for a process that hangs or is stopped."""

_LOCK_NAME = fixed_temporary_name("one writer at a time")


def _is_plain(path: str) -> bool:
    """Is `path` a folder or a file of its own? One that has just gone is."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _held() -> None:
    """The system takes a lock from nobody but a process that ends."""


def _rename_if_absent(temporary: str, path: str) -> bool:
    """What a link does where the file system has none. False if there is a file at `path`."""
    with _alone(os.path.dirname(path)):
        if os.path.lexists(path):
            return False
        os.rename(temporary, path)
        return True


def _remove_probe(folder: str) -> None:
    """Remove what `require_writable` made, with the file in it."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name == PROBE or is_temporary(name):
                os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Hold every other process that asks for the same off `folder`, for a moment. Raises OSError after WAIT_SECONDS.

    The lock is on a file, since NFS locks no folder.
    """
    path = os.path.join(folder, _LOCK_NAME)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(handle, path):
                    try:
                        yield
                    finally:
                        # Before the lock ends: whoever waits with this file open sees that it is gone.
                        os.unlink(path)
                    return
        finally:
            os.close(handle)
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"another process has held {path} for {WAIT_SECONDS:.0f} s", folder)
        time.sleep(0.005)


def _is_at(handle: int, path: str) -> bool:
    """Is the open file still the one at `path`?"""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


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
            errno.ETIMEDOUT: "end that process, then run the same command again: committed shards are kept",
            errno.ENOLCK: "set output.uri to a file system with locks, or to s3://bucket/...",
        }
        reason = error.strerror or str(error)
        remedy = remedies.get(error.errno or 0, "check that place, then run the same command again")
        raise StorageError(f"{uri}: {reason}", remedy) from error
