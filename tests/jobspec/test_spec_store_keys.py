from __future__ import annotations

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec import StoreSpec, parse, to_yaml
from batchinfer.storage import storage_for
from batchinfer.storage.s3 import S3Storage
from tests.support.builders import make_spec


def test_options_stand_under_beginnings_of_uris_and_survive_the_run_folder():
    spec = make_spec(storage={"s3://data": {"region": "eu-central-1"}, "s3://": {"request_payer": True}})
    assert spec.storage["s3://data"] == StoreSpec(region="eu-central-1")
    assert parse(to_yaml(spec)) == spec


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ({"s3://b": {"secret_access_key": "hunter2"}}, "secret_access_key is a secret, which a spec never holds"),
        ({"s3://b": {"AWS_SESSION_TOKEN": "hunter2"}}, "is a secret"),
        ({"s3://b": {"password": "hunter2"}}, "is a secret"),
        ({"s3://b": {"endpoint_url": "https://me:hunter2@host"}}, "storage.s3://b.endpoint_url: it has a secret in it"),
        ({"s3://b": {"endpoint_url": "me:hunter2@host"}}, "it has a secret in it"),
        ({"s3://b": {"endpoint_url": "host:9000"}}, "is not an address like https://"),
        ({"s3://b": {"endpoint": "https://host"}}, "did you mean 'endpoint_url'?"),
        ({"s3://b": {"max_attempts": 0}}, "storage.s3://b.max_attempts"),
        ({"bucket": {}}, "beginnings of s3:// URIs"),
        ({"s3://me:hunter2@b": {}}, "beginnings of s3:// URIs"),
    ],
)
def test_a_mistake_is_named_and_a_secret_is_never_shown(storage, message):
    with pytest.raises(SpecError) as caught:
        make_spec(storage=storage)
    assert message in caught.value.message
    if "s3://me" not in str(storage):
        assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("uri", "region"),
    [
        ("s3://data/x", "whole"),
        ("s3://data", "whole"),
        ("s3://data/deep/x", "deep"),
        ("s3://data/deeper/x", "whole"),
        ("s3://database/x", "any"),
    ],
)
def test_the_longest_beginning_wins_and_ends_at_a_slash(uri, region):
    stores = {
        "s3://data/": StoreSpec(region="whole"),
        "s3://data/deep": StoreSpec(region="deep"),
        "s3://": StoreSpec(region="any"),
    }
    store = storage_for(uri, stores)
    assert isinstance(store, S3Storage)
    assert store.options.region == region
