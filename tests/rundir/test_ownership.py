"""No file that this product did not write is deleted, moved or overwritten, by any command, on any store."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchinfer.errors import BatchinferError, OutputError
from batchinfer.execution import preview, reports, runner
from batchinfer.rundir.ownership import STOP_MARK, clear, overwrite, remove, require_own
from batchinfer.rundir.paths import Layout
from tests.support.s3_runs import assert_whole, spec_on
from tests.support.scripted_jobs import KeepingListener, results, scripted_spec, write_corpus

OWN_NAMES = [
    *("data/shard-000000.parquet", "data/shard-000003.parquet", "accounting/shard-000001.parquet"),
    *("accounting/shard-000002.retry-1.parquet", "_run/manifest.parquet", "_run/spec.yaml", "_run/plan.json"),
    *("_run/report.json", "_run/retry.json", "_run/skipped.json", "_run/replicas.parquet", "_run/lock"),
    *("_run/run.log", "_run/stop", "_run/replicas/0123456789ab.json"),
]
OTHER_NAMES = [
    *("data/raw/2025/precious.csv", "data/train.parquet", "data/.writing-notes", "data/_SUCCESS", "data/.hidden"),
    *("accounting/ledger.xlsx", "accounting/shard-1.parquet", "_run/mine/x.txt", "_run/manifest.parquet.bak"),
    *("_run/replicas/notes.json", "data/shard-000000.parquet/inside", "_run/replicas"),
]
"""Some of them put a folder where a run has a file, or a file where it has a folder."""


def of_somebody_else() -> dict[str, bytes]:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"customer": ["a", "b"]}), sink)
    return {
        "empty": b"",
        "text": b"precious",
        "JSON": b'{"precious": true}',
        "a list": b"[0, 1]",
        "Parquet": sink.getvalue().to_pybytes(),
        "a cut Parquet": sink.getvalue().to_pybytes()[:-9],
        "binary": bytes(range(256)) * 10,
    }


CONTENTS = of_somebody_else()
TREES = st.dictionaries(
    st.sampled_from(OWN_NAMES + OTHER_NAMES),
    st.sampled_from([*CONTENTS, "link to a file", "link to a folder", "link to nothing"]),
    min_size=1,
    max_size=4,
)


def lay(tree: dict[str, str], output: Path, elsewhere: Path) -> None:
    """Put the tree there, in place of what has its names; links lead to `elsewhere`."""
    elsewhere.mkdir(parents=True)
    (elsewhere / "keys").write_bytes(b"ssh-ed25519 AAAA")
    (elsewhere / "folder").mkdir()
    (elsewhere / "folder" / "inside").write_bytes(b"inside")
    targets = {"link to a file": "keys", "link to a folder": "folder", "link to nothing": "nothing"}
    for name, kind in tree.items():
        path = output / name
        if any((output / parent).is_symlink() for parent in Path(name).parents):
            continue
        for parent in Path(name).parents:
            if (output / parent).is_file():
                (output / parent).unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if kind in targets:
            path.symlink_to(elsewhere / targets[kind])
        else:
            path.write_bytes(CONTENTS[kind])


def everything(root: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_cluster):
    """A folder with a corpus and a run over it that has ended."""
    folder = tmp_path_factory.mktemp("finished")
    write_corpus(folder / "corpus")
    runner.run(scripted_spec(folder / "corpus", folder / "out"), KeepingListener())
    return folder


def every_command(folder: Path, output: Path) -> dict[str, str]:
    """What came of each command on the output; none of them reaches Ray."""
    spec, listener = scripted_spec(folder / "corpus", output), KeepingListener()
    commands = {
        "validate": lambda: preview.validate(spec),
        "run": lambda: runner.run(spec, listener),
        "run --fresh": lambda: runner.run(spec, listener, fresh=True),
        "retry": lambda: runner.retry(str(output), listener),
        "report": lambda: reports.report(str(output)),
    }
    said, codes = {}, {}
    for name, command in commands.items():
        try:
            command()
            said[name] = "done"
        except BatchinferError as error:
            said[name] = error.message
            codes[name] = error.exit_code
    assert set(codes.values()) <= {2}, said
    assert not any(event == "connecting" for event, _ in listener.events), "refused before anything starts"
    return said


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_before_a_first_run_every_foreign_byte_stays(tmp_path_factory, finished, tree):
    folder = tmp_path_factory.mktemp("tree")
    lay(tree, folder / "out", folder / "elsewhere")
    before = everything(folder)
    said = every_command(finished, folder / "out")
    assert everything(folder) == before
    for command in ("validate", "run", "run --fresh"):
        assert "batchinfer did not write" in said[command]


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
@example(tree={"data/shard-000000.parquet/inside": "empty"})
def test_between_two_runs_every_foreign_byte_stays(tmp_path_factory, finished, tree):
    folder = tmp_path_factory.mktemp("tree")
    # Its manifest names it only by its files' contents, so that a copy is a run too.
    shutil.copytree(finished / "out", folder / "out")
    lay(tree, folder / "out", folder / "elsewhere")
    before = everything(folder)
    said = every_command(finished, folder / "out")
    after = everything(folder)
    changed = {path for path in before if after.get(path) != before[path]}
    own = {str(folder / "out" / "_run" / name) for name in ("report.json", "report.html", "replicas.parquet")}
    assert changed <= own - {str(folder / "out" / name) for name in tree}
    assert said["run --fresh"] != "done"


def test_a_refusal_names_three_of_the_files_and_a_remedy(tmp_path):
    for name in OTHER_NAMES[:5]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"precious")
    with pytest.raises(OutputError) as caught:
        preview.validate(scripted_spec(write_corpus(tmp_path / "corpus"), tmp_path / "out"))
    assert caught.value.message.count("\n  /") == 3
    assert "and 2 more" in caught.value.message
    assert "output.uri of its own" in caught.value.remedy


def test_files_beside_the_folders_of_a_run_are_no_hindrance(tmp_path, corpus, ray_cluster):
    out = tmp_path / "out"
    for name in ("README.md", "other/data/x.csv", ".writing-notes"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"precious")
    (tmp_path / "link").symlink_to(out)
    assert runner.run(scripted_spec(corpus, tmp_path / "link"), KeepingListener()).complete
    assert results(out).num_rows == 1000
    for name in ("README.md", "other/data/x.csv", ".writing-notes"):
        assert (out / name).read_bytes() == b"precious"


def test_a_fresh_run_deletes_all_of_the_earlier_one_and_nothing_else(tmp_path, finished):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    (out / "notes.txt").write_bytes(b"mine")
    layout = Layout(str(out))
    clear(layout, kept=[layout.lock])
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == ["_run/lock", "notes.txt"]


def test_a_file_that_turns_up_while_a_run_goes_on_is_not_overwritten(tmp_path):
    layout = Layout(str(tmp_path))
    overwrite(layout, layout.stop, STOP_MARK)
    overwrite(layout, layout.stop, STOP_MARK)
    remove(layout, layout.stop)
    (tmp_path / "_run" / "stop").write_bytes(b"precious")
    for act in (lambda: overwrite(layout, layout.stop, STOP_MARK), lambda: remove(layout, layout.stop)):
        with pytest.raises(OutputError, match="batchinfer did not write"):
            act()
    assert (tmp_path / "_run" / "stop").read_bytes() == b"precious"


def test_a_pipe_in_the_output_is_refused_and_not_waited_for(tmp_path):
    (tmp_path / "_run").mkdir()
    os.mkfifo(tmp_path / "_run" / "plan.json")
    with pytest.raises(OutputError, match=r"plan\.json"):
        require_own(Layout(str(tmp_path)))


@pytest.mark.parametrize("place", ["data", "accounting", "_run", "accounting/2026"])
@pytest.mark.parametrize("pattern", ["", "*.parquet"])
def test_an_input_where_the_output_is_written_is_refused(tmp_path, place, pattern):
    corpus = tmp_path / "warehouse" / place
    corpus.parent.mkdir(parents=True)
    write_corpus(corpus)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=r"where output\.uri is written"):
        preview.validate(scripted_spec(corpus / pattern if pattern else corpus, tmp_path / "warehouse"))
    assert everything(tmp_path) == before


def test_an_input_that_links_to_where_the_output_is_written_is_refused(tmp_path, finished):
    shutil.copytree(finished / "out", tmp_path / "out")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "part.parquet").symlink_to(tmp_path / "out" / "data" / "shard-000000.parquet")
    spec = scripted_spec(tmp_path / "in", tmp_path / "out", prompt={"template": "{{ output }}"})
    with pytest.raises(OutputError):
        runner.run(spec, KeepingListener(), fresh=True)
    assert results(tmp_path / "out").num_rows == 1000


class Versioned:
    """Every version of every object in a bucket, and the uploads that have not ended."""

    def __init__(self, url: str, bucket: str) -> None:
        self.client, self.name = boto3.client("s3", endpoint_url=url), bucket.removeprefix("s3://")
        self.client.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": "Enabled"})

    def everything(self) -> set[tuple[str, str, bool]]:
        found = self.client.list_object_versions(Bucket=self.name)
        kinds = (("Versions", False), ("DeleteMarkers", True))
        seen = {(v["Key"], v["VersionId"], gone) for kind, gone in kinds for v in found.get(kind, [])}
        uploads = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        return seen | {(u["Key"], u["UploadId"], False) for u in uploads}


@pytest.mark.parametrize("name", [*OWN_NAMES, "data/customers/2025.parquet", "accounting/invoices.pdf", "data"])
def test_on_s3_foreign_objects_are_refused_and_stay(s3_url, bucket, remote_corpus, store, name):
    versions = Versioned(s3_url, bucket)
    out = f"{bucket}/team"
    for key in (name, f"{name}-beside" if name.startswith("_") else "data/x.csv"):
        store.put(f"{out}/{key}", b"precious")
    for key in ("team/somebody-else/big", "team/data/shard-000000.parquet"):
        versions.client.create_multipart_upload(Bucket=versions.name, Key=key)
    spec, before = spec_on(s3_url, remote_corpus, out), versions.everything()
    for act in (
        lambda: preview.validate(spec),
        lambda: runner.run(spec, KeepingListener()),
        lambda: runner.run(spec, KeepingListener(), fresh=True),
    ):
        with pytest.raises(OutputError, match="batchinfer did not write"):
            act()
    assert versions.everything() == before


def test_on_s3_a_run_and_a_fresh_one_leave_what_lies_beside(s3_url, bucket, remote_corpus, store, ray_cluster):
    versions = Versioned(s3_url, bucket)
    out = f"{bucket}/{uuid.uuid4().hex}"
    store.put(f"{out}/notes/x", b"precious")
    versions.client.create_multipart_upload(Bucket=versions.name, Key=f"{out.rsplit('/', 1)[1]}/data/other")
    before = versions.everything()
    spec = spec_on(s3_url, remote_corpus, out)
    runner.run(spec, KeepingListener())
    runner.run(spec, KeepingListener(), fresh=True)
    assert_whole(store, out)
    assert before <= versions.everything()
    assert json.loads(store.read(f"{out}/_run/report.json"))["complete"]
