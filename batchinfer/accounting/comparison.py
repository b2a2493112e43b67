"""Which of several variants of a job to take: paired tests, the Pareto front, and the rule of the choice. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from batchinfer.accounting.break_even import ApiComparison
from batchinfer.accounting.part import Part
from batchinfer.accounting.report import Accuracy
from batchinfer.accounting.scores import Judged, Judging, PairedScores
from batchinfer.accounting.significance import holm, mcnemar, paired_interval
from batchinfer.catalog import Score
from batchinfer.planner import Interval


class Paired(Part):
    """Two variants on the same rows. Differences are shares of the rows, -1 to 1, of this variant minus the other."""

    other: str
    """The name of the other variant."""
    rows: int
    """Rows that both were compared on."""
    only_this: int
    """Rows that only this variant has right."""
    only_other: int
    """Rows that only the other variant has right."""
    difference: float
    """The difference in accuracy."""
    low: float
    """The lower end of its 95% interval (Agresti and Min 2005)."""
    high: float
    """The upper end of its 95% interval."""
    p_value: float
    """McNemar's exact test, two-sided: the probability of such a difference if both are equally often right."""
    p_adjusted: float
    """`p_value` by Holm's method, for as many tests as there are variants beside the other."""


class Facts(Part):
    """What the catalog or the checkpoint says of a variant's model. null: not known."""

    parameters: int | None = None
    """Weights, all experts of a mixture included."""
    context: int | None = None
    """The longest sequence in tokens."""
    licence: str | None = None
    """The licence's name."""
    commercial_use: bool | None = None
    """Whether it allows commercial use. null: it depends, or it is not known."""
    scores: tuple[Score, ...] = ()
    """Published scores of the model."""


class Planned(Part):
    """What all rows of the job would take with a variant."""

    accelerator: str
    """The device."""
    quantization: str
    """How the weights are quantized."""
    replicas: int
    """Replicas."""
    gpus_per_replica: int
    """GPUs of a replica; 0 on the CPU."""
    rows: int | None
    """Rows of the whole job."""
    hours: Interval | None
    """Hours for all of them. null: not known before a sample ran."""
    cost_usd: Interval | None
    """Dollars for all of them."""
    tokens_per_second: Interval | None
    """Input and output tokens a second, of all replicas together."""
    input_tokens: float | None
    """Mean tokens of a prompt."""
    output_tokens: float | None
    """Mean tokens of an answer, over all `sampling.n`."""
    price_per_gpu_hour: float
    """Dollars for a device and hour."""
    price_source: str
    """Where the price comes from."""
    apis: ApiComparison | None = None
    """The same tokens at APIs, and the break-even. null: the job writes no text."""

    @property
    def usd_per_thousand_rows(self) -> float | None:
        """Dollars for a thousand rows of the whole job."""
        return None if self.cost_usd is None or not self.rows else self.cost_usd.mid / self.rows * 1000


class Sampled(Part):
    """What a variant did with the sample."""

    output: str
    """The folder of its run: `report`, `evaluate` and `retry` take it."""
    rows: int
    """Rows that it ran."""
    rows_failed: int
    """Rows that failed; each counts as a wrong answer."""
    errors: dict[str, int]
    """Failed rows by `error_code`."""
    cost_usd: float
    """Dollars of the sample, loading included."""
    load_seconds: float
    """Device-seconds of loading."""
    rows_per_second: float
    """Rows of the sample for each second in which the replica was ready."""
    tokens_per_second: float
    """Tokens of the sample, in and out, for each such second."""
    input_tokens: int
    """Tokens of its prompts."""
    output_tokens: int
    """Tokens of its answers."""
    latency_median: float | None
    """Seconds from a row's start in the engine to its answer, of half of the rows; rows run side by side."""
    latency_95: float | None
    """The same of 95% of the rows."""


class VariantResult(Part):
    """One variant of the job."""

    name: str
    """The values that it differs by."""
    settings: dict[str, Any]
    """The keys that it sets."""
    model: str
    """Its `model.source`."""
    facts: Facts
    """Facts of its model."""
    problem: str | None = None
    """Why it cannot run or did not. null: it can, or did."""
    remedy: str = ""
    """What would help."""
    planned: Planned | None = None
    """The whole job; after a sample by what the sample measured."""
    sampled: Sampled | None = None
    """The sample. null: it did not run."""
    accuracy: Accuracy | None = None
    """On the rows of the sample that have a right answer."""
    against_best: Paired | None = None
    """Beside the most accurate variant. null: it is that one, or there are no right answers."""
    judged: Judged | None = None
    """What a judge said of its answers. null: there is no judge."""
    judged_against_best: PairedScores | None = None
    """Beside the variant with the highest mean score. null: it is that one, or there is no judge."""
    agreement: Accuracy | None = None
    """Rows whose answer equals that of the first variant, with its interval."""
    usd_per_thousand_rows: float | None = None
    """Dollars for a thousand rows of the whole job."""
    usd_per_right_answer: float | None = None
    """Dollars of the whole job for each row that it would get right."""
    on_front: bool = False
    """Whether no other variant is both cheaper and better."""


class Comparison(Part):
    """The variants of a job beside each other."""

    job_name: str
    """The spec's `name`."""
    dry_run: bool
    """Whether the variants were only planned."""
    sample_rows: int
    """Rows of the sample, at most."""
    margin: float
    """How much worse than the most accurate the chosen variant may be: a share of the rows."""
    variants: tuple[VariantResult, ...]
    """In the order in which they were named."""
    agreement: dict[str, dict[str, float]] = Field(default_factory=dict)
    """For each two variants the share of rows with equal answers. Empty without a sample."""
    judge: Judging | None = None
    """The judge and its own run. null: there is none."""
    chosen: str | None = None
    """The variant to take. null: none can be told."""
    rule: str = ""
    """The rule of the choice, and what it led to, for a person."""


def against_best(best: str, right: Mapping[str, Sequence[bool]]) -> dict[str, Paired]:
    """Each variant but `best` beside it. `right`: for each variant whether it has the same rows right."""
    others = [name for name in right if name != best]
    counts = {
        name: (
            sum(a and not b for a, b in zip(right[name], right[best], strict=True)),
            sum(b and not a for a, b in zip(right[name], right[best], strict=True)),
        )
        for name in others
    }
    p_values = [mcnemar(*counts[name]) for name in others]
    made = {}
    for name, p_value, p_adjusted in zip(others, p_values, holm(p_values), strict=True):
        rows = len(right[name])
        low, high = paired_interval(*counts[name], rows)
        made[name] = Paired(
            other=best,
            rows=rows,
            only_this=counts[name][0],
            only_other=counts[name][1],
            difference=(counts[name][0] - counts[name][1]) / rows,
            low=low,
            high=high,
            p_value=p_value,
            p_adjusted=p_adjusted,
        )
    return made


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """The names whose (cost, quality) no other point beats: at most the cost, at least the quality, one of them
    better."""

    def beaten(name: str) -> bool:
        cost, quality = points[name]
        return any(c <= cost and q >= quality and (c < cost or q > quality) for c, q in points.values())

    return {name for name in points if not beaten(name)}


def concluded(made: Comparison) -> Comparison:
    """The comparison with the front and the choice."""
    by = quality_kind(made)
    points = {
        one.name: (one.usd_per_thousand_rows, seen)
        for one in made.variants
        if one.problem is None and one.usd_per_thousand_rows is not None and (seen := quality_of(one, by)) is not None
    }
    front = pareto_front({name: (cost, seen[0]) for name, (cost, seen) in points.items()})
    variants = tuple(one.model_copy(update={"on_front": one.name in front}) for one in made.variants)
    chosen, rule = _choice(made, by)
    return made.model_copy(update={"variants": variants, "chosen": chosen, "rule": rule})


Quality = Literal["accuracy", "score", "agreement"]
"""What tells variants apart: right answers, a judge, or answers equal to those of the first."""


def quality_kind(made: Comparison) -> Quality:
    """Right answers if there are some, a judge's scores otherwise, and agreement without both."""
    if any(one.accuracy is not None for one in made.variants):
        return "accuracy"
    if any(one.judged is not None and one.judged.scored for one in made.variants):
        return "score"
    return "agreement"


def quality_of(one: VariantResult, by: Quality) -> tuple[float, float, float] | None:
    """A variant's quality, 0 to 1, with its 95% interval; None if it has none."""
    if by == "score":
        seen = one.judged
        if seen is None or seen.share is None or seen.share_low is None or seen.share_high is None:
            return None
        return seen.share, seen.share_low, seen.share_high
    shares = one.accuracy if by == "accuracy" else one.agreement
    return None if shares is None else (shares.accuracy, shares.low, shares.high)


def _choice(made: Comparison, by: Quality) -> tuple[str | None, str]:
    """The variant to take, and the rule."""
    priced = [one for one in made.variants if one.problem is None and one.usd_per_thousand_rows is not None]
    if not priced:
        remedy = "before a sample ran: leave --dry-run out" if made.dry_run else "for any of them"
        return None, f"No price can be told {remedy}."
    cheapest = min(priced, key=_usd)
    if made.dry_run:
        return None, (
            f"The cheapest by plan is {cheapest.name}. Which answers well enough, only a sample tells: leave --dry-run "
            "out."
        )
    if by != "agreement":
        return _best_within_margin(made, priced, by)
    alike = [one for one in priced if one.agreement is not None and one.agreement.low >= 1 - made.margin]
    if not alike:
        return None, "No right answers, and no answers to compare with those of the first variant: none can be told."
    rule = (
        f"No right answers: the cheapest variant that, with 95% confidence, gives the answer of the first one "
        f"({made.variants[0].name}) on at least {1 - made.margin:.1%} of the rows. Whether that one is right, the "
        "sample does not say."
    )
    return min(alike, key=_usd).name, rule


def _best_within_margin(made: Comparison, priced: Sequence[VariantResult], by: Quality) -> tuple[str | None, str]:
    """The cheapest that is not much worse than the best, by right answers or by a judge."""
    what, best_of = ("right answers", "the most accurate one") if by == "accuracy" else ("a judge", "the best scored")
    unit = "of the rows less accurate" if by == "accuracy" else "of the scale worse"
    compared = {one.name: seen[0] for one in priced if (seen := quality_of(one, by)) is not None}
    if not compared:
        return None, f"No variant with a price was compared by {what}."
    ranked = [one for one in priced if one.name in compared]
    good = [one for one in ranked if _worse(one, by) <= made.margin]
    taken = min(good or [max(ranked, key=lambda one: compared[one.name])], key=_usd)
    rule = f"The cheapest variant that is, with 95% confidence, at most {made.margin:.1%} {unit} than {best_of}."
    closer = [one for one in ranked if one not in good and _usd(one) < _usd(taken)]
    if closer:
        near = min(closer, key=lambda one: _worse(one, by))
        rule += f" {near.name} is cheaper, but may be {_worse(near, by):.1%} {unit}; a larger sample narrows that."
    return taken.name, rule


def _worse(one: VariantResult, by: Quality) -> float:
    """How much worse than the best a variant may be, with 95% confidence: a share of the rows or of the scale."""
    if by == "accuracy":
        return 0.0 if one.against_best is None else -one.against_best.low
    return 0.0 if one.judged_against_best is None else -one.judged_against_best.share_low


def _usd(one: VariantResult) -> float:
    assert one.usd_per_thousand_rows is not None
    return one.usd_per_thousand_rows
