"""Variants of a job beside each other: planned, and run over one sample."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from batchinfer.errors import SpecError, UserError
from batchinfer.execution.compare import FOLDER, compare
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.judge_keys import judge_from, judge_of
from batchinfer.jobspec.variants import variants
from batchinfer.pages import compare_page
from batchinfer.reporting.compare import render_comparison
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, scripted_spec, write_corpus


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    corpus = write_corpus(tmp_path / "in")
    return scripted_spec(
        corpus, tmp_path / "out", evaluate={"expected": "topic"}, resources={"price_per_gpu_hour": 2.0}
    )


def shown(made) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_comparison(made))
    return console.export_text()


@pytest.mark.usefixtures("ray_cluster")
def test_variants_run_over_one_sample_each_once(spec, tmp_path):
    axes = {"prompt.template": ["{{ topic }}", "{{ 'odd' if topic else '' }}", "{{ topic | int // 0 }}"]}
    found = variants(axes)
    listener = KeepingListener()
    made = compare(spec, found, listener, rows=120)
    right, odd, failing = made.variants

    place = tmp_path / "out" / FOLDER / "120-rows-0"
    rows = [pq.read_table(place / one.folder / "data").to_pylist() for one in found]
    assert [[row["id"] for row in run] for run in rows] == [[row["id"] for row in rows[0]]] * 3
    topics = [row["topic"] for row in rows[0]]
    assert len(topics) == 120
    assert right.accuracy.right == 120
    assert odd.accuracy.right == topics.count("odd")
    assert (failing.accuracy.right, failing.sampled.rows_failed) == (0, 120)
    assert (odd.against_best.other, odd.against_best.only_other) == (right.name, topics.count("even"))
    assert made.agreement[right.name][odd.name] == pytest.approx(topics.count("odd") / 120)
    assert made.agreement[right.name][failing.name] == 0
    assert right.planned.rows == 1000, "the price is that of all rows"
    assert right.planned.cost_usd.mid > right.sampled.cost_usd * 0.01
    assert made.chosen == right.name
    assert_ledger_adds_up(place / found[0].folder)

    text, html = shown(made), compare_page(made).decode()
    for one in (right, odd):
        assert f"{one.accuracy.accuracy:.1%}" in text
        assert one.name.replace("'", "&#39;") in html
    assert "take {{ topic }}" in text
    assert "<svg" in html

    again = KeepingListener()
    resumed = compare(spec, found, again, rows=120)
    assert [name for name, _ in again.events].count("nothing to do") == 3
    assert [one.accuracy for one in resumed.variants] == [one.accuracy for one in made.variants]
    assert [one.sampled.cost_usd for one in resumed.variants] == [one.sampled.cost_usd for one in made.variants]


def test_a_dry_run_plans_each_and_writes_nothing(spec, tmp_path):
    gpus = ["L4", "H100"]
    axes = {"model.source": ["qwen2.5-7b", "llama-3.1-405b"], "resources.accelerator": gpus}
    job = spec.model_copy(update={"evaluate": None})
    made = compare(job, variants(axes), KeepingListener(), dry_run=True)
    small, small_h100, large, large_h100 = made.variants
    assert small.planned.cost_usd.mid > 0
    assert small.planned.accelerator == "L4"
    assert small_h100.planned.tokens_per_second.mid > small.planned.tokens_per_second.mid
    assert large_h100.planned.gpus_per_replica > 1
    assert (small.facts.commercial_use, small.facts.context) == (True, 32768)
    assert made.chosen is None
    assert not (tmp_path / "out").exists()
    assert large.name in shown(made)


def test_a_variant_that_cannot_run_is_told_beside_the_others(spec):
    made = compare(spec, variants({"model.source": ["scripted", "no-such-model"]}), KeepingListener(), dry_run=True)
    fine, gone = made.variants
    assert fine.problem is None
    assert "unknown model 'no-such-model'" in gone.problem
    assert "unknown model" in shown(made)


def test_no_variant_that_can_run_is_the_users_mistake(spec):
    with pytest.raises(UserError, match="no variant can run"):
        compare(spec, variants({"model.source": ["no-such-model"]}), KeepingListener(), dry_run=True)


def test_a_key_that_is_none_is_refused_before_anything_runs(spec):
    with pytest.raises(SpecError, match="tempreature"):
        compare(spec, variants({"sampling.tempreature": [0, 1]}), KeepingListener())


@pytest.mark.usefixtures("ray_cluster")
def test_a_judge_scores_the_answers_of_all_variants_in_a_folder_of_its_own(spec, tmp_path):
    job = spec.model_copy(update={"evaluate": None})
    found = variants({"prompt.template": ["about {{ id }}", "{{ (1 // 0) if topic == 'even' else topic }}"]})
    engine = {"scripted": {"reject_on": "about row-00"}}
    judge = judge_from({"model": "scripted", "template": "{{ prompt }}: {{ answer }}", "engine": engine})
    made = compare(job, found, KeepingListener(), rows=120, judge=judge)
    each, half = made.variants

    run = Path(made.judge.output)
    assert run.is_relative_to(tmp_path / "out" / FOLDER / "120-rows-0")
    results = pq.read_table(run / "data").to_pylist()
    refused = [row for row in results if row["row"].startswith("row-00") and row["variant"] == found[0].folder]
    assert refused
    assert each.judged.unscored == {"engine_rejected": len(refused)}
    assert (each.judged.rows, each.judged.scored) == (120, 120 - len(refused))

    told = [int(row["score"]) for row in results if row["variant"] == found[1].folder]
    assert len({*told}) == 1, "equal requests with equal answers get one score"
    assert half.judged.without_answer == 120 - len(told) > 0
    assert half.judged.mean == pytest.approx((sum(told) + half.judged.without_answer) / 120)
    assert len(results) == made.judge.answers == 120 + len(told)
    assert made.judge.unscored == len(refused)
    assert made.judge.cost_usd > 0
    assert_ledger_adds_up(run)
    assert made.chosen is not None
    assert "of the scale" in made.rule

    text, html = shown(made), compare_page(made).decode()
    assert f"{each.judged.mean:.2f} (" in text
    assert f"engine_rejected {len(refused)}" in text
    assert "Scores of the judge" in html

    again = KeepingListener()
    resumed = compare(job, found, again, rows=120, judge=judge)
    assert [name for name, _ in again.events].count("nothing to do") == 3
    assert resumed.judge.cost_usd == made.judge.cost_usd
    assert [one.judged for one in resumed.variants] == [one.judged for one in made.variants]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "scripted", "scale": [5, 1]}, "is no scale"),
        ({"model": "scripted", "template": "good?"}, "does not name the answer"),
        ({"model": "scripted", "sclae": [1, 5]}, "judge.sclae"),
        ({"scale": [1, 5]}, "judge.model"),
    ],
)
def test_a_mistake_in_the_judge_is_one_message(keys, message):
    with pytest.raises(SpecError, match=message):
        judge_from(keys)


def test_a_judge_is_a_model_or_a_file(tmp_path):
    file = tmp_path / "judge.yaml"
    file.write_text("model: {source: llama-3.3-70b, quantization: fp8}\nscale: [0, 10]\n")
    assert judge_of(str(file)).scale == (0, 10)
    assert judge_of("llama-3.3-70b").model.source == "llama-3.3-70b"
    with pytest.raises(SpecError, match="cannot be read"):
        judge_of(str(tmp_path / "none.yaml"))


def test_a_judge_that_cannot_run_is_told_before_a_variant_runs(spec, tmp_path):
    two = variants({"sampling.max_tokens": [2, 4]})
    with pytest.raises(UserError, match="unknown model 'no-such-model'"):
        compare(spec, two, KeepingListener(), judge=judge_from({"model": "no-such-model"}))
    update = {"sampling": spec.sampling.model_copy(update={"n": 2, "temperature": 1.0}), "evaluate": None}
    several = spec.model_copy(update=update)
    with pytest.raises(SpecError, match=r"sampling\.n has others"):
        compare(several, two, KeepingListener(), judge=judge_from({"model": "scripted"}))
    assert not (tmp_path / "out").exists()
