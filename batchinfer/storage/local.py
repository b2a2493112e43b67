"""The local file system: creates whole objects by linking and renaming synced temporary files.

On a mount without hard links, such as many of FUSE, SMB and FAT, a lock and a rename have the same guarantee.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """`uri` as an absolute path without `file://` and with links resolved, so that each place has one name."""
    return os.path.realpath(os.path.expanduser(uri.removeprefix("file://")))


def _written_path(uri: str) -> str:
    """The path to write or delete, with links in the folders above resolved.

    Raises StorageError if the path itself is a link: its target may belong to somebody else.
    """
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))))
    path = os.path.join(os.path.realpath(folder), name)
    if os.path.islink(path):
        raise StorageError(f"{uri} is a link, and links are not written through", "remove the link, then run again")
    return path


class LocalStorage:
    """See `Storage`. The local file system, or a mount with locks."""

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
            # Links to folders may make several paths to one file, which counts once. A link to a file counts as a file.
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

    def folders(self, uri: str) -> Iterator[str]:
        with _naming(uri):
            try:
                with os.scandir(local_path(uri)) as found:
                    yield from sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
            except (FileNotFoundError, NotADirectoryError):
                return

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
        with _naming(uri), self._temporary(path, (data,)) as temporary:
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
        # The lock excludes other writers between the comparison and the rename.
        with _naming(uri), self._temporary(path, (data,)) as temporary, _alone(os.path.dirname(path)):
            if self._entry(path).tag != tag:
                return False
            os.rename(temporary, path)
            _sync_folder(os.path.dirname(path))
            return True

    def put(self, uri: str, data: bytes) -> None:
        path = _written_path(uri)
        with _naming(uri), self._temporary(path, (data,), sync=False) as temporary:
            os.rename(temporary, path)

    def put_parts(self, uri: str, parts: Iterable[bytes]) -> None:
        path = _written_path(uri)
        with _naming(uri), self._temporary(path, parts, sync=False) as temporary:
            os.rename(temporary, path)

    @contextlib.contextmanager
    def _temporary(self, path: str, parts: Iterable[bytes], sync: bool = True) -> Iterator[str]:
        """A temporary file of `parts` beside `path`; deleted afterwards unless it was renamed."""
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, temporary_name())
        try:
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
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

    def require_writable(self, uri: str, key: str = "output.uri") -> None:
        path = local_path(uri)
        try:
            existing = path
            while not os.path.lexists(existing):
                existing = os.path.dirname(existing)
            if not os.path.isdir(existing):
                raise NotADirectoryError(errno.ENOTDIR, "is not a folder", existing)
            if not os.access(existing, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "no permission to write", existing)
            # Root passes every permission check, so only real writes show what the file system allows.
            probe = os.path.join(existing, temporary_name())
            os.mkdir(probe)
            try:
                self._prove(os.path.join(probe, PROBE), existing, key)
            finally:
                _remove_probe(probe)
        except OSError as error:
            raise OutputError(
                f"cannot write to {uri}: {error.strerror} ({error.filename})",
                f"set {key} to a folder that you may write to",
            ) from None

    def _prove(self, path: str, folder: str, key: str) -> None:
        """Try the operations that commits and locks need, on the file `path`. Raises OSError or OutputError."""
        try:
            made = self.create(path, b"1")
            kept = not self.create(path, b"2") and self.read(path) == b"1"
            tag = self._entry(path).tag
            swapped = self.replace(path, b"33", tag) and not self.replace(path, b"4", tag)
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StorageError as error:
            # Raise the system's error, so that the caller can show its reason.
            raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None
        if not (made and kept and swapped and self.read(path) == b"33"):
            raise OutputError(
                f"cannot write to {folder}: that file system does not support the locks that keep two writers apart",
                f"set {key} to a local disk, a network file system with locks, or s3://bucket/...",
            )

    @contextlib.contextmanager
    def lock(self, uri: str) -> Iterator[Callable[[], None]]:
        path = _written_path(uri)
        with _naming(uri):
            me = f"{os.getpid()} on {os.uname().nodename}\n".encode()
            if not os.path.lexists(path):
                # Created with its content, so that an empty file at this path is never a lock.
                self.create(path, me)
            # O_NONBLOCK: opening a pipe would wait for its other end.
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not LOCK_CONTENT.fullmatch(os.pread(handle, 1000, 0)):
                raise foreign_lock(uri)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 100, 0).decode(errors="replace").strip()
                raise locked_output(holder) from None
            # Write before truncating: the file is then never empty, even if the process is killed.
            os.pwrite(handle, me, 0)
            os.ftruncate(handle, len(me))
            yield _held
        finally:
            os.close(handle)


LOCK_CONTENT = re.compile(rb"\d+ on [^\n]+\n.*", re.DOTALL)
"""The content of a lock: the holder's process and machine, and possibly the rest of a longer name before."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a disk, a quota, and a limit on the size of files (`ulimit -f`) that a write passes."""

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""The errors of file systems without hard links, or with no more links for this file."""

PROBE = "probe"
WAIT_SECONDS = 60.0
"""Seconds to wait for another writer, whose replace takes milliseconds: after that it hangs or is stopped. Shorter
fails on a slow network mount."""

_LOCK_NAME = fixed_temporary_name("one writer at a time")


def _is_plain(path: str) -> bool:
    """Is `path` a folder or a plain file? Also true if the path has just been deleted."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _held() -> None:
    """Does nothing: the system releases a lock only when its process ends, so the lock is never lost."""


def _rename_if_absent(temporary: str, path: str) -> bool:
    """Rename under a lock, on a file system without links. False if there is a file at `path`."""
    with _alone(os.path.dirname(path)):
        if os.path.lexists(path):
            return False
        os.rename(temporary, path)
        return True


def _remove_probe(folder: str) -> None:
    """Remove the folder that `require_writable` made, with the files in it."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name == PROBE or is_temporary(name):
                os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Hold the lock of `folder`, which excludes other processes here. Raises OSError after WAIT_SECONDS.

    The lock is on a file, because NFS cannot lock a folder.
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
                        # Deleted while locked: a process that waits with this file open then sees that it is gone.
                        os.unlink(path)
                    return
        finally:
            os.close(handle)
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"another process has held {path} for {WAIT_SECONDS:.0f} s", folder)
        time.sleep(0.005)


def _is_at(handle: int, path: str) -> bool:
    """Is the open file still the file at `path`?"""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _sync_folder(folder: str) -> None:
    """Sync the folder, so that a new name in it survives a power cut. The file's content was synced before."""
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
    """Turn the system's error into a StorageError with the URI and a remedy."""
    try:
        yield
    except OSError as error:
        remedies = {
            **dict.fromkeys(FULL, "make room there, then run the same command again: committed shards are kept"),
            errno.EACCES: "check the permissions there, then run the same command again",
            errno.ENOENT: "check that it still exists",
            errno.ETIMEDOUT: "end that process, then run the same command again: committed shards are kept",
            errno.ENOLCK: "set output.uri to a file system with locks, or to s3://bucket/...",
        }
        reason = error.strerror or str(error)
        remedy = remedies.get(error.errno or 0, "check that place, then run the same command again")
        raise StorageError(f"{uri}: {reason}", remedy) from error
