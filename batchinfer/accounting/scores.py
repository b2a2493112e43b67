"""Scores of a judge: their mean, and what a difference between two variants on the same rows is worth. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinfer.accounting.money import money
from batchinfer.accounting.part import Part
from batchinfer.accounting.significance import difference_interval, holm, mean_interval, randomization_p
from batchinfer.planner import Interval


class Judged(Part):
    """What the judge said of a variant's answers."""

    rows: int
    """Rows of the sample that the judge was to score, or that had no answer."""
    scored: int
    """Rows with a score. A row without an answer has the scale's lowest."""
    without_answer: int
    """Rows whose request failed: each has the lowest score."""
    unscored: dict[str, int]
    """Answers of which the judge said no number of the scale, by the `error_code` of the judge's row. They are in no
    mean."""
    mean: float | None
    """The mean score. null: no row has one."""
    low: float | None
    """The lower end of the mean's 95% interval."""
    high: float | None
    """The upper end of the mean's 95% interval."""
    share: float | None
    """The mean as a share of the scale: 0 at its lowest number, 1 at its highest."""
    share_low: float | None
    """The lower end of the share's 95% interval."""
    share_high: float | None
    """The upper end of the share's 95% interval."""


class PairedScores(Part):
    """Two variants on the rows that have a score for both. Differences are this variant minus the other."""

    other: str
    """The name of the other variant."""
    rows: int
    """Rows with a score for both."""
    higher: int
    """Rows that score higher with this variant."""
    lower: int
    """Rows that score lower with it."""
    difference: float
    """The mean difference, in points of the scale."""
    low: float
    """The lower end of its 95% interval."""
    high: float
    """The upper end of its 95% interval."""
    share_low: float
    """The lower end as a share of the scale, -1 to 1."""
    p_value: float
    """Fisher's exact paired randomization test, two-sided: the probability of such a difference if each row's two
    scores could as well be swapped."""
    p_adjusted: float
    """`p_value` by Holm's method, for as many tests as there are variants beside the other."""


class Judging(Part):
    """The judge's own run over the answers of all variants, with its own cost."""

    model: str
    """Its `model.source`."""
    low: int
    """The lowest number of its scale."""
    high: int
    """The highest number of its scale."""
    output: str | None = None
    """The folder of its run: `report` and `costs` take it. null: it did not run."""
    answers: int = 0
    """Answers that it read; equal requests with equal answers run once."""
    unscored: int = 0
    """Answers without a number."""
    planned_usd: Interval | None = None
    """Dollars that a dry run expects. null: it ran, or nothing says how fast it is."""
    cost_usd: float | None = None
    """Dollars of its run, loading included. They are in no variant's cost."""
    input_tokens: int = 0
    """Tokens that it read."""
    output_tokens: int = 0
    """Tokens that it wrote."""


def judged(scores: Mapping[Any, int | None], failed: int, unscored: Mapping[str, int], low: int, high: int) -> Judged:
    """What the judge said of a variant. `scores`: for each row its score, the lowest if it has no answer, None if the
    judge said none. `failed`: rows without an answer."""
    told = [score for score in scores.values() if score is not None]
    mean = sum(told) / len(told) if told else None
    least, most = mean_interval(told, low, high) if told else (None, None)

    def share(value: float | None) -> float | None:
        return None if value is None else (value - low) / (high - low)

    return Judged(
        rows=len(scores),
        scored=len(told),
        without_answer=failed,
        unscored=dict(unscored),
        mean=mean,
        low=least,
        high=most,
        share=share(mean),
        share_low=share(least),
        share_high=share(most),
    )


def scores_against_best(
    best: str, scores: Mapping[str, Mapping[Any, int | None]], scale: tuple[int, int]
) -> dict[str, PairedScores]:
    """Each variant but `best` beside it, on the rows that have a score for both. `scores`: for each variant those of
    its rows."""
    differences: dict[str, list[int]] = {}
    for name, rows in scores.items():
        both = [(score, scores[best].get(row)) for row, score in rows.items()]
        found = [mine - its for mine, its in both if mine is not None and its is not None]
        if name != best and found:
            differences[name] = found
    adjusted = holm([randomization_p(found) for found in differences.values()])
    made = {}
    for (name, found), p_adjusted in zip(differences.items(), adjusted, strict=True):
        low, high = difference_interval(found, scale[1] - scale[0])
        made[name] = PairedScores(
            other=best,
            rows=len(found),
            higher=sum(value > 0 for value in found),
            lower=sum(value < 0 for value in found),
            difference=sum(found) / len(found),
            low=low,
            high=high,
            share_low=low / (scale[1] - scale[0]),
            p_value=randomization_p(found),
            p_adjusted=p_adjusted,
        )
    return made


def judge_line(judge: Judging) -> str:
    """What the judge read and cost, and how its scores are counted."""
    if judge.output is None and judge.answers:
        made = judge.planned_usd
        cost = (
            "what it costs is not known before it runs"
            if made is None
            else f"about {money(made.mid)} ({money(made.low)} to {money(made.high)}), which is in no variant's dollars"
        )
        return f"judge: {judge.model}, {judge.low} to {judge.high}, {judge.answers:,} answers at most: {cost}"
    cost = "nothing" if judge.cost_usd is None else money(judge.cost_usd)
    return (
        f"judge: {judge.model}, {judge.low} to {judge.high}, {judge.answers:,} answers, of which {judge.unscored:,} "
        f"got no score and are in no mean; it cost {cost}, which is in no variant's dollars; a row without an answer "
        f"scores {judge.low}"
    )
