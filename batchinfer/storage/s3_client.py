"""One client a process for each way to reach S3, and botocore's errors in a user's words."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)

from batchinfer import events
from batchinfer.errors import StorageError, StoreRefused, UserError
from batchinfer.jobspec import StoreSpec

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_MAKING = threading.Lock()
_CONNECTIONS = 64

_REFUSALS = {
    "NoSuchBucket": "create the bucket, or correct its name",
    "AccessDenied": "let these credentials list, read and write there, or use others (AWS_PROFILE)",
    "403": "let these credentials list, read and write there, or use others (AWS_PROFILE)",
    "InvalidAccessKeyId": "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE)",
    "SignatureDoesNotMatch": "check the credentials (AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and the region",
    "ExpiredToken": "renew the credentials",
    "PermanentRedirect": "set the bucket's region: AWS_REGION, or storage: {s3://bucket: {region: ...}}",
    "AuthorizationHeaderMalformed": "set the bucket's region: AWS_REGION, or storage: {s3://bucket: {region: ...}}",
}


@functools.cache
def _client(options: StoreSpec) -> S3Client:
    session = boto3.Session(profile_name=options.profile, region_name=options.region)
    # botocore reads AWS_ENDPOINT_URL, AWS_REGION, profiles and roles itself wherever these are None.
    return session.client(
        "s3",
        endpoint_url=options.endpoint_url,
        config=Config(
            retries={"mode": "standard", "total_max_attempts": options.max_attempts},
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            max_pool_connections=_CONNECTIONS,
            s3={"addressing_style": options.addressing_style},
        ),
    )


def client_for(options: StoreSpec) -> S3Client:
    """The client of this process for `options`. Raises StoreRefused where there is no such profile."""
    # Making one is not safe in several threads at once; using one is.
    with _MAKING, naming("s3://", ""):
        return _client(options)


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI; raises UserError."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise UserError("an s3:// URI begins with a bucket and never holds credentials", "write s3://bucket/folder")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}", bucket) and not bucket.startswith("arn:"):
        raise UserError(f"{uri}: {bucket!r} is not the name of a bucket", "write s3://bucket/folder")
    return bucket, key


def code_of(error: ClientError) -> str:
    """S3's word for an error, or the status where a HEAD has no body to say it."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextlib.contextmanager
def naming(uri: str, endpoint: str) -> Iterator[None]:
    """Turn botocore's error into a StorageError that names the URI, the store and what to do."""
    at = f" (the store is {endpoint})" if endpoint else ""
    began = time.monotonic()
    try:
        yield
    except ClientError as error:
        code = code_of(error)
        said = str(error.response.get("Error", {}).get("Message", "")) or code
        reason = f"{uri}: {code} {said}".rstrip() + at
        if code in _REFUSALS:
            raise StoreRefused(reason, _REFUSALS[code]) from error
        tries = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
        if tries:
            reason += f", after {tries + 1} attempts"
        raise StorageError(
            reason, "check that store, then run the same command again: committed shards are kept"
        ) from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound, TokenRetrievalError) as error:
        raise StoreRefused(
            f"{uri}: {error}{at}", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role"
        ) from error
    except BotoCoreError as error:
        raise StorageError(
            f"{uri}: {error}{at}",
            "check that the store can be reached, then run the same command again: committed shards are kept",
        ) from error
    finally:
        events.tell_slow(uri, time.monotonic() - began)
