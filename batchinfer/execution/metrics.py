"""A run as Ray's metrics, which every node serves to Prometheus, each name with the prefix `ray_`.

`increments` computes what a commit adds, from the shard's record alone; `Metrics` passes the values to Ray in the
driver. cluster/grafana-dashboard.json shows the metrics.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ray.util import metrics as ray_metrics

from batchinfer.accounting.records import ReplicaRecord, ShardRecord
from batchinfer.execution.job import RunningJob

LABELS = ("job", "run", "model", "accelerator")

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "batchinfer_rows_total": ("Rows that were committed", ()),
        "batchinfer_rows_failed_total": ("Rows among them that have an error", ("error_code",)),
        "batchinfer_tokens_total": ("Tokens, by direction: input, cached (of the input) and output", ("direction",)),
        "batchinfer_shards_total": ("Shards that were committed", ()),
        "batchinfer_device_seconds_total": ("Device-seconds that committed shards took", ()),
        "batchinfer_cost_usd_total": ("What they cost, in US dollars", ()),
    }
)
"""Name: what the counter counts, and its labels beside LABELS."""

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "batchinfer_shards_in_flight": ("Shards that replicas are working on", ()),
        "batchinfer_replicas": ("Replicas, by state: loading, ready, ended", ("state",)),
    }
)
"""Name: what the gauge shows, and its labels beside LABELS."""

STATES = ("loading", "ready", "ended")

Sample = tuple[str, Mapping[str, str], float]
"""A metric's name, its labels beside LABELS, and the value."""


def labels_of(job: RunningJob) -> dict[str, str]:
    """LABELS of the run."""
    return {"job": job.spec.name, "run": job.run_id, "model": job.plan.model, "accelerator": job.plan.accelerator}


def increments(record: ShardRecord) -> list[Sample]:
    """What the commit of one shard adds to the counters.

    A retry adds its tokens, seconds and dollars, but no rows and no failures: both were counted when the rows failed.
    """
    retried = record.generation > 0
    found: list[Sample] = [
        ("batchinfer_rows_total", {}, 0 if retried else record.rows),
        ("batchinfer_tokens_total", {"direction": "input"}, record.input_tokens),
        ("batchinfer_tokens_total", {"direction": "cached"}, record.cached_tokens),
        ("batchinfer_tokens_total", {"direction": "output"}, record.output_tokens),
        ("batchinfer_shards_total", {}, 0 if retried else 1),
        ("batchinfer_device_seconds_total", {}, record.gpu_seconds),
        ("batchinfer_cost_usd_total", {}, record.cost_usd),
    ]
    if not retried:
        found += [
            ("batchinfer_rows_failed_total", {"error_code": code}, n) for code, n in sorted(record.errors.items())
        ]
    return found


def levels(journals: Iterable[ReplicaRecord]) -> list[Sample]:
    """The gauges as of the replicas' journals: shards in flight, and the number of replicas in each state."""
    states: Counts[str] = Counts()
    in_flight = 0
    for journal in journals:
        state = _state(journal)
        states[state] += 1
        if state != "ended":
            in_flight += len(journal.shards_in_flight)
    shown: list[Sample] = [("batchinfer_replicas", {"state": state}, states[state]) for state in STATES]
    return [("batchinfer_shards_in_flight", {}, in_flight), *shown]


def _state(journal: ReplicaRecord) -> str:
    if journal.finished_at_us is not None:
        return "ended"
    return "loading" if journal.ready_at_us is None else "ready"


class Metrics:
    """The metrics of one run, in the driver's process, which is connected to Ray."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        """`labels`: LABELS of the run."""
        self._labels = dict(labels)
        self._counters = {n: ray_metrics.Counter(n, what, (*LABELS, *more)) for n, (what, more) in COUNTERS.items()}
        self._gauges = {n: ray_metrics.Gauge(n, what, (*LABELS, *more)) for n, (what, more) in GAUGES.items()}

    def committed(self, record: ShardRecord) -> None:
        """Count a commit that won."""
        for name, more, value in increments(record):
            # Ray refuses an increment of 0.
            if value > 0:
                self._counters[name].inc(value, {**self._labels, **more})

    def observed(self, journals: Iterable[ReplicaRecord]) -> None:
        """Set the gauges to the values of the journals."""
        for name, more, value in levels(journals):
            self._gauges[name].set(value, {**self._labels, **more})
