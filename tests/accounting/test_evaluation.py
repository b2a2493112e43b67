"""What an evaluation says of answers: laws of its sums, and values of the literature."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from batchinfer.accounting.evaluation import NO_LABEL, Compared, evaluate, wilson

LABELS = ["billing", "outage", "other", "größe"]


def rows_of(seed: int, many: bool = False, sure: bool = True) -> list[Compared]:
    random = Random(seed)

    def labels() -> frozenset[str]:
        return frozenset(random.sample(LABELS, random.randint(0, 3))) if many else frozenset([random.choice(LABELS)])

    made = []
    for _ in range(random.randint(1, 200)):
        failed = random.random() < 0.1
        confidence = None if failed or not sure else random.random()
        made.append(Compared(labels(), None if failed else labels(), confidence))
    return made


@pytest.mark.parametrize("seed", range(20))
def test_the_confusion_matrix_holds_every_compared_row_once(seed: int) -> None:
    rows = rows_of(seed)
    made = evaluate(rows)
    assert made is not None
    assert sum(count for row in made.confusion.values() for count in row.values()) == made.compared == len(rows)
    assert sum(row.get(name, 0) for name, row in made.confusion.items()) == made.right
    for name, label in made.labels.items():
        assert sum(made.confusion.get(name, {}).values()) == label.expected
        assert sum(row.get(name, 0) for row in made.confusion.values()) == label.predicted
        assert made.confusion.get(name, {}).get(name, 0) == label.right
    failed = sum(row.get(NO_LABEL, 0) for row in made.confusion.values())
    assert failed == sum(row.predicted is None for row in rows)


@pytest.mark.parametrize("seed", range(20))
def test_a_stricter_level_answers_no_more_rows_and_bins_hold_all(seed: int) -> None:
    rows = rows_of(seed)
    made = evaluate(rows)
    assert made is not None
    sure = [row for row in rows if row.confidence is not None]
    assert sum(one.rows for one in made.calibration) == len(sure)
    assert all(a.answered >= b.answered for a, b in pairwise(made.abstention))
    assert made.calibration_error is None or 0 <= made.calibration_error <= 1
    assert made.low <= made.accuracy <= made.high


@pytest.mark.parametrize("seed", range(10))
def test_lists_of_labels_count_each_label_and_have_no_confusion_matrix(seed: int) -> None:
    rows = rows_of(seed, many=True, sure=False)
    made = evaluate(rows, many=True)
    assert made is not None
    assert made.confusion == {}
    assert made.right == sum(row.expected == row.predicted for row in rows)
    assert sum(label.expected for label in made.labels.values()) == sum(len(row.expected) for row in rows)
    assert made.abstention == []


def test_the_interval_is_wilsons() -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_precision_recall_and_f1_of_a_label() -> None:
    rows = [
        Compared(frozenset(["a"]), frozenset(["a"])),
        Compared(frozenset(["a"]), frozenset(["b"])),
        Compared(frozenset(["b"]), frozenset(["a"])),
        Compared(frozenset(["a"]), None),
    ]
    made = evaluate(rows)
    assert made is not None
    assert (made.labels["a"].precision, made.labels["a"].recall) == (1 / 2, 1 / 3)
    assert made.labels["a"].f1 == pytest.approx(0.4)
    assert made.labels["b"].f1 == 0
    assert made.macro_f1 == pytest.approx(0.2)
    assert made.micro_f1 == pytest.approx(2 / 7)


def test_a_confident_model_that_is_wrong_is_badly_calibrated() -> None:
    right, wrong = Compared(frozenset("a"), frozenset("a"), 1.0), Compared(frozenset("a"), frozenset("b"), 1.0)
    for rows, error in (([right] * 4, 0.0), ([wrong] * 4, 1.0), ([right, right, right, wrong], 0.25)):
        made = evaluate(rows)
        assert made is not None
        assert made.calibration_error == pytest.approx(error)


def test_texts_of_many_values_are_no_labels() -> None:
    made = evaluate([Compared(frozenset([str(i)]), frozenset([str(i)])) for i in range(101)])
    assert made is not None
    assert (made.accuracy, made.labels, made.confusion) == (1.0, {}, {})


def test_no_row_has_no_evaluation() -> None:
    assert evaluate([]) is None
