"""How other libraries reach the stores of a spec: the endpoint, the region and the credentials, resolved."""

from __future__ import annotations

from dataclasses import dataclass

from batchinfer.errors import UserError
from batchinfer.jobspec import StoreSpec
from batchinfer.storage.prefixes import Stores, options_for


@dataclass(frozen=True, slots=True)
class Access:
    """What it takes to reach a store of S3. None leaves a value to the library."""

    endpoint: str | None
    region: str | None
    key: str | None
    secret: str | None
    token: str | None
    anonymous: bool
    virtual: bool
    conditional_writes: bool


def access_of(uri: str, stores: Stores | None) -> Access:
    """The access to the store of an s3:// URI, as `storage` and the AWS environment say. Raises UserError."""
    import boto3
    from botocore.exceptions import BotoCoreError

    options: StoreSpec = options_for(uri, stores)
    try:
        session = boto3.Session(profile_name=options.profile, region_name=options.region)
        client = session.client("s3", endpoint_url=options.endpoint_url)
        found = None if options.anonymous else session.get_credentials()
    except BotoCoreError as error:
        raise UserError(f"{uri}: {error}", "check the AWS environment and profiles") from None
    frozen = found.get_frozen_credentials() if found is not None else None
    endpoint: str = client.meta.endpoint_url
    return Access(
        endpoint=None if endpoint.endswith(".amazonaws.com") else endpoint,
        region=session.region_name or "us-east-1",
        key=frozen.access_key if frozen is not None else None,
        secret=frozen.secret_key if frozen is not None else None,
        token=frozen.token if frozen is not None else None,
        anonymous=options.anonymous,
        virtual=options.addressing_style == "virtual",
        conditional_writes=options.conditional_writes,
    )
