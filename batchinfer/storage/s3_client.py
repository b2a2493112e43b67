"""Connections to S3, one in each process for each set of options, and messages for botocore's errors."""

from __future__ import annotations

import functools
import re
import threading
from typing import TYPE_CHECKING, Literal

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)

from batchinfer.errors import StorageError, StoreRefused, UserError
from batchinfer.jobspec import StoreSpec
from batchinfer.storage.pace import Pace, code_of, is_transient, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_Checksums = Literal["when_supported", "when_required"] | None

_MAKING = threading.Lock()
_CONNECTIONS = 64

_KEPT = "run the same command again: committed shards are kept"
_EXPIRED = f"the credentials may have expired: renew them, then {_KEPT}"
_PERMISSIONS = "let these credentials list, read, write and delete there, or use others (AWS_PROFILE)"
_REGION = "set the bucket's region: AWS_REGION, or storage: {s3://bucket: {region: ...}}"

EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidToken"}

_REFUSALS = {
    **dict.fromkeys(EXPIRED, _EXPIRED),
    "NoSuchBucket": "create the bucket, or correct its name",
    "InvalidBucketName": "correct the bucket's name",
    "AccessDenied": _PERMISSIONS,
    "AllAccessDisabled": _PERMISSIONS,
    "403": _PERMISSIONS,
    "InvalidAccessKeyId": "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE)",
    "SignatureDoesNotMatch": "check the credentials (AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and the region",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
}

_DENIED = ("AccessDenied", "AllAccessDisabled", "403")

_ACTIONS = {
    "ListObjectsV2": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
}
"""The permission that each request needs, by the name that botocore gives to the request."""

_UNSUPPORTED = (400, 405, 501)

_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
    CredentialRetrievalError,
    SSOError,
)


class Connection:
    """A client with its pace, and the settings that this process has detected for the store."""

    def __init__(self, options: StoreSpec) -> None:
        self._options = options
        self.client = _client(options, options.checksums)
        self.endpoint: str = self.client.meta.endpoint_url
        self.pace = Pace(self.endpoint, options.retry_seconds, options.max_attempts)
        self.quotes_tags = True
        """Whether If-Match is sent with quotes. HTTP requires them, but Ceph's gateway compares the bare tag."""
        self._checksums: _Checksums = options.checksums

    @property
    def may_leave_checksums_out(self) -> bool:
        """Is it unknown whether the store refuses checksums?"""
        return self._checksums is None

    def without_checksums(self) -> S3Client:
        """A client that sends checksums only if S3 requires them."""
        with _MAKING:
            return _client(self._options, "when_required")

    def leave_checksums_out(self, client: S3Client) -> None:
        """Use `client`, made by `without_checksums`, from now on."""
        self.client, self._checksums = client, "when_required"

    def renewed(self, refused: S3Client) -> S3Client:
        """A client with newly read credentials, after those of the client `refused` expired."""
        with _MAKING:
            if self.client is refused:
                self.client = _client(self._options, self._checksums)
            return self.client


def _client(options: StoreSpec, checksums: _Checksums) -> S3Client:
    session = boto3.Session(profile_name=options.profile, region_name=options.region)
    # For options that are None, botocore reads AWS_ENDPOINT_URL, AWS_REGION, profiles and roles itself.
    return session.client(
        "s3",
        endpoint_url=options.endpoint_url,
        config=Config(
            # One attempt only: `Pace` makes the retries.
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            max_pool_connections=_CONNECTIONS,
            s3={"addressing_style": options.addressing_style},
            signature_version=UNSIGNED if options.anonymous else None,
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        ),
    )


@functools.cache
def _connection(options: StoreSpec) -> Connection:
    return Connection(options)


def connection_for(options: StoreSpec) -> Connection:
    """The connection of this process for `options`. Raises StoreRefused or UserError if none can be made."""
    # boto3 must not create clients in several threads at once; clients may be used in several threads.
    with _MAKING:
        try:
            return _connection(options)
        except ProfileNotFound as error:
            raise named(error, "s3://", "") from error
        except ValueError as error:
            raise UserError(
                f"the store's address cannot be used: {error}",
                "give AWS_ENDPOINT_URL or storage.*.endpoint_url as https://host:port",
            ) from error


def split(uri: str) -> tuple[str, str]:
    """The bucket and the key of an s3:// URI. Raises UserError."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise UserError("an s3:// URI begins with a bucket and never holds credentials", "write s3://bucket/folder")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}", bucket) and not bucket.startswith("arn:"):
        raise UserError(f"{uri}: {bucket!r} is not the name of a bucket", "write s3://bucket/folder")
    return bucket, key


def is_unsupported(error: StorageError) -> bool:
    """Did the store refuse the kind of request, rather than the credentials or the bucket?"""
    cause = error.__cause__
    known = (*_REFUSALS, "400")
    return isinstance(cause, ClientError) and status_of(cause) in _UNSUPPORTED and code_of(cause) not in known


def named(error: Exception, uri: str, endpoint: str) -> StorageError:
    """The StorageError for botocore's error: with the URI, the store, its message, and a remedy."""
    at = f" (the store is {endpoint})" if endpoint else ""
    tried = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, ClientError):
        code = code_of(error)
        said = str(error.response.get("Error", {}).get("Message") or "")
        reason = f"{uri}: {code} {said}".rstrip() + at + tried
        if code in _DENIED and error.operation_name in _ACTIONS:
            return StoreRefused(
                f"{uri}: {code} {said}".rstrip() + f", {_ACTIONS[error.operation_name]} is not allowed" + at + tried,
                _PERMISSIONS,
            )
        if code in _REFUSALS:
            return StoreRefused(reason, _REFUSALS[code])
        if code == "400":
            # The store sent no message, not even for a GET.
            return StoreRefused(reason, f"check the bucket's name and the store's address; or {_EXPIRED}")
        if is_transient(error):
            return StorageError(
                reason,
                f"wait until the store is well, then {_KEPT}; storage.*.retry_seconds says how long is waited",
            )
        if status_of(error) in _UNSUPPORTED:
            return StoreRefused(reason, "the store does not take this request: ask those who run it, or use another")
        return StorageError(reason, f"check that store, then {_KEPT}")
    if isinstance(error, _NO_CREDENTIALS):
        return StoreRefused(
            f"{uri}: {error}{at}",
            "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role; "
            "for a public bucket set storage: {s3://bucket: {anonymous: true}}",
        )
    if isinstance(error, SSLError):
        return StoreRefused(
            f"{uri}: {error}{at}", "check the store's certificate, or set AWS_CA_BUNDLE to its issuer's"
        )
    return StorageError(
        f"{uri}: {error}{at}{tried}",
        f"check that the store can be reached, then {_KEPT}; storage.*.retry_seconds says how long is waited",
    )
