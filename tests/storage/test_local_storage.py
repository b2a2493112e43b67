from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from batchinfer.errors import OutputError, StorageError, UserError
from batchinfer.storage import LocalStorage, join, local, local_path, storage_for, temporary_name
from tests.support.threads import in_threads

STORE = LocalStorage()

RACER = """
import os, sys, time
from batchinfer.storage import LocalStorage
folder, me = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for i in range(60):
    if LocalStorage().create(f"{folder}/{i}", f"{i} by {me}".encode() * 2000):
        print(i, flush=True)
"""

HOLDER = """
import sys, time
from batchinfer.storage import LocalStorage
with LocalStorage().lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def race(code, folder):
    """Four processes create the same sixty objects: each object is one process's, and whole."""
    racers = [python(code, folder, me) for me in range(4)]
    for racer in racers:
        racer.stdout.readline()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [set(map(int, racer.communicate(timeout=60)[0].split())) for racer in racers]
    assert sorted(i for wins in won for i in wins) == list(range(60))
    for me, wins in enumerate(won):
        for i in wins:
            assert (folder / str(i)).read_bytes() == f"{i} by {me}".encode() * 2000
    assert sorted(os.listdir(folder), key=int) == [str(i) for i in range(60)]


@pytest.mark.integration
def test_of_many_processes_exactly_one_creates_each_object(tmp_path):
    race(RACER, tmp_path)


def test_of_many_threads_exactly_one_creates_the_object(tmp_path):
    uri = str(tmp_path / "a" / "b" / "object")
    won = in_threads(8, lambda i: STORE.create(uri, b"by %d" % i))
    assert won.count(True) == 1
    assert STORE.read(uri) == b"by %d" % won.index(True)


@pytest.mark.parametrize("write", ["create", "put"])
def test_nobody_ever_sees_a_half_written_object(tmp_path, write):
    whole = [bytes([i]) * 1_000_000 for i in range(20)]
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            for entry in STORE.list(str(tmp_path)):
                data = STORE.read(entry.uri)
                seen.add((len(data), len(set(data)), entry.size))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for i, data in enumerate(whole):
        getattr(STORE, write)(str(tmp_path / (str(i) if write == "create" else "same")), data)
    # The watcher sees the last of them in any case.
    while not seen:
        time.sleep(0.001)
    stop.set()
    watcher.join()
    assert seen == {(1_000_000, 1, 1_000_000)}


def test_create_leaves_an_object_that_is_there_as_it_is(tmp_path):
    uri = str(tmp_path / "object")
    assert STORE.create(uri, b"first") is True
    before = STORE.stat(uri)
    assert STORE.create(uri, b"second") is False
    assert STORE.read(uri) == b"first"
    assert STORE.stat(uri) == before
    assert os.listdir(tmp_path) == ["object"]


def test_replace_swaps_only_what_has_not_changed(tmp_path):
    uri = str(tmp_path / "object")
    STORE.put(uri, b"one")
    tag = STORE.stat(uri).tag
    assert STORE.replace(uri, b"two", tag) is True
    assert STORE.read(uri) == b"two"
    assert STORE.replace(uri, b"three", tag) is False
    assert STORE.read(uri) == b"two"
    assert os.listdir(tmp_path) == ["object"]


def test_concurrent_replaces_lose_no_update(tmp_path):
    uri = str(tmp_path / "list")
    STORE.put(uri, b"")

    def append(me):
        for i in range(15):
            while True:
                before = STORE.stat(uri)
                if STORE.replace(uri, STORE.read(uri) + f"{me}-{i} ".encode(), before.tag):
                    break

    in_threads(3, append)
    assert sorted(STORE.read(uri).decode().split()) == sorted(f"{me}-{i}" for me in range(3) for i in range(15))


def test_of_many_that_replace_the_same_version_exactly_one_wins(tmp_path):
    uri = str(tmp_path / "object")
    STORE.put(uri, b"")
    for _ in range(150):
        tag = STORE.stat(uri).tag
        won = in_threads(4, lambda i, tag=tag: STORE.replace(uri, b"by %d" % i, tag))
        assert won.count(True) == 1
        assert STORE.read(uri) == b"by %d" % won.index(True)


def test_replacing_what_is_gone_is_an_error_that_names_it(tmp_path):
    with pytest.raises(StorageError, match=str(tmp_path / "gone")):
        STORE.replace(str(tmp_path / "gone"), b"x", "tag")


def test_a_tag_changes_with_the_content_even_at_the_same_size(tmp_path):
    uri = str(tmp_path / "object")
    STORE.put(uri, b"one")
    before = STORE.stat(uri)
    STORE.put(uri, b"two")
    after = STORE.stat(uri)
    assert (before.size, before.uri) == (after.size, after.uri)
    assert before.tag != after.tag


def test_put_makes_folders_and_overwrites(tmp_path):
    uri = str(tmp_path / "a" / "b" / "object")
    STORE.put(uri, b"one, and longer")
    STORE.put(uri, b"two")
    assert STORE.read(uri) == b"two"
    with STORE.open(uri) as file:
        file.seek(1)
        assert file.read() == b"wo"


def test_list_gives_every_object_under_a_folder_in_order(tmp_path):
    for name in ("b/2", "b/10", "a/x", "a/y/z", "c"):
        STORE.put(str(tmp_path / name), name.encode())
    found = list(STORE.list(str(tmp_path)))
    assert [os.path.relpath(e.uri, tmp_path) for e in found if "/" in os.path.relpath(e.uri, tmp_path)] == [
        "a/x",
        "a/y/z",
        "b/10",
        "b/2",
    ]
    assert {os.path.relpath(e.uri, tmp_path) for e in found} == {"b/2", "b/10", "a/x", "a/y/z", "c"}
    assert all(e == STORE.stat(e.uri) for e in found)
    assert all(e.size == len(STORE.read(e.uri)) for e in found)


def test_listing_a_file_gives_the_file_and_a_missing_folder_nothing(tmp_path):
    STORE.put(str(tmp_path / "object"), b"x")
    assert [e.uri for e in STORE.list(str(tmp_path / "object"))] == [str(tmp_path / "object")]
    assert list(STORE.list(str(tmp_path / "nothing"))) == []


def test_leftovers_of_killed_writers_are_invisible_and_can_be_removed(tmp_path):
    STORE.put(str(tmp_path / "a" / "object"), b"x")
    (tmp_path / "a" / temporary_name()).write_bytes(b"half")
    (tmp_path / temporary_name()).mkdir()
    assert [e.uri for e in STORE.list(str(tmp_path))] == [str(tmp_path / "a" / "object")]
    for folder in (tmp_path, tmp_path / "a"):
        STORE.remove_leftovers(str(folder))
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["a", "a/object"]


def test_removing_leftovers_where_nothing_was_written_is_no_mistake(tmp_path):
    STORE.remove_leftovers(str(tmp_path / "nothing"))
    assert os.listdir(tmp_path) == []


def test_stat_tells_what_is_there(tmp_path):
    STORE.put(str(tmp_path / "object"), b"four")
    assert STORE.stat(str(tmp_path / "object")).size == 4
    assert STORE.stat(str(tmp_path / "none")) is None
    assert STORE.stat(str(tmp_path / "object" / "below")) is None


def test_deleting_twice_is_no_mistake(tmp_path):
    uri = str(tmp_path / "object")
    STORE.put(uri, b"x")
    STORE.delete(uri)
    STORE.delete(uri)
    assert STORE.stat(uri) is None


@pytest.mark.integration
def test_a_second_process_is_refused_the_lock_until_the_holder_is_killed(tmp_path):
    uri = str(tmp_path / "_run" / "lock")
    holder = python(HOLDER, uri)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"process {holder.pid} on "), STORE.lock(uri):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=10)
        entered = False
        with STORE.lock(uri):
            entered = True
        assert entered
    finally:
        holder.kill()
        holder.communicate()


def test_a_lock_that_was_given_back_can_be_taken_again(tmp_path):
    uri = str(tmp_path / "lock")
    for _ in range(2):
        with STORE.lock(uri):
            assert Path(uri).read_text().startswith(f"{os.getpid()} on ")


def test_an_error_under_the_lock_gives_it_back(tmp_path):
    uri = str(tmp_path / "lock")
    with pytest.raises(KeyError), STORE.lock(uri):
        raise KeyError
    with STORE.lock(uri):
        assert Path(uri).exists()


def test_a_folder_that_does_not_exist_yet_is_writable_and_stays_absent(tmp_path):
    STORE.require_writable(str(tmp_path / "a" / "b" / "c"))
    assert os.listdir(tmp_path) == []


def test_a_folder_below_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError) as caught:
        STORE.require_writable(str(tmp_path / "file" / "out"))
    assert str(tmp_path / "file" / "out") in str(caught.value)
    assert "output.uri" in caught.value.remedy


def test_a_file_is_not_a_folder_to_write_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is not a folder"):
        STORE.require_writable(str(tmp_path / "file"))


def test_a_file_system_that_takes_no_files_is_found_out_even_by_root():
    with pytest.raises(OutputError, match="cannot write to /proc/batchinfer"):
        STORE.require_writable("/proc/batchinfer/out")


@pytest.mark.parametrize(
    "call",
    [
        lambda uri: STORE.read(uri),
        lambda uri: STORE.open(uri),
        lambda uri: STORE.create(uri, b"x"),
        lambda uri: STORE.put(uri, b"x"),
        lambda uri: STORE.replace(uri, b"x", "tag"),
        lambda uri: STORE.lock(uri).__enter__(),
    ],
    ids=["read", "open", "create", "put", "replace", "lock"],
)
def test_a_failure_names_the_uri_and_what_to_do(tmp_path, call):
    (tmp_path / "file").write_text("x")
    uri = str(tmp_path / "file" / "below")
    with pytest.raises(StorageError) as caught:
        call(uri)
    assert str(caught.value).startswith(f"{uri}: ")
    assert caught.value.remedy


def test_an_object_under_the_name_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(StorageError, match="folder"):
        STORE.put(str(tmp_path / "folder"), b"x")
    assert sorted(os.listdir(tmp_path)) == ["folder"]


def test_one_place_has_one_name(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert local_path(f"file://{tmp_path}/link/x") == local_path(f"{tmp_path}/real/../link/x") == f"{tmp_path}/real/x"


def test_join_puts_one_slash_between():
    assert join("/a/", "b", "c") == join("/a", "b", "c") == "/a/b/c"


def test_a_store_that_nobody_knows_is_the_users_mistake():
    with pytest.raises(UserError, match="gopher://"):
        storage_for("gopher://host/path")


def test_file_uris_are_local(tmp_path):
    uri = f"file://{tmp_path}/object"
    storage_for(uri).put(uri, b"x")
    assert (tmp_path / "object").read_bytes() == b"x"


@pytest.mark.parametrize("act", ["put", "create", "replace", "delete", "lock"])
def test_a_link_is_never_written_through(tmp_path, act):
    precious, link = tmp_path / "precious", tmp_path / "link"
    precious.write_bytes(b"precious")
    link.symlink_to(precious)
    acts = {
        "put": lambda: STORE.put(str(link), b"x"),
        "create": lambda: STORE.create(str(link), b"x"),
        "replace": lambda: STORE.replace(str(link), b"x", STORE.stat(str(link)).tag),
        "delete": lambda: STORE.delete(str(link)),
        "lock": lambda: STORE.lock(str(link)).__enter__(),
    }
    with pytest.raises(StorageError, match="is a link"):
        acts[act]()
    assert link.is_symlink()
    assert precious.read_bytes() == b"precious"


UNLINKED_RACER = (
    """
import errno
def no_links(*arguments):
    raise OSError(errno.EPERM, "no hard links here")
import errno
import fcntl
import os
os.link = no_links
"""
    + RACER
)


@pytest.mark.integration
def test_where_there_are_no_hard_links_exactly_one_process_creates_each_object(tmp_path):
    race(UNLINKED_RACER, tmp_path)


def test_a_file_system_without_hard_links_is_writable(tmp_path, monkeypatch):
    def no_links(*arguments):
        raise OSError(errno.ENOTSUP, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    STORE.require_writable(str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_refused_before_a_run_begins(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OutputError, match="No locks available"):
        STORE.require_writable(str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_a_swap_behind_a_stopped_process_ends_with_its_file_named(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "WAIT_SECONDS", 0.3)
    uri = str(tmp_path / "object")
    STORE.put(uri, b"one")
    with local._alone(str(tmp_path)), pytest.raises(StorageError, match="another process has held") as caught:
        STORE.replace(uri, b"two", STORE.stat(uri).tag)
    assert "end that process" in caught.value.remedy
    assert STORE.read(uri) == b"one"


def test_a_probe_that_a_crash_left_is_no_file_of_the_folder_and_can_be_removed(tmp_path):
    left = tmp_path / temporary_name()
    left.mkdir()
    (left / local.PROBE).write_bytes(b"1")
    assert list(STORE.list(str(tmp_path))) == []
    STORE.remove_leftovers(str(tmp_path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("uri", ["file:/data/in", "file://localhost/data/in"])
def test_another_spelling_of_a_files_uri_is_refused_with_the_path(uri):
    with pytest.raises(UserError, match="three slashes") as caught:
        storage_for(uri)
    assert caught.value.remedy == "write /data/in"
    assert isinstance(storage_for("file:///data/in"), LocalStorage)


FILLER = """
import resource, signal, sys
from batchinfer.errors import StorageError
from batchinfer.storage import LocalStorage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
store, folder = LocalStorage(), sys.argv[1]
tag = store.stat(f"{folder}/b").tag
for write in (
    lambda: store.create(f"{folder}/a", bytes(5000)),
    lambda: store.replace(f"{folder}/b", bytes(5000), tag),
    lambda: store.put(f"{folder}/b", bytes(5000)),
    lambda: store.put_parts(f"{folder}/c", [bytes(4000), bytes(4000)]),
):
    try:
        write()
    except StorageError as error:
        print(error, "->", error.remedy)
print(store.create(f"{folder}/d", bytes(4000)))
"""


@pytest.mark.integration
def test_a_write_that_does_not_fit_is_told_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "b").write_bytes(b"before")
    done = python(FILLER, tmp_path).communicate(timeout=60)[0].splitlines()
    assert [line.partition(": ")[0] for line in done] == [f"{tmp_path}/{name}" for name in "abbc"] + ["True"]
    assert all("committed shards are kept" in line for line in done[:4])
    assert {p.name: p.stat().st_size for p in tmp_path.iterdir()} == {"b": 6, "d": 4000}
