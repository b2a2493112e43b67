"""How stores are reached, by prefixes of URIs. Never a secret."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from batchinfer.spec.base import Keys

_SECRET = re.compile(r"secret|token|passw|access_?key|credential", re.IGNORECASE)
_ELSEWHERE = "put it into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or name a profile"


class StoreSpec(Keys):
    """How to reach the S3 store of some URIs; null leaves what the AWS environment and profiles say.

    Times are seconds. `conditional_writes: false` is for a store that refuses If-None-Match: then the
    user sees to it that one run at a time writes there. `lease_seconds` is how long the lock of a driver
    that vanished holds others off.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    request_payer: bool = False
    conditional_writes: bool = True
    max_attempts: int = Field(default=8, ge=1, le=100)
    connect_timeout: float = Field(default=10.0, gt=0)
    read_timeout: float = Field(default=60.0, gt=0)
    lease_seconds: float = Field(default=60.0, ge=1)

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


StoresSpec = dict[Annotated[str, AfterValidator(_prefix)], StoreSpec]
