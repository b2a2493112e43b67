"""The tail of a job on 64 replicas: how far its end lies above the lower bound, simulated.

    python benchmarks/tail.py [ROWS ...]        (default: 100000 1000000)

What is simulated is the cluster; what is tested is the package: it cuts the input
(`shard_sizes`, `manifest.cut`), says in which order shards begin (`in_order`) and how many a replica gets
(`shards_in_flight`, `shards_held`). Ray Data's rule is modelled: a shard goes to the replica that holds fewest; each
holds so many and works on the first of them. A replica is continuous batching over `SLOTS` rows, first come, first
served. See RESULTS.md for what is assumed.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from batchinfer.input.cutting import cut
from batchinfer.input.manifest import InputFile, RowGroup, Segment, Shard, read_together
from batchinfer.input.shard_sizes import in_order, readers, rows_per_shard, shard_sizes, shards_held
from batchinfer.planner import shards_in_flight
from batchinfer.storage import Entry

REPLICAS = 64
SLOTS = 256
STEP_SECONDS = 0.008
"""A decode step without rows: weights are read, kernels launched. With ROW_SECONDS an 8B model on an H100."""
ROW_SECONDS = 0.000035
PREFILL_SECONDS = 0.00004
"""Of a prompt's token: 25,000 a second."""
SHARD_SECONDS = 0.04
"""Of the driver, one shard at a time: Ray's scheduling as measured (RESULTS.md, the pipeline alone)."""
READ_ROWS_PER_SECOND = 50_000.0
ROWS_PER_GROUP = 10_000
ROW_BY_ROW_AT_MOST = 100_000
SLOW, SLOWER = 0.05, 1.5
"""Share of the replicas that are slow, and how much."""


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths: tokens in and out of each row."""

    name: str
    max_tokens: int
    draw: Callable[[np.random.Generator, int], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def _lognormal(mean_log: float, sigma: float, low: int, high: int) -> Callable[[np.random.Generator, int], npt.NDArray]:
    return lambda rng, n: np.clip(rng.lognormal(mean_log, sigma, n), low, high).astype(np.int64)


def _independent(prompt: Callable, answer: Callable) -> Callable:
    return lambda rng, n: (prompt(rng, n), answer(rng, n))


LENGTHS = (
    # Medians of the coding trace of Azure's LLM services: 1,500 in, 13 out (Splitwise, ISCA 2024, section III). The
    # spreads (sigma) here and below are ours.
    Lengths("short", 64, _independent(_lognormal(np.log(1500), 0.6, 16, 7000), _lognormal(np.log(13), 0.7, 1, 64))),
    # Means of ShareGPT: 161 in, 338 out (PagedAttention, SOSP 2023, figure 11): mean = exp(mu + sigma^2 / 2).
    Lengths("long", 2048, _independent(
        _lognormal(np.log(161) - 0.5, 1.0, 4, 2048), _lognormal(np.log(338) - 0.5, 1.0, 1, 2048))),
    # Summaries of 64 to 1,024 tokens, as issue 6 asks.
    Lengths("mixed", 1024, _independent(
        _lognormal(np.log(1000), 0.7, 16, 6000), lambda rng, n: rng.integers(64, 1025, n))),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is run. `late`: the prompts of the last tenth of the rows are eight times as long."""

    lengths: Lengths
    rows: int
    faults: bool
    seed: int = 0
    late: bool = False

    def tokens(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens of each row's prompt and answer."""
        prompt, answer = self.lengths.draw(np.random.default_rng(self.seed), self.rows)
        if self.late:
            prompt[-(self.rows // 10) :] *= 8
        return prompt, answer

    def slowness(self) -> list[float]:
        """Seconds of each replica for what takes others one."""
        slow = round(SLOW * REPLICAS) if self.faults else 0
        places = np.random.default_rng(self.seed + 1).permutation(REPLICAS)
        return [SLOWER if place < slow else 1.0 for place in places]


@dataclass(slots=True)
class Replica:
    """Rows of shards in a continuous batch: `running` holds (step at which it ends, shard) of each row.

    `slowness`: its seconds for what takes others one. `load` gives the seconds of prefill and the steps of decoding of
    each row of a shard.
    """

    slowness: float
    in_flight: int
    load: Callable[[int], Iterator[tuple[float, int]]]
    now: float = 0.0
    step: float = 0.0
    held: list[int] = field(default_factory=list)
    coming: deque[tuple[float, int]] = field(default_factory=deque)
    waiting: deque[int] = field(default_factory=deque)
    rows: deque[tuple[float, int, int]] = field(default_factory=deque)
    running: list[tuple[float, int]] = field(default_factory=list)
    left: dict[int, int] = field(default_factory=dict)

    def hand(self, arrival: float, shard: int) -> None:
        """A shard is on its way here."""
        self.held.append(shard)
        self.coming.append((arrival, shard))

    def drop(self) -> list[int]:
        """It dies: what it held."""
        held, self.held = self.held, []
        for queue in (self.coming, self.waiting, self.rows, self.running, self.left):
            queue.clear()
        return held

    def _admit(self) -> None:
        while self.coming and self.coming[0][0] <= self.now:
            self.waiting.append(self.coming.popleft()[1])
        while self.waiting and len(self.left) < self.in_flight:
            shard = self.waiting.popleft()
            before = len(self.rows)
            self.rows.extend((prefill * self.slowness, steps, shard) for prefill, steps in self.load(shard))
            self.left[shard] = len(self.rows) - before
        while self.rows and len(self.running) < SLOTS:
            prefill, steps, shard = self.rows.popleft()
            self.now += prefill
            heapq.heappush(self.running, (self.step + steps, shard))

    def advance(self, until: float) -> int | None:
        """Run up to the next shard that ends, which it returns, or to the time `until`."""
        while True:
            self._admit()
            barrier = min(until, self.coming[0][0]) if self.coming else until
            if not self.running:
                if barrier == math.inf:
                    return None
                self.now = max(self.now, barrier)
            elif (shard := self._decode(barrier)) is not None:
                return shard
            if self.now >= until:
                return None

    def _decode(self, barrier: float) -> int | None:
        running, rows, left = self.running, self.rows, self.left
        now, step = self.now, self.step
        while running:
            pace = (STEP_SECONDS + ROW_SECONDS * len(running)) * self.slowness
            end, shard = running[0]
            then = now + (end - step) * pace
            if then > barrier:
                if barrier > now:
                    step += (barrier - now) / pace
                    now = barrier
                break
            now, step = then, end
            if rows:
                prefill, steps, other = rows.popleft()
                now += prefill
                heapq.heapreplace(running, (end + steps, other))
            else:
                heapq.heappop(running)
            left[shard] -= 1
            if not left[shard]:
                del left[shard]
                self.held.remove(shard)
                self.now, self.step = now, step
                return shard
        self.now, self.step = now, step
        return None


class Cluster:
    """The replicas, and the driver that deals shards out, as Ray Data does, in the order of `queue`."""

    def __init__(self, case: Case, load: Callable[[int], Iterator[tuple[float, int]]], way: Way) -> None:
        self._replicas = [Replica(slowness, way.in_flight, load) for slowness in case.slowness()]
        self._queue = deque(way.order)
        self._way = way
        self._driver = 0.0
        self.makespan = 0.0

    def _deal(self, now: float) -> None:
        while self._queue:
            replica = min(self._replicas, key=lambda one: len(one.held))
            if len(replica.held) >= self._way.held:
                return
            self._driver = max(self._driver, now) + self._way.shard_seconds
            replica.hand(self._driver, self._queue.popleft())

    def run(self, until: float) -> None:
        """Go on up to a time."""
        events: list[tuple[float, int]] = []

        def go_on(place: int) -> None:
            if self._replicas[place].advance(until) is not None:
                heapq.heappush(events, (self._replicas[place].now, place))

        self._deal(0.0)
        for place in range(len(self._replicas)):
            go_on(place)
        while events:
            now, place = heapq.heappop(events)
            self.makespan = max(self.makespan, now)
            self._deal(now)
            go_on(place)

    def lose(self, now: float) -> None:
        """The last replica that is not slow dies; what it held runs again elsewhere, before anything else."""
        place = max(i for i, replica in enumerate(self._replicas) if replica.slowness == 1.0)
        self._queue.extendleft(reversed(self._replicas.pop(place).drop()))
        self._deal(now)


@dataclass(frozen=True)
class Way:
    """A way to deal the rows out: shards in an order, and how many of them a replica works on and holds at most."""

    shards: Sequence[Shard]
    order: Sequence[int]
    in_flight: int
    held: int
    shard_seconds: float = SHARD_SECONDS


def input_files(prompt: npt.NDArray[np.int64]) -> list[InputFile]:
    """One file, whose row groups know their bytes: four of them a token."""
    edges = range(0, len(prompt), ROWS_PER_GROUP)
    groups = [RowGroup(len(part), int(part.sum()) * 4) for part in (prompt[i : i + ROWS_PER_GROUP] for i in edges)]
    return [InputFile(Entry("/in", 0, "t"), tuple(groups))]


def naive(case: Case, prompt: npt.NDArray[np.int64]) -> Way:
    """As before: equal shards, in the order of the input."""
    rows = rows_per_shard(case.rows, "auto", case.lengths.max_tokens)
    shards = cut(input_files(prompt), lambda first_row: rows, 64 * 2**20)
    in_flight = max(3, min(16, 1 + -(-2 * SLOTS // rows)))
    return Way(shards, read_order(list(read_together(shards)), REPLICAS), in_flight, in_flight + 2)


def ours(case: Case, prompt: npt.NDArray[np.int64], replicas: int | Literal["auto"] = REPLICAS) -> Way:
    """What the package does where the spec says `replicas`."""
    files, tokens = input_files(prompt), case.lengths.max_tokens
    sizes = shard_sizes(case.rows, int(prompt.sum()) * 4, "auto", tokens, replicas)
    shards = cut(files, sizes, 64 * 2**20)
    # As the runner decides it.
    in_flight = shards_in_flight(SLOTS, max(shard.rows for shard in shards), sharing=False)
    return Way(shards, read_order(in_order(shards, tokens), readers(REPLICAS)), in_flight, shards_held(in_flight))


def row_by_row(case: Case, order: npt.NDArray[np.int64]) -> Way:
    """Each row by itself to the next free slot, at no cost: the best that dealing can do in this order."""
    entry = Entry("/in", 0, "t")
    shards = [Shard(i, i, (Segment(entry, 0, i, i, 1, 0, 0),)) for i in range(case.rows)]
    return Way(shards, order.tolist(), SLOTS, SLOTS, 0.0)


def read_order(groups: Sequence[Sequence[Shard]], at_once: int) -> list[int]:
    """The order in which shards come from `at_once` readers, each of which reads a list at a time."""
    free = [0.0] * at_once
    found = []
    for group in groups:
        at = heapq.heappop(free)
        for shard in group:
            at += shard.rows / READ_ROWS_PER_SECOND
            found.append((at, shard.shard_id))
        heapq.heappush(free, at)
    return [shard for _, shard in sorted(found)]


@dataclass(frozen=True)
class Result:
    """Seconds, and how many shards they took."""

    makespan: float
    bound: float
    shards: int

    @property
    def ratio(self) -> float:
        return self.makespan / self.bound


def simulate(case: Case, way_of: Callable[[Case, npt.NDArray[np.int64]], Way]) -> Result:
    """Run a case one way."""
    prompt, answer = case.tokens()
    way = way_of(case, prompt)
    seconds = prompt * PREFILL_SECONDS

    def load(number: int) -> Iterator[tuple[float, int]]:
        shard = way.shards[number]
        span = slice(shard.first_row, shard.first_row + shard.rows)
        return zip(seconds[span].tolist(), answer[span].tolist(), strict=True)

    work = float((seconds + answer * (STEP_SECONDS / SLOTS + ROW_SECONDS)).sum())
    longest = float((seconds + answer * (STEP_SECONDS + ROW_SECONDS)).max())
    speed = sum(1 / slowness for slowness in case.slowness())
    cluster, bound = Cluster(case, load, way), work / speed
    if case.faults:
        death = bound / 2
        cluster.run(death)
        cluster.lose(death)
        bound = death + (work - death * speed) / (speed - 1)
    cluster.run(math.inf)
    return Result(cluster.makespan, max(bound, longest), len(way.shards))


def cases(rows: int) -> Iterator[tuple[str, Case]]:
    """Every case of a size, with what stands in the table for it."""
    for lengths in LENGTHS:
        for faults in (False, True):
            yield f"{lengths.name}{', faults' if faults else ''}", Case(lengths, rows, faults)
    yield "short, the last tenth long", Case(LENGTHS[0], rows, False, late=True)


def main() -> None:
    """Simulate every case and print a table."""
    sizes = [int(argument) for argument in sys.argv[1:]] or [100_000, 1_000_000]
    print("|rows|case|bound s|shards before|ratio before|shards|ratio|ratio, replicas: auto|row by row|")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for rows in sizes:
        for name, case in cases(rows):
            before, now = simulate(case, naive), simulate(case, ours)
            auto = simulate(case, lambda case, prompt: ours(case, prompt, "auto"))
            alone = f"{simulate(case, one_by_one).ratio:.3f}" if rows <= ROW_BY_ROW_AT_MOST else ""
            print(
                f"|{rows:,}|{name}|{now.bound:,.1f}|{before.shards:,}|{before.ratio:.3f}"
                f"|{now.shards:,}|{now.ratio:.3f}|{auto.ratio:.3f}|{alone}|",
                flush=True,
            )


def one_by_one(case: Case, prompt: npt.NDArray[np.int64]) -> Way:
    """Row by row in the order of the input."""
    return row_by_row(case, np.arange(case.rows))


if __name__ == "__main__":
    main()
