"""What every store promises, on the local file system and on S3 alike."""

from __future__ import annotations

import pytest

from batchinfer.errors import InputError, OutputError, StorageError
from batchinfer.jobspec import StoreSpec
from batchinfer.storage import delete_many, join, read_many, storage_for, temporary_name
from tests.support.threads import in_threads


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """A folder of the test's own."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket") + "/a folder/é"


@pytest.fixture
def store(root, s3_url):
    return storage_for(root, {"s3://": StoreSpec(endpoint_url=s3_url, lease_seconds=10)})


def below(root, entries):
    return [entry.uri.removeprefix(root + "/") for entry in entries]


def test_of_many_creators_exactly_one_is_told_so_and_its_content_stands(store, root):
    for number in range(5):
        uri = join(root, "a", str(number))
        won = in_threads(8, lambda i, uri=uri: store.create(uri, b"by %d" % i))
        assert won.count(True) == 1
        assert store.read(uri) == b"by %d" % won.index(True)


def test_creators_of_the_same_content_do_not_take_one_another_for_themselves(store, root):
    assert in_threads(6, lambda i: store.create(join(root, "same"), b"same")).count(True) == 1


def test_create_leaves_what_is_there(store, root):
    uri = join(root, "object")
    assert store.create(uri, b"first")
    before = store.stat(uri)
    assert not store.create(uri, b"second")
    assert store.read(uri) == b"first"
    assert store.stat(uri) == before


def test_replace_swaps_only_what_has_not_changed(store, root):
    uri = join(root, "object")
    store.put(uri, b"one")
    tag = store.stat(uri).tag
    assert store.replace(uri, b"two", tag)
    assert not store.replace(uri, b"three", tag)
    assert store.read(uri) == b"two"


def test_of_many_that_replace_the_same_version_exactly_one_wins(store, root):
    uri = join(root, "object")
    store.put(uri, b"")
    for _ in range(10):
        tag = store.stat(uri).tag
        won = in_threads(4, lambda i, tag=tag: store.replace(uri, b"by %d of %s" % (i, tag.encode()), tag))
        assert won.count(True) == 1
        assert store.read(uri).startswith(b"by %d" % won.index(True))


def test_replacing_what_is_gone_is_an_error_that_names_it(store, root):
    with pytest.raises(StorageError, match="gone"):
        store.replace(join(root, "gone"), b"x", "tag")


def test_put_overwrites_and_a_tag_changes_with_the_content(store, root):
    uri = join(root, "object")
    store.put(uri, b"one")
    before = store.stat(uri)
    store.put(uri, b"two")
    after = store.stat(uri)
    assert store.read(uri) == b"two"
    assert (before.uri, before.size) == (after.uri, after.size)
    assert before.tag != after.tag


def test_a_file_can_be_read_in_any_order(store, root):
    data = bytes(range(256)) * 5000
    store.put(join(root, "object"), data)
    with store.open(join(root, "object")) as file:
        assert file.seek(-10, 2) == len(data) - 10
        assert file.read() == data[-10:]
        assert file.read(1) == b""
        for start, length in [(0, 4), (700_000, 300_000), (1000, 10), (1010, 600_000), (len(data) - 1, 5)]:
            file.seek(start)
            assert file.read(length) == data[start : start + length]
        file.seek(0)
        assert b"".join(file) == data
    store.put(join(root, "empty"), b"")
    with store.open(join(root, "empty")) as file:
        assert file.read() == b""


def test_opening_a_version_that_is_there_no_more_is_the_inputs_fault(store, root):
    uri = join(root, "object")
    store.put(uri, b"one")
    tag = store.stat(uri).tag
    with store.open(uri, tag) as file:
        assert file.read() == b"one"
    store.put(uri, b"two")
    with pytest.raises(InputError, match="object has changed"):
        store.open(uri, tag)
    store.delete(uri)
    with pytest.raises(InputError, match="object is gone"):
        store.open(uri, tag)


def test_list_gives_every_object_under_a_folder_and_no_other(store, root):
    names = ["b/2", "b/10", "a/x", "a/y/z", "c", "a b/ü?%2F"]
    for name in [*names, f"b/{temporary_name()}"]:
        store.put(join(root, name), name.encode())
    store.put(root + "x/other", b"")
    found = list(store.list(root))
    assert sorted(below(root, found)) == sorted(names)
    assert all(entry == store.stat(entry.uri) for entry in found)
    assert below(root, store.list(join(root, "a"))) == ["a/x", "a/y/z"]
    assert below(root, store.list(join(root, "c"))) == ["c"]
    assert list(store.list(join(root, "nothing"))) == []
    assert list(store.names(root)) == ["a", "a b", "b", "c"]
    assert list(store.names(join(root, "nothing"))) == []


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("**/*.parquet", ["a.parquet", "b.parquet", "deep/er/d.parquet"]),
        ("[b-z].parquet", ["b.parquet"]),
        ("?.txt", ["c.txt"]),
        ("deep/*/*", ["deep/er/d.parquet"]),
        ("de*/**", ["deep/er/d.parquet"]),
        ("*.PARQUET", []),
    ],
)
def test_a_pattern_means_the_same_in_every_store(store, root, pattern, names):
    for name in ["a.parquet", "b.parquet", "c.txt", "deep/er/d.parquet", ".e.parquet"]:
        store.put(join(root, name), b"x")
    assert sorted(below(root, store.match(join(root, pattern)))) == names


def test_many_objects_are_read_in_order_and_deleted(store, root):
    uris = [join(root, "many", f"{i:03d}") for i in range(150)]
    in_threads(4, lambda i: [store.put(uri, uri.encode()) for uri in uris[i::4]])
    assert list(read_many(store, uris)) == [uri.encode() for uri in uris]
    delete_many(store, [*uris, join(root, "many", "none")])
    assert list(store.list(join(root, "many"))) == []


def test_one_of_many_that_cannot_be_read_is_named(store, root):
    store.put(join(root, "there"), b"x")
    with pytest.raises(StorageError, match="missing"):
        list(read_many(store, [join(root, "there"), join(root, "missing")]))


def test_leftovers_can_be_removed(store, root):
    store.put(join(root, "object"), b"x")
    half, other = join(root, temporary_name()), join(root, ".writing-my-thesis")
    store.put(half, b"half")
    store.put(other, b"a user's own")
    assert below(root, store.list(root)) == [".writing-my-thesis", "object"]
    store.remove_leftovers(root)
    assert store.stat(half) is None
    assert store.read(other) == b"a user's own"
    assert store.stat(join(root, "object")) is not None


def test_asking_whether_a_folder_is_writable_leaves_nothing(store, root):
    store.require_writable(join(root, "new"))
    assert list(store.names(join(root, "new"))) == []


def test_while_one_holds_the_lock_another_is_refused_and_told_who_holds_it(store, root):
    uri = join(root, "_run", "lock")
    with store.lock(uri) as require_held:
        with pytest.raises(OutputError, match="another batchinfer is writing to this output"), store.lock(uri):
            pass
        require_held()
    for _ in range(2):
        with store.lock(uri) as require_held:
            require_held()


def test_an_error_under_the_lock_gives_it_back(store, root):
    for error in (KeyError, StorageError):
        with pytest.raises(error), store.lock(join(root, "lock")):
            raise error("x")
    with store.lock(join(root, "lock")) as require_held:
        require_held()


@pytest.mark.parametrize("content", [b"", b"precious", b"{}", b"\x00" * 100])
def test_a_file_that_is_no_lock_is_not_taken_for_one(store, root, content):
    uri = join(root, "_run", "lock")
    store.put(uri, content)
    with pytest.raises(OutputError, match="batchinfer did not write it"), store.lock(uri):
        pass
    assert store.read(uri) == content


def test_put_parts_writes_the_parts_in_order_and_replaces_what_is_there(store, root):
    uri = join(root, "whole")
    store.put(uri, b"old")
    store.put_parts(uri, (b"%d," % number for number in range(100_000)))
    assert store.read(uri) == b"".join(b"%d," % number for number in range(100_000))
    assert below(root, store.list(root)) == ["whole"]


def test_put_parts_that_fail_leave_what_is_there(store, root):
    def parts():
        yield b"new"
        raise RuntimeError("the parts end")

    uri = join(root, "whole")
    store.put(uri, b"old")
    with pytest.raises(RuntimeError, match="the parts end"):
        store.put_parts(uri, parts())
    assert store.read(uri) == b"old"
    assert below(root, store.list(root)) == ["whole"]
