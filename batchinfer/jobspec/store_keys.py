"""The keys that say how stores are reached, by prefixes of URIs. They never hold a secret."""

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
    anonymous: bool = False
    """Whether requests are sent without credentials, as to a public bucket."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket's name stands in requests: in the `path`, in the host name (`virtual`), or as botocore
    chooses."""
    request_payer: bool = False
    """Whether the reader pays for requests, as some buckets demand."""
    conditional_writes: bool = True
    """Whether the store honours `If-None-Match`, on which each shard's single commit rests.

    `false` is for a store that refuses it. Each write is then checked first and made after: you must ensure that one
    run at a time writes there."""
    checksums: Literal["when_supported", "when_required"] | None = None
    """Whether each request carries a checksum, or only if S3 requires one.

    null: as the AWS environment says, and without one if the first write shows that the store refuses it. Set
    `when_required` for older stores and gateways on which this detection fails."""
    retry_seconds: float = Field(default=600.0, ge=0)
    """Seconds for which a request that fails is sent again, so that a run outlives an outage of the store.

    The pauses grow to 10 seconds, and throttling slows down all requests to the store. The GPUs wait, and cost,
    meanwhile. Before a run begins, an address that has never answered is given up after 30 seconds."""
    max_attempts: int | None = Field(default=None, ge=1, le=1_000_000)
    """A limit on the tries of a request, the first included, beside `retry_seconds`. null sets none."""
    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds until a connection must be made."""
    read_timeout: float = Field(default=60.0, gt=0)
    """Seconds until the store must send something."""
    lease_seconds: float = Field(default=60.0, ge=1)
    """Seconds until the lock of a run that vanished on another machine lapses.

    A live run renews its lock four times in that time. A shorter time lets the next run start sooner. A run whose
    store does not answer for so long waits, and goes on if no other run took the lock meanwhile."""

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if _SECRET.search(str(key)):
                raise ValueError(f"{key} is a secret, which a spec never holds: {_ELSEWHERE}")
        return values

    @model_validator(mode="after")
    def _one_identity(self) -> StoreSpec:
        if self.anonymous and self.profile is not None:
            raise ValueError("anonymous sends no credentials, and profile names some: set one of the two")
        return self

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
