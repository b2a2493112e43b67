"""Damaged run folders and hostile lines of input: each command ends in time, with a result or one message.

    python benchmarks/hostile_folders.py [--inputs 400] [--seed 1]

A run folder of three shards is made without Ray and damaged in one to three places: bytes, numbers, names, links, files
of others. Then `report`, `validate`, `retry` and `run` look at it, up to where Ray would start. Lines of JSON are
damaged and read with and without `input.on_bad_row: set_aside`. Printed is how they ended, and the slowest; the first
that raises anything but batchinfer's own errors, or that changes a file of others, ends the program with 1. The same
seed makes the same inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import BatchinferError, RowError
from batchinfer.execution import preview, ray_pipeline, reports, runner
from batchinfer.execution.checks import check
from batchinfer.execution.reports import conclude
from batchinfer.execution.runner import _write_run_files
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.manifest import Fingerprint
from batchinfer.jobspec import JobSpec, parse
from batchinfer.prompting.prompts import PromptMaker, needed_columns
from batchinfer.rundir.commit import commit

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.builders import make_journal, make_plan, make_reading, make_record
from tests.support.scripted_jobs import KeepingListener

SHARDS, ROWS = 3, 4
LONGEST_SECONDS = 20.0
"""A command that takes longer counts as one that hangs."""

NUMBERS: list[Any] = [
    0,
    -1,
    2**31,
    2**63,
    10**400,
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    1e-320,
    "",
    None,
    True,
    [],
    {},
    "x",
]
NAMES = [
    *("notes.txt", "…ü\u202e.parquet", "shard-0.parquet", "shard-000007.parquet", "shard-99999999.parquet", ".hidden"),
    *("a b'\"$(x).json", "line\nbreak", "x" * 200, "\udcff.bin", "lock~", "manifest.parquet.bak"),
]
FOLDERS = ["", "data", "accounting", "_run", "_run/replicas", "_run/events", "data/raw/2025"]


class Started(BatchinferError):
    """What a command raises here in place of starting Ray: it found nothing wrong."""


def make_run(folder: Path) -> JobSpec:
    """A complete run with failed rows."""
    (folder / "in").mkdir(parents=True)
    table = pa.table({"id": list(range(SHARDS * ROWS)), "text": ["x"] * SHARDS * ROWS})
    pq.write_table(table, folder / "in" / "a.parquet")
    spec = JobSpec.model_validate(
        {
            "name": "a-job",
            "model": {"source": "scripted"},
            "input": {"uri": str(folder / "in"), "id_column": "id"},
            "prompt": {"template": "Say {{ text }}"},
            "output": {"uri": str(folder / "out")},
            "shards": {"rows": ROWS},
            "limits": {"max_error_rate": 1.0},
        }
    )
    checked = check(spec, "run")
    _write_run_files(checked.layout, checked, make_plan())
    meter = make_reading(10_000_000, load=4.0, busy=14.0)
    journal = make_journal("0123456789ab", meter=meter)
    checked.layout.storage.create(checked.layout.journal("0123456789ab"), journal.model_dump_json().encode())
    for shard in range(SHARDS):
        codes = pa.array([None, "output_invalid", None, None], pa.string())
        rows = pa.table({"id": range(shard * ROWS, (shard + 1) * ROWS), "error_code": codes})
        record = make_record(shard, rows_failed=1, errors={"output_invalid": 1}, replica_id="0123456789ab")
        commit(checked.layout, rows, record)
    conclude(checked.layout, checked.spec, checked.manifest)
    return spec


def damage(random: Random, output: Path, outside: Path) -> None:
    """Do one thing to the folder that no run does."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and not path.is_symlink()]
    path = random.choice(files) if files else output / "data" / "none"
    kind = random.choice(
        ["bytes", "cut", "number", "key", "kind", "remove", "rename", "copy", "foreign", "link", "table"]
    )
    if kind in ("bytes", "cut") and path.is_file():
        data = bytearray(path.read_bytes())
        for _ in range(random.choice([1, 3, 30])):
            if data:
                data[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(data if kind == "bytes" else data[: random.randrange(len(data) + 1)])
    elif kind in ("number", "key"):
        documents = [file for file in files if file.suffix == ".json"]
        if documents:
            path = random.choice(documents)
            try:
                value = json.loads(path.read_bytes())
            except ValueError:
                return
            path.write_text(json.dumps(_changed(random, value)))
    elif kind == "kind" and path.is_file():
        path.unlink()
        path.mkdir()
        if random.random() < 0.5:
            (path / "inside.txt").write_text("theirs")
    elif kind == "remove" and path.is_file():
        path.unlink()
    elif kind in ("rename", "copy") and path.is_file():
        place = output / random.choice(FOLDERS) / random.choice([other.name for other in files] + NAMES)
        if _is_free(place, output):
            (shutil.move if kind == "rename" else shutil.copy)(path, place)
    elif kind == "foreign":
        place = output / random.choice(FOLDERS) / random.choice(NAMES)
        if _is_free(place, output):
            place.write_bytes(
                random.choice([b"", b"theirs", b"PAR1", b"PAR1" + b"\x00" * 40 + b"PAR1", b"\x00" * 5000])
            )
    elif kind == "link":
        path = random.choice([path, output / "data", output / "_run", output / "_run" / "replicas"])
        if path.exists() and not path.is_symlink():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            path.symlink_to(random.choice([outside / "precious", outside, path, output / "nowhere", Path("..")]))
    elif path.suffix == ".parquet" and path.is_file():
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError, ValueError):
            return
        name = random.choice(table.column_names)
        place = table.column_names.index(name)
        column = random.choice(
            [pa.nulls(table.num_rows), pa.array([2**62] * table.num_rows), pa.array(["\0é"] * table.num_rows)]
        )
        changed = random.choice([table.set_column(place, name, column), table.drop_columns([name]), table.slice(0, 1)])
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


def _is_free(place: Path, output: Path) -> bool:
    """Make the place's folder; is there nothing in the place, and does no link lead out of the output?"""
    place.parent.mkdir(parents=True, exist_ok=True)
    inside = place.parent.resolve().is_relative_to(output.resolve())
    return inside and not place.exists() and not place.is_symlink()


def _changed(random: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        return {**value, key: _changed(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        return [*value[:place], _changed(random, value[place]), *value[place + 1 :]]
    return random.choice(NUMBERS)


def others_files(output: Path, own: dict[str, bytes]) -> dict[str, bytes]:
    """The content of each file that no run wrote: another name, or another content than the run's."""
    return {
        str(path): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and not path.is_symlink() and _is_foreign(path, output, own)
    }


def _is_foreign(path: Path, output: Path, own: dict[str, bytes]) -> bool:
    name = os.path.relpath(path, output)
    return name not in own and path.name in (*NAMES, "inside.txt") and not name.endswith("shard-000007.parquet")


def try_folder(random: Random, folder: Path, spec: JobSpec, whole: Path, own: dict[str, bytes]) -> Counter[str]:
    """How each command ends on a damaged copy of the run."""
    output = Path(spec.output.uri)
    shutil.rmtree(output, ignore_errors=True)
    if output.is_symlink() or output.exists():
        output.unlink()
    shutil.copytree(whole, output)
    outside = folder / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "precious").write_text("precious")
    for _ in range(random.randint(1, 3)):
        # A link that was laid before may lead nowhere.
        with contextlib.suppress(OSError):
            damage(random, output, outside)
    theirs = others_files(output, own)
    commands: dict[str, Callable[[], object]] = {
        "report": lambda: reports.report(str(output)),
        "validate": lambda: preview.validate(spec),
        "retry": lambda: runner.retry(str(output), KeepingListener()),
        "run": lambda: runner.run(spec, KeepingListener()),
        "run --fresh": lambda: runner.run(spec, KeepingListener(), fresh=True),
    }
    ends: Counter[str] = Counter()
    for name, call in commands.items():
        began = time.monotonic()
        ends[f"{name}: {_end(call)}"] += 1
        if time.monotonic() - began > LONGEST_SECONDS:
            raise AssertionError(f"{name} took {time.monotonic() - began:.0f} s")
    if (outside / "precious").read_text() != "precious" or len(list(outside.iterdir())) != 1:
        raise AssertionError("a command wrote through a link")
    if {name: Path(name).read_bytes() for name in theirs if Path(name).is_file()} != theirs:
        raise AssertionError("a file of others was changed")
    return ends


def _end(call: Callable[[], object]) -> str:
    try:
        call()
    except Started:
        return "would start"
    except BatchinferError as error:
        error.message.encode(errors="backslashreplace")
        if not error.message or len(error.message) > 3000 or not error.remedy:
            raise AssertionError(f"a message that does not help: {error.message[:300]!r}") from error
        return f"exit {error.exit_code}"
    return "done"


def try_lines(random: Random, folder: Path, spec: JobSpec, whole: Path, own: dict[str, bytes]) -> Counter[str]:
    """How a file of damaged lines is read, with and without its bad rows set aside."""
    place = folder / "lines"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    lines = []
    for number in range(random.choice([1, 3, 130])):
        row: dict[str, Any] = {"id": number, "text": f"text {number}", "n": number}
        if random.random() < 0.2:
            row[random.choice(["id", "text", "n", "new"])] = random.choice(
                [*NUMBERS, "\ud83d", {"a": 1}, [1, "x"], 1.5]
            )
        line = json.dumps(row, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
        if random.random() < 0.1:
            at = random.randrange(len(line))
            line = (
                line[:at]
                + random.choice([b"", b"\xff", b"\\", b"{", b'"', b"\x00"])
                + line[at + random.randint(0, 9) :]
            )
        lines.append(line)
    (place / "a.jsonl").write_bytes(random.choice([b"\n", b"\r\n", b"\n\n"]).join(lines))
    ends: Counter[str] = Counter()
    for on_bad_row in ("fail", "set_aside"):
        given = {"uri": str(place), "format": "jsonl", "id_column": "id", "columns": ["n"], "on_bad_row": on_bad_row}
        job = parse(json.dumps(spec.model_dump(mode="json") | {"input": given}))
        ends[f"{on_bad_row}: {_end(lambda job=job: _read(job))}"] += 1  # type: ignore[misc]
    return ends


def _read(job: JobSpec) -> None:
    manifest = build_manifest(job, needed_columns(job), Fingerprint(run_id="run", spec={}))
    maker, rows = PromptMaker(job.prompt), 0
    for _, table in read_shards(manifest.shards, manifest.schema, manifest.partitions, job.input):
        rows += table.num_rows
        for made in maker.prompts(table):
            (made.message if isinstance(made, RowError) else made.text).encode()
    if rows != manifest.rows:
        raise AssertionError(f"{rows} of {manifest.rows} rows")


KINDS = {"folder": try_folder, "lines": try_lines}


def fuzz(kind: str, inputs: int, seed: int, first: int = 0) -> tuple[Counter[str], float]:
    """How the inputs of a kind ended, and the seconds of the slowest; raises what is no end of an input."""
    ends: Counter[str] = Counter()
    slowest = 0.0

    def no_ray(*_: object) -> None:
        raise Started("the command would start now", "it does not here")

    with tempfile.TemporaryDirectory(prefix="hostile-") as name, mock.patch.object(ray_pipeline, "connected", no_ray):
        folder = Path(name)
        spec = make_run(folder)
        shutil.copytree(folder / "out", folder / "whole")
        own = {
            os.path.relpath(path, folder / "whole"): path.read_bytes()
            for path in (folder / "whole").rglob("*")
            if path.is_file()
        }
        for number in range(first, first + inputs):
            began = time.monotonic()
            try:
                ends += KINDS[kind](Random(f"{kind} {seed} {number}"), folder, spec, folder / "whole", own)
            except Exception:
                print(f"{kind} {number} of seed {seed}:", file=sys.stderr)
                raise
            slowest = max(slowest, time.monotonic() - began)
    return ends, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=400, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input, to begin in the middle")
    given = parser.parse_args()
    for kind in KINDS:
        ends, slowest = fuzz(kind, given.inputs, given.seed, given.first)
        print(f"{kind:>8}: {given.inputs:,} inputs, slowest {slowest:.2f} s, {dict(sorted(ends.items()))}", flush=True)


if __name__ == "__main__":
    main()
