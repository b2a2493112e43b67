"""S3 and compatible stores, through boto3.

A conditional write whose answer is lost is retried, and then conflicts with its own object. So every write has a
unique token in the object's metadata: an object with that token is the result of this write.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import io
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from batchinfer.errors import StorageError, StoreRefused
from batchinfer.events import tell
from batchinfer.jobspec import StoreSpec
from batchinfer.storage.base import NAMES_AT_LEAST, REQUESTS_AT_ONCE, Entry, input_changed, is_temporary, join
from batchinfer.storage.lease import Lease, Seen
from batchinfer.storage.pace import code_of, status_of
from batchinfer.storage.ranged import RangedReader
from batchinfer.storage.s3_client import EXPIRED, Connection, connection_for, named, split
from batchinfer.storage.s3_proof import prove
from batchinfer.temporary import temporary_folder

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

LARGEST_BYTES = 5 * 2**30
"""S3's limit on the bytes of one request. Objects are never sent in parts: many stores ignore a condition on
CompleteMultipartUpload, and a killed writer would leave parts that cost money."""

PART_BYTES = 256 * 2**20
"""Bytes of a part of an object above LARGEST_BYTES. S3 takes 10,000 parts, so this is enough for 2.4 TiB."""

BUFFER_BYTES = 64 * 1024
KEYS_A_PAGE = 1000
TOKEN = "batchinfer-write"
CONFLICT_ATTEMPTS = 10

_MODIFIED = "modified-"
"""The beginning of a tag made of time and size, for a store without ETags."""

_FOLDER_MARK = "_$folder$"


class S3Storage:
    """See `Storage`. Every request is sent and retried by `pace.Pace`, with the limits of `options`."""

    def __init__(self, options: StoreSpec) -> None:
        self.options = options
        self._payer: dict[str, Any] = {"RequestPayer": "requester"} if options.request_payer else {}

    @property
    def _connection(self) -> Connection:
        # Looked up each time: a storage is pickled for Ray's workers, and a client cannot be.
        return connection_for(self.options)

    @property
    def endpoint(self) -> str:
        """The address of the store."""
        return self._connection.endpoint

    def _call(self, uri: str, request: Callable[[S3Client], T], expected: Collection[int] = ()) -> T:
        """The result of `request`. Raises StorageError, or the ClientError itself if its status is `expected`."""
        connection = self._connection
        client = connection.client
        try:
            try:
                return connection.pace.call(uri, lambda: request(client))
            except ClientError as error:
                if code_of(error) not in EXPIRED or self.options.anonymous:
                    raise
            # A profile, a role or a file may have new credentials by now.
            client = connection.renewed(client)
            return connection.pace.call(uri, lambda: request(client))
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            if isinstance(error, ClientError) and status_of(error) in expected:
                raise
            raise named(error, uri, connection.endpoint) from error

    def list(self, uri: str) -> Iterator[Entry]:
        bucket, key = split(uri.rstrip("/"))
        if key:
            entry = None
            # Credentials for the objects of a folder may not cover the folder's own name.
            with contextlib.suppress(StoreRefused):
                entry = self.stat(uri)
            # An empty object may be the marker of a folder with the same name.
            if entry is not None and (entry.size or not self._has_below(uri)):
                yield entry
                return
        yield from self._list(bucket, f"{key}/" if key else "", uri)

    def _list(self, bucket: str, prefix: str, uri: str) -> Iterator[Entry]:
        for page in self._pages(uri, Bucket=bucket, Prefix=prefix):
            yield from self._entries(bucket, page.get("Contents", []))

    def folders(self, uri: str) -> Iterator[str]:
        bucket, key = split(uri.rstrip("/"))
        prefix = f"{key}/" if key else ""
        for page in self._pages(uri, Bucket=bucket, Prefix=prefix, Delimiter="/"):
            for found in page.get("CommonPrefixes", []):
                yield str(found["Prefix"]).removeprefix(prefix).rstrip("/")

    def _pages(self, uri: str, **which: Any) -> Iterator[Any]:
        """Every page of a listing. Raises StorageError if the store does not say how it goes on."""
        after: dict[str, str] = {}
        while True:
            page = self._page(uri, MaxKeys=KEYS_A_PAGE, **which, **after)
            yield page
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated") and not following:
                return
            if not following or after == {"ContinuationToken": following}:
                # Without this error the rest of the files would be missing silently.
                raise StorageError(
                    f"{uri}: the store {self.endpoint} lists only a part of it, and does not say how to list the rest",
                    "use a store that lists in pages (ListObjectsV2)",
                )
            after = {"ContinuationToken": following}

    def _page(self, uri: str, **which: Any) -> Any:
        return self._call(uri, lambda client: client.list_objects_v2(**which, **self._payer))

    def _entries(self, bucket: str, listed: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
        """The objects of a page, without temporary files and markers of folders."""
        found = [entry for entry in listed if _names_a_file(entry["Key"])]
        # A store that lists no tags may return one for the object: `list` and `stat` must return the same tag.
        untagged = [f"s3://{bucket}/{entry['Key']}" for entry in found if not entry.get("ETag")]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            looked_up = dict(zip(untagged, pool.map(self.stat, untagged), strict=True))
        for entry in found:
            uri = f"s3://{bucket}/{entry['Key']}"
            if entry["Size"] == 0 and self._has_below(uri):
                continue
            known = looked_up[uri] if uri in looked_up else Entry(uri, entry["Size"], _tag(entry, entry["Size"]))
            if known is not None:
                yield known

    def _has_below(self, uri: str) -> bool:
        """Are there objects in the folder `uri`?"""
        return bool(self._first_key(uri, f"{split(uri.rstrip('/'))[1]}/"))

    def _first_key(self, uri: str, prefix: str) -> str:
        """The first key that begins with `prefix`; empty if there is none."""
        page = self._page(uri, Bucket=split(uri)[0], Prefix=prefix, MaxKeys=1)
        return next((str(found["Key"]) for found in page.get("Contents", [])), "")

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
        page = self._page(uri, Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=NAMES_AT_LEAST)
        keys = {found["Prefix"].rstrip("/") for found in page.get("CommonPrefixes", [])}
        keys |= {found["Key"] for found in page.get("Contents", []) if found["Key"] != prefix}
        return sorted(key.removeprefix(prefix) for key in keys)

    def stat(self, uri: str) -> Entry | None:
        head = self._head(uri)
        return None if head is None else Entry(uri, head["ContentLength"], _tag(head, head["ContentLength"]))

    def _head(self, uri: str) -> Any | None:
        bucket, key = split(uri)
        if not key:
            # A bucket is no object.
            return None
        for explained in (False, True):
            try:
                return self._call(
                    uri,
                    lambda client: client.head_object(Bucket=bucket, Key=key, **self._payer),
                    expected=(404,) if explained else (400, 403, 404),
                )
            except ClientError as error:
                if status_of(error) == 404 or not self._explained(uri, key, status_of(error)):
                    return None
        raise AssertionError("the second answer is returned or raised")

    def _explained(self, uri: str, key: str, status: int) -> bool:
        """Explain a failed HEAD, whose response has no message: raise the StorageError of a GET.

        False if the object does not exist. With a permission for some folders only, S3 calls a missing object
        forbidden; a listing then shows that it is missing. True if the GET succeeds.
        """
        try:
            self._call(
                uri,
                lambda client: client.get_object(Bucket=split(uri)[0], Key=key, Range="bytes=0-0", **self._payer)[
                    "Body"
                ].close(),
                expected=(404, 416),
            )
        except ClientError as error:
            return status_of(error) != 404
        except StorageError as refused:
            if status == 403:
                with contextlib.suppress(StorageError):
                    if self._first_key(uri, key) != key:
                        return False
            raise refused
        return True

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
        untagged = entry.tag.startswith(_MODIFIED)
        # All reads must be of the same version, even if the object is overwritten meanwhile.
        condition = {} if untagged else {"IfMatch": f'"{entry.tag}"'}

        def fetch(start: int, stop: int) -> bytes:
            try:
                data, response = self._get(uri, (404, 412), Range=f"bytes={start}-{stop - 1}", **condition)
            except ClientError as error:
                raise input_changed(uri, gone=status_of(error) == 404) from error
            if untagged and _tag(response, entry.size) != entry.tag:
                raise input_changed(uri, gone=False)
            return data

        return cast("BinaryIO", io.BufferedReader(RangedReader(fetch, entry.size), BUFFER_BYTES))

    def read(self, uri: str) -> bytes:
        return self._get(uri)[0]

    def _get(self, uri: str, expected: Collection[int] = (), **how: Any) -> tuple[bytes, Any]:
        """The bytes and the response. A body that breaks off is retried like a failed request."""
        bucket, key = split(uri)

        def get(client: S3Client) -> tuple[bytes, Any]:
            response = client.get_object(Bucket=bucket, Key=key, **how, **self._payer)
            return response["Body"].read(), response

        return self._call(uri, get, expected)

    def create(self, uri: str, data: bytes) -> bool:
        return self._write(uri, data, {"IfNoneMatch": "*"}) is not None

    def replace(self, uri: str, data: bytes, tag: str) -> bool:
        return self._write(uri, data, {"IfMatch": tag}) is not None

    def put(self, uri: str, data: bytes) -> None:
        self._write(uri, data, {})

    def put_parts(self, uri: str, parts: Iterable[bytes]) -> None:
        """See `Storage.put_parts`. The parts go to a temporary file of this machine first, which is sent whole."""
        from boto3.s3.transfer import TransferConfig

        bucket, key = split(uri)
        # Sent in one request where S3 takes it, see LARGEST_BYTES.
        config = TransferConfig(multipart_threshold=LARGEST_BYTES, multipart_chunksize=PART_BYTES)
        with temporary_folder("parts") as folder:
            path = folder / "whole"
            with path.open("wb") as file:
                file.writelines(parts)

            def send(client: S3Client) -> str:
                try:
                    client.upload_file(str(path), bucket, key, ExtraArgs=self._payer or None, Config=config)
                except S3UploadFailedError as error:
                    if isinstance(error.__context__, ClientError):
                        raise error.__context__ from None
                    raise
                return ""

            self._call(uri, self._as_the_store_can(send))

    def _write(self, uri: str, data: bytes, condition: dict[str, str]) -> str | None:
        """Write the object; returns its new tag, or None if the condition fails. IfMatch in `condition` is bare."""
        if condition and not self.options.conditional_writes:
            now = self.stat(uri)
            if condition != ({"IfNoneMatch": "*"} if now is None else {"IfMatch": now.tag}):
                return None
            condition = {}
        connection = self._connection
        token, quoted, tried_both = uuid.uuid4().hex, connection.quotes_tags, False
        for attempt in range(CONFLICT_ATTEMPTS):
            sent = {name: f'"{tag}"' if name == "IfMatch" and quoted else tag for name, tag in condition.items()}
            try:
                made = self._send(uri, data, token, sent)
            except ClientError as error:
                failed = error
            else:
                if "IfMatch" in condition and connection.quotes_tags != quoted:
                    connection.quotes_tags = quoted
                return made
            head = self._head(uri)
            if head is not None and head["Metadata"].get(TOKEN) == token:
                return _tag(head, len(data))
            if status_of(failed) == 412 and head is not None and condition.get("IfMatch") == _tag(head, 0):
                # The store refuses a condition that holds: it may compare the tag with its quotes, or without.
                if not tried_both:
                    quoted, tried_both = not quoted, True
                    continue
                return None
            if status_of(failed) == 412 and (head is not None or "IfMatch" in condition):
                return None
            # Retry: another writer was concurrent, or the conflicting object is gone.
            time.sleep(0.05 * 2**attempt)
        raise StorageError(
            f"{uri}: the store keeps reporting a conflict ({connection.endpoint})",
            "run the same command again: committed shards are kept",
        )

    def _send(self, uri: str, data: bytes, token: str, condition: dict[str, Any]) -> str:
        """Write the object; returns its tag. Raises the ClientError of a conflict (409, 412)."""
        bucket, key = split(uri)
        if len(data) > LARGEST_BYTES:
            raise StorageError(
                f"{uri}: {len(data) / 2**30:.1f} GiB are more than the 5 GiB that S3 takes in one request",
                "make smaller shards: set shards.rows or shards.max_bytes",
            )

        def put(client: S3Client) -> str:
            answer = client.put_object(
                Bucket=bucket, Key=key, Body=data, Metadata={TOKEN: token}, **condition, **self._payer
            )
            return _bare(answer.get("ETag", ""))

        return self._call(uri, self._as_the_store_can(put), expected=(409, 412))

    def _as_the_store_can(self, put: Callable[[S3Client], str]) -> Callable[[S3Client], str]:
        """The request, repeated without checksums if the store may not know them."""

        def sent(client: S3Client) -> str:
            try:
                return put(client)
            except ClientError as error:
                if not self._may_be_the_checksum(error):
                    raise
                return self._put_without_checksum(put, error)

        return sent

    def _may_be_the_checksum(self, error: ClientError) -> bool:
        """Could the checksum be the cause? Older stores refuse botocore's checksums, some as a wrong signature."""
        codes = EXPIRED | {"AccessDenied", "InvalidAccessKeyId"}
        return (
            self._connection.may_leave_checksums_out
            and status_of(error) in (400, 403, 501)
            and code_of(error) not in codes
        )

    def _put_without_checksum(self, put: Callable[[S3Client], str], refused: ClientError) -> str:
        connection = self._connection
        client = connection.without_checksums()
        try:
            made = put(client)
        except ClientError as error:
            if status_of(error) not in (409, 412):
                raise refused from error
            connection.leave_checksums_out(client)
            raise
        connection.leave_checksums_out(client)
        tell("store setting", store=connection.endpoint, setting="checksums: when_required", reason=str(refused))
        return made

    def delete(self, uri: str) -> None:
        bucket, key = split(uri)
        self._call(uri, lambda client: client.delete_object(Bucket=bucket, Key=key, **self._payer))

    def irregular(self, uri: str) -> Iterator[str]:
        return iter(())

    def remove_leftovers(self, uri: str) -> None:
        # Best effort: a leftover costs little, and no result depends on its delete.
        try:
            for name in filter(is_temporary, self.names(uri)):
                self.delete(join(uri, name))
        except StorageError as error:
            tell("leftover kept", uri=uri, reason=error.message)

    def require_writable(self, uri: str, key: str = "output.uri") -> None:
        prove(self, uri, self.endpoint, self.options.conditional_writes)

    @contextlib.contextmanager
    def lock(self, uri: str) -> Iterator[Callable[[], None]]:
        lease = Lease(
            uri,
            self.options.lease_seconds,
            self.options.retry_seconds,
            create=lambda data: self._write(uri, data, {"IfNoneMatch": "*"}),
            replace=lambda data, tag: self._write(uri, data, {"IfMatch": tag}),
            look=lambda: self._look(uri),
        )
        with lease:
            yield lease.require_held

    def _look(self, uri: str) -> Seen | None:
        try:
            data, response = self._get(uri, expected=(404,))
        except ClientError:
            return None
        # Both times are the store's, so that the clock of this machine does not decide which holder is dead.
        age = _http_date(response["ResponseMetadata"]["HTTPHeaders"].get("date")) - response["LastModified"].timestamp()
        return Seen(_tag(response, len(data)), data, age)


def _tag(found: Mapping[str, Any], size: int) -> str:
    """The tag of an object's version: its ETag, or its time and size if the store has no ETags."""
    # A proxy that compresses marks an ETag as weak; it still identifies the same version.
    return _bare(found.get("ETag", "")) or f"{_MODIFIED}{int(found['LastModified'].timestamp()):x}-{size:x}"


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _names_a_file(key: str) -> bool:
    """Is the key a file? Some tools mark a folder by a key with a slash at its end, or with Hadoop's suffix."""
    return not key.endswith(("/", _FOLDER_MARK)) and not is_temporary(key.rsplit("/", 1)[-1])


def _http_date(text: str | None) -> float:
    return parsedate_to_datetime(text).timestamp() if text else float("-inf")


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Do the names of a path match those of a pattern, as in a shell's globs with `**`?"""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_fits(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatchcase(parts[0], patterns[0]):
        return False
    # As in a shell, a name that begins with a dot is matched only by a pattern that begins with a dot.
    if glob.has_magic(patterns[0]) and parts[0].startswith(".") and not patterns[0].startswith("."):
        return False
    return _fits(parts[1:], patterns[1:])
