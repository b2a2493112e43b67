"""A model folder on S3, brought to this machine."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchinfer.errors import ModelError, StorageError
from batchinfer.jobspec import StoreSpec
from batchinfer.model.download import local_model
from tests.support.faulty_store import FaultyStore

FILES = {"config.json": b"{}", "model.safetensors": os.urandom(3_000_000), "sub/tokenizer.json": b"[]", "empty": b""}

FETCH = """
import sys
from batchinfer.model.download import local_model
from batchinfer.jobspec import StoreSpec
print(local_model(sys.argv[1], {"s3://": StoreSpec(endpoint_url=sys.argv[2])}))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(bucket, store):
    for name, data in FILES.items():
        store.put(f"{bucket}/models/llama/{name}", data)
    return f"{bucket}/models/llama"


@pytest.fixture
def stores(s3_url):
    return {"s3://": StoreSpec(endpoint_url=s3_url)}


def read(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in Path(folder).rglob("*")
        if p.is_file() and p.name != ".batchinfer.json"
    }


def test_a_model_is_downloaded_once_and_then_used_as_it_is(model, stores, cache, s3_url):
    folder = local_model(model, stores)
    assert read(folder) == FILES
    assert Path(folder).is_relative_to(cache / "batchinfer" / "models")
    with FaultyStore(s3_url) as watched:
        again = local_model(model, {"s3://": StoreSpec(endpoint_url=watched.url)})
        # One file has no bytes: is it the marker of a folder?
        assert watched.requests == 3, "one look at the folder, none at the files"
    assert again == folder


@pytest.mark.parametrize("harm", ["another byte", "cut off", "a file gone", "no list"])
def test_a_copy_that_was_harmed_is_not_used(model, stores, cache, harm):
    folder = Path(local_model(model, stores))
    weights = folder / "model.safetensors"
    if harm == "another byte":
        weights.write_bytes(b"X" + FILES["model.safetensors"][1:])
    elif harm == "cut off":
        weights.write_bytes(FILES["model.safetensors"][:-1])
    elif harm == "a file gone":
        (folder / "config.json").unlink()
    else:
        (folder / ".batchinfer.json").unlink()
    assert read(local_model(model, stores)) == FILES


def test_a_copy_that_was_only_touched_is_used(model, stores, cache):
    folder = Path(local_model(model, stores))
    os.utime(folder / "model.safetensors")
    inode = (folder / "model.safetensors").stat().st_ino
    assert (Path(local_model(model, stores)) / "model.safetensors").stat().st_ino == inode


def test_a_model_that_changed_under_its_name_is_another_model(model, stores, cache, store):
    before = local_model(model, stores)
    store.put(f"{model}/config.json", b'{"a": 1}')
    after = local_model(model, stores)
    assert after != before
    assert read(after) == FILES | {"config.json": b'{"a": 1}'}


def test_a_download_that_breaks_off_is_not_used_and_can_be_done_again(model, stores, cache, s3_url):
    with FaultyStore(s3_url) as faulty:
        hasty = {"s3://": StoreSpec(endpoint_url=faulty.url, max_attempts=1)}
        listed = local_model(model, stores)
        Path(listed, ".batchinfer.json").unlink()
        # The list of the folder comes whole, the files do not.
        asked = itertools.count()
        faulty.choose = lambda method: "truncated" if next(asked) > 3 else None
        with pytest.raises(StorageError, match="s3://"):
            local_model(model, hasty)
    assert not Path(listed).exists()
    assert read(local_model(model, stores)) == FILES


def test_many_processes_of_a_machine_wait_for_one_download(model, cache, s3_url):
    with FaultyStore(s3_url) as watched:
        command = [sys.executable, "-c", FETCH, model, watched.url]
        fetchers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        folders = {fetcher.communicate(timeout=100)[0].strip() for fetcher in fetchers}
        assert all(fetcher.returncode == 0 for fetcher in fetchers)
        # Three looks at the folder, three requests each (one file has no bytes); every other file opened and read once.
        assert watched.requests <= 9 + 2 * len(FILES)
    (folder,) = folders
    assert read(folder) == FILES


def test_nothing_there_is_no_model(bucket, stores, cache):
    with pytest.raises(ModelError, match="there is no model at"):
        local_model(f"{bucket}/none", stores)


def test_a_key_that_leads_out_of_the_folder_is_refused(bucket, store, stores, cache):
    store.put(f"{bucket}/m/../../evil", b"x")
    with pytest.raises(ModelError, match="cannot be a file of a model folder"):
        local_model(f"{bucket}/m", stores)


def test_a_cache_that_cannot_be_written_says_what_to_set(model, stores, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot be kept at") as caught:
        local_model(model, stores)
    assert "XDG_CACHE_HOME" in caught.value.remedy
