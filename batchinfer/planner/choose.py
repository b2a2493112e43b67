"""Which layout runs: every candidate with its fit and estimate, the one taken, and why the others lost. Pure.

The cheapest fitting candidate that meets the deadline (`limits.max_runtime_hours`) is taken; if none meets it, the
fastest. Without a deadline, candidates within `SAME_MONEY` of the cheapest count as equally cheap, and the fastest
of them is taken: more replicas cost only their loading. Without rows to estimate from, the smallest fitting replica
is taken, without a pipeline if possible, in as many copies as the GPUs hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from batchinfer.catalog.accelerators import GIB, Accelerator
from batchinfer.catalog.shape import ModelShape
from batchinfer.jobspec import ReplicaRange
from batchinfer.planner.estimate import job_estimate, replica_speed
from batchinfer.planner.layout import Nodes, ReplicaLayout, layouts, machine_gpus, replicas_that_fit
from batchinfer.planner.memory import fit
from batchinfer.planner.quantize import Source, Weights
from batchinfer.planner.values import Candidate, EngineSettings, Estimate, Fit, Interval, Workload

SAME_MONEY = 0.05
"""Share of the cheapest cost. Each replica pays its own loading, so at 0 every job has one replica: 171 h on one of
four GPUs, instead of 43 h on four for 0.04% more money."""

UNKNOWN_PROMPT_TOKENS = 4096
"""Tokens of the longest prompt if no row was sampled. Lower, and 16-bit weights that leave almost no KV cache count as
fitting: at 256, Llama 70B on two H100s with a context of 2,931 tokens."""

START_SECONDS = Interval(low=30.0, mid=75.0, high=180.0)
"""Seconds of an engine's start without its weights: imports, compilation, graph capture. vLLM's logs say 40 to 120."""

LOAD_BYTES_PER_SECOND = Interval(low=0.3e9, mid=1.5e9, high=5e9)
"""Bytes/s at which each node loads weights: from a network disk (low), a local SSD (mid), the page cache (high)."""


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """The input of the search for a layout: the model, the GPUs, the work, and what the user has set.

    `needed_tokens`: the longest sequence that one replica must hold. `value_bytes`: bytes of a weight that is not
    quantized. `may_grow`: an autoscaler can add GPUs to `nodes`. `per_machine`: GPUs of one machine as it is rented.
    `by_machine`: whole machines are paid for (`resources.bill`).
    """

    shape: ModelShape
    source: Source
    accelerator: Accelerator
    accelerator_name: str
    nodes: Nodes
    settings: EngineSettings
    needed_tokens: int
    workload: Workload | None
    calibration: float | None
    price_per_gpu_hour: float
    deadline_hours: float | None
    replicas: int | ReplicaRange | None
    tensor: int | None
    pipeline: int | None
    value_bytes: float = 2.0
    may_grow: bool = False
    per_machine: int = 1
    by_machine: bool = False

    def charged(self, layout: ReplicaLayout, replicas: int) -> float:
        """Dollars for one used GPU and hour, with its share of GPUs that are paid for and idle (`by_machine`)."""
        if not self.by_machine:
            return self.price_per_gpu_hour
        paid = machine_gpus(layout.gpus, layout.nodes, replicas, self.per_machine)
        return self.price_per_gpu_hour * paid / (layout.gpus * replicas)

    @property
    def row_tokens(self) -> int:
        """Tokens of a typical sequence of the job."""
        if self.workload is None:
            return self.needed_tokens
        request = self.workload.of_sequences
        typical = request.input_tokens + request.output_tokens.mid
        return max(1, min(self.needed_tokens, round(typical)))

    def fit(self, weights: Weights, layout: ReplicaLayout) -> Fit:
        """The fit for typical sequences, with the shortfall for the longest needed one."""
        return self._fit(weights, layout, self.row_tokens, self.needed_tokens)

    def holds(self, weights: Weights, layout: ReplicaLayout, tokens: int) -> bool:
        """Whether one sequence of `tokens` tokens fits."""
        return self._fit(weights, layout, tokens, tokens).fits

    def _fit(self, weights: Weights, layout: ReplicaLayout, tokens: int, longest: int) -> Fit:
        of = (
            self.shape,
            weights.quantization,
            self.accelerator,
            layout.tensor,
            layout.pipeline,
            layout.expert_parallel,
        )
        made = fit(*of, self.settings, tokens, self.value_bytes)
        if longest == tokens:
            return made
        return made.model_copy(update={"shortfall": fit(*of, self.settings, longest, self.value_bytes).shortfall})


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate before the verdict."""

    weights: Weights
    layout: ReplicaLayout
    replicas: int
    fit: Fit
    estimate: Estimate | None

    @property
    def gpus(self) -> int:
        return self.layout.gpus * self.replicas


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """What runs, and every candidate with its verdict, the chosen one first."""

    taken: Option
    candidates: tuple[Candidate, ...]


def fitting_layouts(request: LayoutRequest, weights: Weights) -> list[ReplicaLayout]:
    """The layouts, within the GPUs at hand, that hold the model."""
    return [layout for layout in _layouts(request, weights) if request.fit(weights, layout).fits]


def _layouts(request: LayoutRequest, weights: Weights) -> Iterator[ReplicaLayout]:
    return layouts(
        request.shape,
        weights.quantization,
        request.nodes,
        lambda layout: request.fit(weights, layout).fits,
        request.tensor,
        request.pipeline,
    )


def choose(request: LayoutRequest, usable: list[Weights]) -> LayoutChoice | None:
    """Take a layout of the first of `usable` that fits; None if none does."""
    options = {weights: options_of(request, weights) for weights in usable}
    for weights in usable:
        fitting = [option for option in options[weights] if option.fit.fits]
        if not fitting:
            continue
        taken, why = _best(request, fitting)
        if not weights.verified:
            why += f"; {weights.checkpoint} is not verified to exist"
        failed = [_called(w) for w in usable[: usable.index(weights)]]
        if failed:
            why += f"; {', '.join(failed)} did not fit"
        others = [option for option in options[weights] if option is not taken]
        for other in usable:
            if other is not weights:
                others += _shown(request, options[other])
        made = [_candidate(taken, f"chosen: {why}"), *(_candidate(o, _lost(request, taken, o)) for o in others)]
        return LayoutChoice(taken, tuple(made))
    return None


def _shown(request: LayoutRequest, options: list[Option]) -> list[Option]:
    """The options to show of weights that are not taken: the best one, or all if none fits."""
    fitting = [option for option in options if option.fit.fits]
    return [_best(request, fitting)[0]] if fitting else options


def options_of(request: LayoutRequest, weights: Weights) -> list[Option]:
    """Each layout with each number of replicas worth comparing; a layout that does not fit is listed once."""
    made = []
    for layout in _layouts(request, weights):
        of = request.fit(weights, layout)
        if not of.fits:
            made.append(Option(weights, layout, 1, of, None))
            continue
        made += [
            Option(weights, layout, count, of, _estimate(request, weights, layout, of, count))
            for count in _replica_counts(request, layout)
        ]
    return made


def _replica_counts(request: LayoutRequest, layout: ReplicaLayout) -> list[int]:
    """1, 2, 4 ... and as many as the GPUs hold; or the number that the user set, none if the GPUs cannot hold it."""
    most = replicas_that_fit(layout, request.nodes)
    asked = request.replicas
    if asked is not None:
        low, high = (asked, asked) if isinstance(asked, int) else (asked.min, asked.max)
        return [high] if low <= most or request.may_grow else []
    if request.workload is None:
        return [most]
    return sorted({min(most, 2**i) for i in range(most.bit_length() + 1)})


def _estimate(
    request: LayoutRequest, weights: Weights, layout: ReplicaLayout, of: Fit, replicas: int
) -> Estimate | None:
    if request.workload is None:
        return None
    share = request.workload.model_copy(update={"rows": -(-request.workload.rows // replicas)})
    outputs = request.workload.output_tokens
    low, mid, high = (
        replica_speed(
            request.shape,
            weights.quantization,
            request.accelerator,
            layout.tensor,
            layout.pipeline,
            of,
            request.settings,
            share.model_copy(update={"output_tokens": Interval(low=length, mid=length, high=length)}),
        )
        for length in (outputs.low, outputs.mid, outputs.high)
    )
    return job_estimate(
        mid,
        replicas,
        layout.gpus,
        request.workload,
        request.charged(layout, replicas),
        load_seconds(of.weight_bytes_per_gpu * layout.gpus / layout.nodes),
        request.calibration,
        ends=(low, high),
    )


def load_seconds(bytes_per_node: float) -> Interval:
    """Seconds from the start of a replica to its first row."""
    return Interval(
        low=START_SECONDS.low + bytes_per_node / LOAD_BYTES_PER_SECOND.high,
        mid=START_SECONDS.mid + bytes_per_node / LOAD_BYTES_PER_SECOND.mid,
        high=START_SECONDS.high + bytes_per_node / LOAD_BYTES_PER_SECOND.low,
    )


def _best(request: LayoutRequest, fitting: list[Option]) -> tuple[Option, str]:
    """The option to take and why. See the head of this file."""
    if any(option.estimate is None for option in fitting):
        # Tensor parallel before pipeline: no stage waits for another.
        least = min(fitting, key=lambda o: (o.layout.nodes, o.layout.pipeline, o.layout.gpus, -o.replicas))
        return least, "the smallest replica that fits"
    deadline = request.deadline_hours
    in_time = fitting if deadline is None else [o for o in fitting if _hours(o) <= deadline]
    if not in_time:
        return min(fitting, key=lambda o: (_hours(o), _cost(o))), f"the fastest; none meets the {deadline:g} h deadline"
    cheapest = min(in_time, key=lambda o: (_cost(o), _hours(o)))
    if deadline is not None:
        return cheapest, f"the cheapest that meets the {deadline:g} h deadline"
    same = [o for o in in_time if _cost(o) <= _cost(cheapest) * (1 + SAME_MONEY)]
    fastest = min(same, key=lambda o: (_hours(o), _cost(o)))
    return fastest, "the cheapest" if fastest is cheapest else f"the fastest within {SAME_MONEY:.0%} of the cheapest"


def _lost(request: LayoutRequest, taken: Option, other: Option) -> str:
    """Why `other` was not taken."""
    if not other.fit.fits:
        return f"does not fit: {other.fit.shortfall / GIB:.1f} GiB short on each GPU"
    if other.weights is not taken.weights:
        at = "" if other.estimate is None else f" at ${_cost(other):,.2f}"
        kept, name = _called(taken.weights), other.weights.quantization.name
        return f"fits{at}, but auto keeps {kept} where it fits: set model.quantization to {name} for this"
    if other.estimate is None or taken.estimate is None:
        if other.layout.pipeline > taken.layout.pipeline:
            return "a longer pipeline, whose stages wait for each other"
        return f"takes {other.layout.gpus - taken.layout.gpus} more GPU(s) for each replica"
    if request.deadline_hours is not None and _hours(other) > request.deadline_hours:
        return f"slower than the deadline: {_hours(other):.2g} h"
    if _cost(other) > _cost(taken):
        return f"dearer: ${_cost(other):,.2f}"
    return f"slower: {_hours(other):.2g} h"


def _called(weights: Weights) -> str:
    return "16 bits" if weights.quantization.name == "none" else weights.quantization.name


def _hours(option: Option) -> float:
    assert option.estimate is not None
    return option.estimate.hours.mid


def _cost(option: Option) -> float:
    assert option.estimate is not None
    return option.estimate.cost_usd.mid


def _candidate(option: Option, verdict: str) -> Candidate:
    return Candidate(
        quantization=option.weights.quantization.name,
        checkpoint=option.weights.checkpoint,
        tensor_parallel=option.layout.tensor,
        pipeline_parallel=option.layout.pipeline,
        expert_parallel=option.layout.expert_parallel,
        replicas=option.replicas,
        num_gpus=option.layout.gpus,
        nodes_per_replica=option.layout.nodes,
        fit=option.fit,
        estimate=option.estimate,
        verdict=verdict,
    )


def longest_sequence(
    request: LayoutRequest, weights: Weights, layout: ReplicaLayout, limit: int, margin: float = 1.0
) -> int:
    """The most tokens, up to `limit`, for which a sequence `margin` times as long still fits; 0 if none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if request.holds(weights, layout, max(1, int(middle * margin))):
            low = middle
        else:
            high = middle - 1
    return low
