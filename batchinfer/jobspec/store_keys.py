"""How stores are reached, by prefixes of URIs. Never a secret."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from batchinfer.jobspec.base import Keys

_SECRET = re.compile(r"secret|token|passw|access_?key|credential", re.IGNORECASE)
_ELSEWHERE = "put it into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or name a profile"


class StoreSpec(Keys):
    """How to reach the S3 store of some URIs. null leaves a key to the AWS environment and profiles. Never a secret:
    credentials come from the environment, a profile or a role.
    """

    endpoint_url: str | None = None
    """The store's address, for stores other than AWS. Example: `https://minio.example.org`."""
    region: str | None = None
    """The region of the bucket, as `eu-central-1`."""
    profile: str | None = None
    """The profile in the AWS configuration files whose credentials and settings apply. Every node must have it."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket's name stands in requests: in the `path`, in the host name (`virtual`), or as botocore
    chooses."""
    request_payer: bool = False
    """Whether the reader pays for requests, as some buckets demand."""
    conditional_writes: bool = True
    """Whether the store honours `If-None-Match`, on which each shard's single commit rests.

    `false` is for a store that refuses it. Each write is then checked first and made after: you must ensure that one
    run at a time writes there."""
    max_attempts: int = Field(default=8, ge=1, le=100)
    """How often a request is tried, the first time included, with growing pauses between."""
    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds until a connection must be made."""
    read_timeout: float = Field(default=60.0, gt=0)
    """Seconds until the store must send something."""
    lease_seconds: float = Field(default=60.0, ge=1)
    """Seconds until the lock of a run that vanished on another machine lapses.

    A live run renews its lock four times in that time. A shorter time lets the next run start sooner, but a store that
    does not answer for so long ends the run."""

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if _SECRET.search(str(key)):
                raise ValueError(f"{key} is a secret, which a spec never holds: {_ELSEWHERE}")
        return values

    @field_validator("endpoint_url")
    @classmethod
    def _an_address(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if "@" in url:
                raise ValueError(f"it has a secret in it, which a spec never holds: {_ELSEWHERE}")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is not an address like https://s3.example.org")
        return url


def _prefix(uri: str) -> str:
    if not uri.startswith("s3://") or "@" in uri:
        raise ValueError("the keys under storage are beginnings of s3:// URIs, such as s3://bucket")
    return uri


StoresSpec = dict[Annotated[str, AfterValidator(_prefix), Field(examples=["s3://..."])], StoreSpec]
