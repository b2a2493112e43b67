"""Stores of files: list, read, create if absent, compare and swap. Only this package knows how a store works.

A commit needs one guarantee of a store: `create` makes the whole object or nothing, and returns True to exactly one of
all callers. On the local file system a link to a synced temporary file guarantees it, on S3 a conditional write.
"""

from __future__ import annotations

import re

from batchinfer.errors import UserError
from batchinfer.storage.access import Access, access_of
from batchinfer.storage.base import (
    REQUESTS_AHEAD,
    REQUESTS_AT_ONCE,
    Entry,
    Storage,
    delete_many,
    input_changed,
    is_temporary,
    join,
    read_many,
    temporary_name,
)
from batchinfer.storage.local import LocalStorage, local_path
from batchinfer.storage.patience import impatient
from batchinfer.storage.prefixes import Stores, options_for

__all__ = [
    "REQUESTS_AHEAD",
    "REQUESTS_AT_ONCE",
    "Access",
    "Entry",
    "LocalStorage",
    "Storage",
    "Stores",
    "access_of",
    "delete_many",
    "impatient",
    "input_changed",
    "is_temporary",
    "join",
    "local_path",
    "normal_uri",
    "read_many",
    "storage_for",
    "temporary_name",
]


def storage_for(uri: str, stores: Stores | None = None) -> Storage:
    """The store of `uri`, with the options of the longest matching prefix in `stores`. Raises UserError."""
    scheme, separator, _ = uri.partition("://")
    if odd := re.match(r"file:/(?!/)|file://localhost/", uri):
        # Spark and Hadoop print paths as file:/data, which would be a relative path here, in a folder named `file:`.
        raise UserError(f"{uri}: the URI of a file is written with three slashes", f"write /{uri[odd.end() :]}")
    if not separator or scheme == "file":
        return LocalStorage()
    if scheme != "s3":
        remedy = f"write s3://{uri.partition('://')[2]}" if scheme in ("s3a", "s3n") else "use s3:// or a local path"
        raise UserError(f"{uri}: {scheme}:// is not a store that this version reads or writes", remedy)
    # Imported here because boto3 is slow to import, and a local run never needs it.
    from batchinfer.storage.s3 import S3Storage

    return S3Storage(options_for(uri, stores))


def normal_uri(uri: str) -> str:
    """The canonical name of a place: an absolute path, or an s3:// URI without a slash at its end."""
    if "://" in uri and not uri.startswith("file://"):
        return uri.rstrip("/")
    return local_path(uri)
