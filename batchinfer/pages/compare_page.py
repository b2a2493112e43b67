"""The page of variants beside each other: what `batchinfer compare --html` writes."""

from __future__ import annotations

from batchinfer.accounting.comparison import Comparison, Quality, VariantResult, quality_kind, quality_of
from batchinfer.accounting.money import money
from batchinfer.accounting.scores import judge_line
from batchinfer.pages import pictures
from batchinfer.pages.document import page
from batchinfer.pages.pictures import Picture, Point


def compare_page(made: Comparison) -> bytes:
    """The page, as one file that needs no other."""
    return page(
        "compare.html",
        f"{made.job_name}: variants beside each other",
        made=made,
        taken=next((one for one in made.variants if one.name == made.chosen), None),
        judge_line="" if made.judge is None else judge_line(made.judge),
        front=_front(made),
        scores=[(one.name, score) for one in made.variants for score in one.facts.scores],
    )


def _front(made: Comparison) -> Picture | None:
    by = quality_kind(made)
    points = [point for one in made.variants if (point := _point(one, by, made.chosen)) is not None]
    if not points:
        return None
    kinds = {"accuracy": "accuracy", "score": "the judge's mean score, as a share of the scale"}
    kind = kinds.get(by, f"answers equal to those of {made.variants[0].name}")
    best = [f"{point.name} ({money(point.cost)}, {point.share:.1%})" for point in points if point.front]
    says = f"No other variant is both cheaper and better than {', '.join(best)}. Lines are 95% intervals."
    return pictures.front("Price and quality", points, "dollars for 1,000 rows of the whole job", kind, says)


def _point(one: VariantResult, by: Quality, chosen: str | None) -> Point | None:
    seen = quality_of(one, by)
    if seen is None or one.usd_per_thousand_rows is None:
        return None
    return Point(one.name, one.usd_per_thousand_rows, *seen, one.on_front, one.name == chosen)
