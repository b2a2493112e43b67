"""The keys of `resources`, `shards` and `limits`: what a run takes, and when it stops by itself."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from batchinfer.jobspec.base import Keys, Place, Text

AcceleratorName = Literal[
    "auto", "cpu", "T4", "A10", "A10G", "L4", "L40S", "A100-40GB", "A100-80GB", "H100", "H100-PCIe", "H200",
    "B200", "B300", "GB200", "GB300", "MI300X", "MI325X", "MI355X", "RTX4090", "RTX5090",
]  # fmt: skip


class ReplicaRange(Keys):
    """A number of replicas that follows the load, as in `{min: 1, max: 8}`."""

    min: int = Field(ge=1)
    """The fewest replicas, which are started at once."""
    max: int = Field(ge=1)
    """The most replicas. Must not be below `min`."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is above max")
        return self


class ResourcesSpec(Keys):
    """The devices that the job runs on. A replica of the model needs `tensor_parallel` x `pipeline_parallel` GPUs. May
    change when a run resumes.
    """

    accelerator: AcceleratorName = "auto"
    """The device: a GPU by its catalog name (`batchinfer gpus` lists them), or `cpu`.

    `auto` is the GPU of the cluster, or the CPU if there is none. A plan for GPUs that are not at hand needs the
    name."""
    replicas: Literal["auto"] | Annotated[int, Field(ge=1)] | ReplicaRange = "auto"
    """How many copies of the model run at the same time: a number, or `{min: N, max: N}` for an autoscaled one.

    `auto` lets the plan choose; on a CPU that is 1. `shards.rows: auto` cuts the input for this many."""
    tensor_parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """How many GPUs of one node share each layer. `auto` lets the plan choose; on a CPU that is 1.

    Must divide the model's attention heads. On a CPU it is a number of processes."""
    pipeline_parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """How many stages the model's layers are split into; stages may lie on different nodes.

    `auto` lets the plan choose; on a CPU that is 1. Must not exceed the number of layers."""
    price_per_gpu_hour: float | None = Field(default=None, ge=0)
    """Dollars for one GPU and hour, or for one replica and hour on a CPU.

    null: the list price of the catalog, which `batchinfer gpus` shows with its source and date."""
    bill: Literal["gpu", "machine"] = "gpu"
    """What is paid for: the GPUs that replicas use, or the whole machines that these GPUs are in.

    With `machine`, the GPUs that a layout leaves idle are charged to those it uses: a replica of 6 GPUs on a machine of
    8 costs as much as 8. The plan then compares layouts by that. Take it if no other job can use the idle ones."""


class ShardsSpec(Keys):
    """How the input is cut into shards: the unit that is run, committed and resumed."""

    rows: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Rows of a shard.

    `auto` aims at 100 shards of 256 to 8192 rows, fewer rows where `sampling.max_tokens` is large. The shards shrink
    towards the end of the input, so that all replicas end together."""
    max_bytes: int = Field(default=64 * 2**20, ge=1)
    """The most bytes of a shard, counted over the columns that are read. The default is 64 MiB.

    A shard with larger rows has fewer of them, down to one."""


class MonthlyLimit(Keys):
    """A budget for a month, over all runs with one value of a label."""

    label: Text
    """The label's name, as `team`. The spec's own `labels` has the value."""
    usd: float = Field(ge=0)
    """Dollars for a calendar month in UTC."""
    within: tuple[Place, ...] = ()
    """The folders or buckets whose runs count, at any depth. Empty: the folder that `output.uri` lies in."""


class LimitsSpec(Keys):
    """When the run stops by itself. May change when a run resumes."""

    max_cost_usd: float | None = Field(default=None, ge=0)
    """Dollars that the run may cost, over all commands that resumed it.

    A shard starts only if the remaining budget covers its estimated cost, based on finished shards. Shards in flight
    are committed, and the command ends with exit code 4, also if they were the last ones and the run cost more. Unless
    the budget is twice the plan's estimate, a replica runs one shard at a time: a run passes its budget by at most one
    shard a replica. null: no limit."""
    monthly: MonthlyLimit | None = None
    """A month's budget for all runs with this job's value of a label, as `{label: team, usd: 500}`.

    Checked before a run begins, by what `batchinfer costs` would say: if the month's runs cost as much already, the
    command ends with exit code 4. Otherwise what is left of the month limits the run as `max_cost_usd` does. Runs that
    begin at the same time do not see each other's cost. null: no budget."""
    max_runtime_hours: float | None = Field(default=None, ge=0)
    """Hours that this command may run; a command that resumes the run has as many again.

    A shard starts only if it would end in time, based on finished shards; the command ends as for `max_cost_usd`. For
    the plan it is the deadline: the cheapest layout that meets it is chosen. null: no limit."""
    max_error_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    """The share of failed rows, 0 to 1, above which a finished run ends with exit code 3."""
    max_engine_restarts: int = Field(default=20, ge=0)
    """How often each replica may restart its engine before the run ends with exit code 1.

    A row that kills the engine uses 3 to 10 restarts until it is found and set aside as `engine_killed`."""
    engine_timeout_seconds: float = Field(default=600.0, gt=0)
    """Seconds without a step of the engine, while it has rows, after which it is killed and restarted."""
    load_timeout_seconds: float = Field(default=3600.0, gt=0)
    """Seconds that an engine may take to load, with the download of its model, before the load counts as failed."""
    max_lost_workers: int = Field(default=100, ge=0)
    """How often each replica may be lost with its process or machine before the run ends with exit code 1."""
