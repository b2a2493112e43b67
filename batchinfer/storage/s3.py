"""S3, and stores that speak its language, through boto3.

A conditional write whose answer is lost is sent again, and then finds its own object in the way. So every
write carries a token of its own in the object's metadata: what is there under that token is this very write.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import io
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from botocore.exceptions import BotoCoreError, ClientError

from batchinfer.errors import OutputError, StorageError, StoreRefused
from batchinfer.jobspec import StoreSpec
from batchinfer.storage.base import Entry, input_changed, is_temporary, join, temporary_name
from batchinfer.storage.lease import Lease, Seen
from batchinfer.storage.ranged import RangedReader
from batchinfer.storage.s3_client import client_for, naming, split, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

LARGEST_BYTES = 5 * 2**30
"""What S3 takes in one request. Objects are never sent in parts: many stores that honour a condition on PutObject
ignore it on CompleteMultipartUpload, and a killed writer would leave parts that are paid for."""

BUFFER_BYTES = 64 * 1024
KEYS_A_PAGE = 1000
TOKEN = "batchinfer-write"
CONFLICT_ATTEMPTS = 10


class S3Storage:
    """See `Storage`. Every call is tried `options.max_attempts` times, by botocore."""

    def __init__(self, options: StoreSpec) -> None:
        self.options = options
        self._payer: dict[str, Any] = {"RequestPayer": "requester"} if options.request_payer else {}

    @property
    def _client(self) -> S3Client:
        # Not kept here: a storage travels to Ray's workers, a client does not.
        return client_for(self.options)

    def _naming(self, uri: str) -> contextlib.AbstractContextManager[None]:
        return naming(uri, self._client.meta.endpoint_url)

    def list(self, uri: str) -> Iterator[Entry]:
        bucket, key = split(uri.rstrip("/"))
        # Some tools mark a folder with an empty object of its name.
        if key and (entry := self.stat(uri)) and (entry.size or not self.names(uri)):
            yield entry
            return
        yield from self._list(bucket, f"{key}/" if key else "", uri)

    def _list(self, bucket: str, prefix: str, uri: str) -> Iterator[Entry]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": KEYS_A_PAGE}, **self._payer
        )
        with self._naming(uri):
            for page in pages:
                for found in page.get("Contents", []):
                    key = found["Key"]
                    # A key with a slash at its end is how some tools mark a folder.
                    if not key.endswith("/") and not is_temporary(key.rsplit("/", 1)[-1]):
                        yield Entry(f"s3://{bucket}/{key}", found["Size"], found["ETag"].strip('"'))

    def match(self, pattern: str) -> Iterator[Entry]:
        bucket, key_pattern = split(pattern)
        fixed = re.split(r"[*?\[]", key_pattern, maxsplit=1)[0]
        wanted = key_pattern.split("/")
        for entry in self._list(bucket, fixed, pattern):
            if _fits(split(entry.uri)[1].split("/"), wanted):
                yield entry

    def names(self, uri: str) -> Sequence[str]:
        bucket, key = split(uri.rstrip("/"))
        prefix = f"{key}/" if key else ""
        with self._naming(uri):
            page = self._client.list_objects_v2(
                Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=KEYS_A_PAGE, **self._payer
            )
        keys = [found["Prefix"].rstrip("/") for found in page.get("CommonPrefixes", [])]
        keys += [found["Key"] for found in page.get("Contents", []) if found["Key"] != prefix]
        return sorted(key.removeprefix(prefix) for key in keys)

    def stat(self, uri: str) -> Entry | None:
        head = self._head(uri)
        return None if head is None else Entry(uri, head["ContentLength"], head["ETag"].strip('"'))

    def _head(self, uri: str) -> Any | None:
        bucket, key = split(uri)
        if not key:
            # A bucket is no object.
            return None
        with self._naming(uri):
            try:
                return self._client.head_object(Bucket=bucket, Key=key, **self._payer)
            except ClientError as error:
                if status_of(error) == 404:
                    return None
                raise

    def open(self, uri: str, tag: str | None = None) -> BinaryIO:
        entry = self.stat(uri)
        if entry is None:
            raise (
                input_changed(uri, gone=True)
                if tag is not None
                else StorageError(f"{uri}: there is no such object", "check that it still exists")
            )
        if tag is not None and entry.tag != tag:
            raise input_changed(uri, gone=False)

        def fetch(start: int, stop: int) -> bytes:
            # The same version to the end, whoever overwrites the object meanwhile.
            return self._get(uri, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{entry.tag}"')[0]

        return cast("BinaryIO", io.BufferedReader(RangedReader(fetch, entry.size), BUFFER_BYTES))

    def read(self, uri: str) -> bytes:
        return self._get(uri)[0]

    def _get(self, uri: str, **how: Any) -> tuple[bytes, Any]:
        """The bytes and the response. A body that breaks off is asked for again; botocore tries only requests."""
        bucket, key = split(uri)
        with self._naming(uri):
            for attempt in range(1, self.options.max_attempts + 1):
                try:
                    response = self._client.get_object(Bucket=bucket, Key=key, **how, **self._payer)
                except ClientError as error:
                    if "IfMatch" in how and status_of(error) in (404, 412):
                        raise input_changed(uri, gone=status_of(error) == 404) from error
                    raise
                try:
                    return response["Body"].read(), response
                except BotoCoreError:
                    if attempt == self.options.max_attempts:
                        raise
                    time.sleep(min(0.1 * 2**attempt, 5))
        raise AssertionError("max_attempts is 1 at least")

    def create(self, uri: str, data: bytes) -> bool:
        return self._write(uri, data, {"IfNoneMatch": "*"}) is not None

    def replace(self, uri: str, data: bytes, tag: str) -> bool:
        return self._write(uri, data, {"IfMatch": f'"{tag}"'}) is not None

    def put(self, uri: str, data: bytes) -> None:
        self._write(uri, data, {})

    def _write(self, uri: str, data: bytes, condition: dict[str, str]) -> str | None:
        """The new tag, or None if the condition does not hold."""
        if condition and not self.options.conditional_writes:
            now = self.stat(uri)
            if condition != ({"IfNoneMatch": "*"} if now is None else {"IfMatch": f'"{now.tag}"'}):
                return None
            condition = {}
        token = uuid.uuid4().hex
        for attempt in range(CONFLICT_ATTEMPTS):
            with self._naming(uri):
                try:
                    return self._send(uri, data, token, condition).strip('"')
                except ClientError as error:
                    if status_of(error) not in (409, 412):
                        raise
                    failed = error
            head = self._head(uri)
            if head is not None and head["Metadata"].get(TOKEN) == token:
                return str(head["ETag"]).strip('"')
            if status_of(failed) == 412 and (head is not None or "IfMatch" in condition):
                return None
            # Another writer was at it at the same time, or what was in the way is gone: try again.
            time.sleep(0.05 * 2**attempt)
        raise StorageError(
            f"{uri}: the store keeps reporting a conflict ({self._client.meta.endpoint_url})",
            "run the same command again: committed shards are kept",
        )

    def _send(self, uri: str, data: bytes, token: str, condition: dict[str, Any]) -> str:
        bucket, key = split(uri)
        if len(data) > LARGEST_BYTES:
            raise StorageError(
                f"{uri}: {len(data) / 2**30:.1f} GiB are more than the 5 GiB that S3 takes in one request",
                "make smaller shards: set shards.rows or shards.max_bytes",
            )
        return self._client.put_object(
            Bucket=bucket, Key=key, Body=data, Metadata={TOKEN: token}, **condition, **self._payer
        )["ETag"]

    def delete(self, uri: str) -> None:
        bucket, key = split(uri)
        with self._naming(uri):
            self._client.delete_object(Bucket=bucket, Key=key, **self._payer)

    def irregular(self, uri: str) -> Iterator[str]:
        return iter(())

    def remove_leftovers(self, uri: str) -> None:
        for name in filter(is_temporary, self.names(uri)):
            self.delete(join(uri, name))

    def require_writable(self, uri: str) -> None:
        probe = join(uri, temporary_name())
        try:
            if self.options.conditional_writes:
                self._require_conditions(uri, probe)
            else:
                self.put(probe, b"")
            self.delete(probe)
        except StoreRefused as error:
            raise OutputError(f"cannot write to {error.message}", error.remedy) from error

    def _require_conditions(self, uri: str, probe: str) -> None:
        """A store may refuse a conditional write, or worse, take it as if there were no condition."""
        try:
            holds = self.create(probe, b"1") and not self.create(probe, b"2")
            holds = holds and not self.replace(probe, b"3", "0" * 32)
        except StorageError as error:
            cause = error.__cause__
            if not isinstance(cause, ClientError) or status_of(cause) not in (400, 405, 501):
                raise
            holds = False
        if not holds:
            with contextlib.suppress(StorageError):
                self.delete(probe)
            raise OutputError(
                f"cannot write to {uri}: the store {self._client.meta.endpoint_url} does not honour conditional writes "
                "(If-None-Match, If-Match), which keep two writers apart",
                "write to a store that does; or set storage: {" + uri + ": {conditional_writes: false}} and see to it "
                "yourself that only one run at a time writes there",
            )

    @contextlib.contextmanager
    def lock(self, uri: str) -> Iterator[Callable[[], None]]:
        lease = Lease(
            uri,
            self.options.lease_seconds,
            create=lambda data: self._write(uri, data, {"IfNoneMatch": "*"}),
            replace=lambda data, tag: self._write(uri, data, {"IfMatch": f'"{tag}"'}),
            look=lambda: self._look(uri),
        )
        with lease:
            yield lease.require_held

    def _look(self, uri: str) -> Seen | None:
        try:
            data, response = self._get(uri)
        except StorageError as error:
            if isinstance(error.__cause__, ClientError) and status_of(error.__cause__) == 404:
                return None
            raise
        # Both times are the store's own: no clock of ours decides who is dead.
        age = _http_date(response["ResponseMetadata"]["HTTPHeaders"].get("date")) - response["LastModified"].timestamp()
        return Seen(response["ETag"].strip('"'), data, age)


def _http_date(text: str | None) -> float:
    return parsedate_to_datetime(text).timestamp() if text else float("-inf")


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Do the names on a path fit the pattern's, as the shell's globs with `**` do?"""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_fits(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatchcase(parts[0], patterns[0]):
        return False
    # As in a shell, a name that begins with a dot is only met by a pattern that says so.
    if glob.has_magic(patterns[0]) and parts[0].startswith(".") and not patterns[0].startswith("."):
        return False
    return _fits(parts[1:], patterns[1:])
