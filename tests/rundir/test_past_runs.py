"""What a run takes, read from the folders of earlier runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import InputError, InputTaken, OutputError
from batchinfer.execution.checks import Checked, check
from batchinfer.input.manifest import to_parquet
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.schedule import resolve
from batchinfer.rundir.past_runs import note_skipped, past_runs
from batchinfer.storage import Storage
from tests.support.builders import make_spec, write_parquet


def nightly(tmp_path: Path, /, **incremental: str) -> JobSpec:
    return make_spec(
        name="nightly",
        input={"uri": str(tmp_path / "in"), "incremental": incremental, "columns": ["day"] if incremental else []},
        output={"uri": str(tmp_path / "out")},
    )


def looked(spec: JobSpec, day: int) -> Checked:
    rendered, tick = resolve(spec, datetime(2026, 11, day, tzinfo=UTC))
    return check(rendered, "run", tick=tick)


def claimed(spec: JobSpec, day: int) -> list[str]:
    """The files of that day's run, once its manifest is written as a run writes it."""
    checked = looked(spec, day)
    assert checked.choice is not None
    with checked.choice.claiming(checked.manifest):
        checked.layout.storage.create(checked.layout.manifest, to_parquet(checked.manifest))
    return names(checked)


def names(checked: Checked) -> list[str]:
    return ["/".join(Path(uri).parts[-2:]) for uri in checked.manifest.files]


def write(tmp_path: Path, name: str, rows: int = 2, **columns: Any) -> None:
    write_parquet(tmp_path / "in" / name, {"text": ["a"] * rows, **{k: [v] * rows for k, v in columns.items()}})


def test_a_run_takes_what_no_other_run_of_the_job_has(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet")
    write(tmp_path, "empty.parquet", rows=0)
    spec = nightly(tmp_path)
    assert claimed(spec, 1) == ["in/a.parquet"]
    write(tmp_path, "b.parquet")
    assert claimed(spec, 2) == ["in/b.parquet"]
    assert claimed(spec, 3) == []
    write(tmp_path, "empty.parquet", rows=5)
    assert claimed(spec, 4) == ["in/empty.parquet"]
    assert [run.state for run in past_runs(str(tmp_path / "out"), "nightly", {})] == ["unfinished"] * 4
    # Another job beside it has runs of its own.
    assert names(looked(spec.model_copy(update={"name": "other"}), 5)) == [
        "in/a.parquet", "in/b.parquet", "in/empty.parquet",
    ]  # fmt: skip


def test_a_file_that_another_run_took_meanwhile_is_not_taken_twice(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet")
    write(tmp_path, "b.parquet")
    spec = nightly(tmp_path)
    late = looked(spec, 2)
    assert claimed(spec, 1) == ["in/a.parquet", "in/b.parquet"]
    assert late.choice is not None
    with pytest.raises(InputTaken, match=r"a\.parquet and 1 more files"), late.choice.claiming(late.manifest):
        pytest.fail("it was let through")


def test_runs_on_s3_keep_their_files_apart_as_those_in_folders_do(
    tmp_path: Path, bucket: str, s3_url: str, store: Storage
) -> None:
    spec = make_spec(
        name="nightly",
        input={"uri": f"{bucket}/in/", "incremental": {}},
        output={"uri": f"{bucket}/out/{{{{ run.date }}}}"},
        storage={bucket: {"endpoint_url": s3_url}},
    )

    def arrives(name: str, rows: int = 2) -> None:
        write(tmp_path, name, rows)
        store.put(f"{bucket}/in/{name}", (tmp_path / "in" / name).read_bytes())

    with pytest.raises(InputError, match="there are no parquet files") as caught:
        looked(spec, 1)
    assert caught.value.remedy == "that bucket is empty"
    arrives("a.parquet")
    late = looked(spec, 2)
    assert claimed(spec, 1) == ["in/a.parquet"]
    assert late.choice is not None
    with pytest.raises(InputTaken, match=r"in/a\.parquet"), late.choice.claiming(late.manifest):
        pytest.fail("it was let through")
    assert looked(spec, 2).manifest.rows == 0
    arrives("b.parquet")
    assert claimed(spec, 2) == ["in/b.parquet"]
    arrives("a.parquet", rows=3)
    assert claimed(spec, 3) == ["in/a.parquet"]
    note_skipped(f"{bucket}/out/2026-11-04", "nightly", datetime(2026, 11, 4, tzinfo=UTC), "busy", spec.storage)
    with store.lock(f"{bucket}/out/2026-11-01/_run/lock"):
        found = past_runs(f"{bucket}/out", "nightly", spec.storage)
    assert [(run.root, run.state) for run in found] == [
        (f"{bucket}/out/2026-11-01", "running"),
        (f"{bucket}/out/2026-11-02", "unfinished"),
        (f"{bucket}/out/2026-11-03", "unfinished"),
        (f"{bucket}/out/2026-11-04", "skipped"),
    ]
    assert past_runs(f"{bucket}/out", "nightly", spec.storage)[0].state == "unfinished"


def test_partitions_are_taken_whole_and_their_columns_keep_one_type(tmp_path: Path) -> None:
    write(tmp_path, "day=1/a.parquet")
    write(tmp_path, "day=x/a.parquet")
    spec = nightly(tmp_path, by="partition")
    assert claimed(spec, 1) == ["day=1/a.parquet", "day=x/a.parquet"]
    write(tmp_path, "day=2/a.parquet")
    write(tmp_path, "day=1/late.parquet")
    second = looked(spec, 2)
    assert names(second) == ["day=1/a.parquet", "day=1/late.parquet", "day=2/a.parquet"]
    assert str(second.manifest.schema.field("day").type) == "string", "as in the first run, though these are numbers"


def test_a_file_outside_any_partition_is_a_mistake_where_partitions_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", day="1")
    with pytest.raises(InputError, match="is in no partition"):
        looked(nightly(tmp_path, by="partition"), 1)


def test_nothing_there_yet_is_fine_and_a_place_that_never_was_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no parquet files"):
        looked(nightly(tmp_path), 1)
    (tmp_path / "in").mkdir()
    assert looked(nightly(tmp_path), 1).manifest.rows == 0


def test_a_damaged_manifest_stops_the_job_rather_than_running_its_files_again(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet")
    spec = nightly(tmp_path)
    claimed(spec, 1)
    (manifest,) = (tmp_path / "out").glob("*/_run/manifest.parquet")
    manifest.write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"manifest\.parquet is not what a run of batchinfer wrote there"):
        looked(spec, 2)
