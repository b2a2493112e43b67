"""Runs on disk whose sessions had different prices, layouts and devices, written without an engine."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchinfer.execution.checks import Checked, check
from batchinfer.execution.reports import conclude
from batchinfer.execution.runner import _write_run_files
from batchinfer.rundir.commit import commit
from batchinfer.rundir.sessions import begin_session
from tests.support.builders import make_journal, make_plan, make_reading, make_record, make_spec, write_parquet

ROWS = 4
"""Rows of each shard."""


@dataclass
class PastReplica:
    """One replica: device-seconds of loading and idling, of each committed shard, and of what was lost."""

    begins_at: int
    """Seconds since 1970."""
    load: float = 8.0
    idle: float = 0.0
    work: Sequence[float] = ()
    waste: float = 0.0
    killed: bool = False
    journal_lost: bool = False
    """Its journal is gone: what its last commit says is all that is known. Only without waste."""

    @property
    def device_seconds(self) -> float:
        return self.load + self.idle + sum(self.work) + self.waste


@dataclass
class PastSession:
    """One command: its price and layout, and its replicas."""

    price: float
    replicas: Sequence[PastReplica] = ()
    accelerator: str = "H100"
    tensor_parallel: int = 1
    quantization: str = "none"
    command: Any = "run"
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def cost_usd(self) -> float:
        """The law: lifetime x devices x the session's price, over its replicas."""
        return sum(
            replica.device_seconds / self.tensor_parallel * self.tensor_parallel * self.price / 3600
            for replica in self.replicas
        )


def write_run(folder: Path, sessions: Sequence[PastSession], name: str = "a-job", **sections: Any) -> Checked:
    """A run below `folder` with these sessions: its input in `in`, its output in `NAME`."""
    shards = max(1, sum(len(replica.work) for session in sessions for replica in session.replicas))
    source = folder / f"in-{shards}"
    if not source.exists():
        rows = shards * ROWS
        write_parquet(source / "a.parquet", {"id": list(range(rows)), "text": ["x"] * rows})
    spec = make_spec(
        name=name,
        input={"uri": str(source), "id_column": "id"},
        output={"uri": str(folder / name)},
        shards={"rows": ROWS},
        **sections,
    )
    checked = check(spec, uuid.uuid4().hex[:12])
    run_id, layout = checked.manifest.fingerprint.run_id, checked.layout
    shard_id = 0
    for position, session in enumerate(sessions):
        shape = {
            "accelerator": session.accelerator,
            "tensor_parallel": session.tensor_parallel,
            "quantization": session.quantization,
        }
        plan = make_plan(
            **shape,
            num_gpus=session.tensor_parallel,
            price_per_gpu_hour=session.price,
            price_source=f"a list, session {position + 1}",
        )
        if position == 0:
            _write_run_files(layout, checked, plan)
        began = datetime.fromtimestamp(min((r.begins_at for r in session.replicas), default=0), UTC)
        number = begin_session(layout, session.command, plan, began)
        common = shape | {
            "run_id": run_id,
            "job_name": name,
            "num_gpus": session.tensor_parallel,
            "price_per_gpu_hour": session.price,
            "labels": session.labels,
            "session": number,
        }
        for replica in session.replicas:
            replica_id = uuid.uuid4().hex[:12]
            started = replica.begins_at * 10**6
            done = 0.0
            for seconds in replica.work:
                done += seconds
                # At the last commit only what comes after it is missing, which is nothing.
                at = started + round((replica.load + replica.idle + done) / session.tensor_parallel * 1e6)
                record = make_record(
                    shard_id,
                    replica_id=replica_id,
                    rows=ROWS,
                    gpu_seconds=seconds,
                    started_at_us=started,
                    finished_at_us=at,
                    meter=make_reading(at, load=replica.load, busy=done, idle=replica.idle),
                    **common,
                )
                ids = list(range(shard_id * ROWS, (shard_id + 1) * ROWS))
                table = pa.table({"id": ids, "output": ["x"] * ROWS, "error_code": pa.nulls(ROWS, pa.string())})
                assert commit(layout, table, record)
                shard_id += 1
            if replica.journal_lost and replica.work:
                continue
            end = started + round(replica.device_seconds / session.tensor_parallel * 1e6)
            journal = make_journal(
                replica_id,
                model="a-model",
                started_at_us=started,
                ready_at_us=started + round(replica.load / session.tensor_parallel * 1e6),
                finished_at_us=None if replica.killed else end,
                meter=make_reading(end, load=replica.load, busy=done + replica.waste, idle=replica.idle),
                price_source=plan.price_source,
                **common,
            )
            layout.storage.create(layout.journal(replica_id), journal.model_dump_json().encode())
    return checked


def end_run(checked: Checked) -> None:
    """Write the accounts and the report, as a command does at its end."""
    conclude(checked.layout, checked.spec, checked.manifest)
