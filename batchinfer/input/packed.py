"""Text files, plain or packed with gzip or zstd: recognized by their first bytes, unpacked as they are read."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.formats import first_line

LONGEST_ROW = 2**26
"""Bytes of the longest row. A file of a few kilobytes may unpack to gigabytes without the end of a line: without a
limit it would fill the memory."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

_OTHER_FILES = (
    (b"PAR1", "a Parquet file", "set input.format: parquet"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2, or pack it with gzip or zstd"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it with unxz, or pack it with gzip or zstd"),
    (b"PK\x03\x04", "a zip archive", "unpack it, or pack each file with gzip or zstd"),
)
"""How files begin that hold no lines of text, what they are, and what to do."""


def another_format(begins: bytes) -> tuple[str, str] | None:
    """What a file is that begins so and is no text, and what to do; None if nothing is known of it."""
    return next(((what, remedy) for magic, what, remedy in _OTHER_FILES if begins.startswith(magic)), None)


def packing(file: BinaryIO) -> str | None:
    """How the bytes are compressed, by their beginning, whatever the file is called."""
    begins = file.read(4)
    file.seek(0)
    return "gzip" if begins.startswith(_GZIP) else "zstd" if begins == _ZSTD else None


def unpacked(file: BinaryIO) -> BinaryIO:
    """The file's bytes, unpacked while they are read."""
    how = packing(file)
    if how == "gzip":
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if how == "zstd":
        source = pa.PythonFile(cast("BinaryIO", _KeptOpen(file)), "r")
        return cast("BinaryIO", io.BufferedReader(pa.CompressedInputStream(source, "zstd")))
    return file


class _KeptOpen:
    """A file that stays open when Arrow's stream over it ends: it is read once more from its beginning."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """The owner of the file closes it."""


@contextlib.contextmanager
def unpacking(uri: str) -> Iterator[None]:
    """Turn what is wrong with packed bytes into an InputError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(
            f"{uri} cannot be unpacked: {first_line(error)}",
            "it is cut off or damaged: write it again, move it away, or set input.on_bad_file: skip",
        ) from None
