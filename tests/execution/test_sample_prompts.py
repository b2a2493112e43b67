"""What a sample of the rows says about the work."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from batchinfer.errors import InputError, SpecError
from batchinfer.execution.sample_prompts import repeats, require_room_for_choices, survey
from batchinfer.input import build_manifest
from batchinfer.prompting.prompts import needed_columns
from tests.support import ROOT
from tests.support.builders import make_fingerprint, make_spec

MODEL = ROOT / "jobs/demo/model"


def surveyed(
    folder: Path, texts: list[str | None], tokenizer: Path | None = None, earlier: float | None = None, **keys
):
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), folder / "rows.parquet")
    prompt = {"template": "{{ text }}", "chat": keys.pop("chat", None)}
    keys = {"dedupe": False, "prompt": prompt} | keys
    spec = make_spec(input={"uri": str(folder), "id_column": "id"}, **keys)
    manifest = build_manifest(spec, needed_columns(spec), make_fingerprint())
    return survey(spec, manifest, str(tokenizer) if tokenizer else None, earlier).workload


def test_lengths_are_counted_with_the_models_own_tokenizer(tmp_path):
    texts = ["Open a socket and listen.", "Parse the header of a message, then its body."]
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    plain = [len(tokenizer.encode(text).ids) for text in texts]
    work = surveyed(tmp_path, texts, MODEL, chat=False)
    assert work.rows == work.sampled_rows == 2
    assert work.input_tokens == sum(plain) / 2
    assert work.longest_input_tokens == max(plain)
    assert "the model's own tokenizer" in work.source


def test_a_chat_template_counts(tmp_path):
    plain = surveyed(tmp_path, ["Open a socket."], MODEL, chat=False)
    assert surveyed(tmp_path, ["Open a socket."], MODEL).input_tokens > plain.input_tokens


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_a_model_that_does_not_write_reads_plain_text(tmp_path, task):
    of_model = {"model": {"source": str(MODEL)}}
    plain = surveyed(tmp_path, ["Open a socket."], MODEL, chat=False, **of_model)
    assert surveyed(tmp_path, ["Open a socket."], MODEL, task=task, **of_model).input_tokens == plain.input_tokens


def test_the_descriptions_of_labels_count(tmp_path):
    bare = surveyed(tmp_path, ["Open a socket."], MODEL, output={"uri": "/out", "choices": ["net", "gui"]})
    told = surveyed(
        tmp_path, ["Open a socket."], MODEL, output={"uri": "/out", "choices": {"net": "sockets", "gui": "windows"}}
    )
    assert told.input_tokens > bare.input_tokens


def test_the_count_is_the_one_that_the_engine_makes(tmp_path):
    # Eight: what transformers 5.19 makes of it, through apply_chat_template.
    assert surveyed(tmp_path, ["Open a socket."], MODEL).input_tokens == 8


def test_without_a_tokenizer_four_characters_are_a_token_and_the_plan_says_so(tmp_path):
    work = surveyed(tmp_path, ["x" * 400])
    assert work.input_tokens == 100
    assert "four characters a token" in work.source


def test_the_sample_is_small_and_spread_over_the_input(tmp_path):
    lengths = [400 if i < 50_000 else 800 for i in range(100_000)]
    work = surveyed(tmp_path, ["x" * n for n in lengths], shards={"rows": 1000})
    assert work.rows == 100_000
    assert work.sampled_rows == 512
    assert work.input_tokens == pytest.approx(150, rel=0.01)


def test_rows_without_a_prompt_are_not_counted(tmp_path):
    work = surveyed(tmp_path, ["x" * 40, None])
    assert (work.rows, work.sampled_rows, work.input_tokens) == (1, 1, 10)


def test_rows_that_will_fail_are_forecast_by_code_with_the_first_message(tmp_path):
    texts = ["word " * 20] * 5 + ["word " * 3000] * 3 + [None] * 2
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), tmp_path / "rows.parquet")
    spec = make_spec(
        input={"uri": str(tmp_path), "id_column": "id"},
        prompt={"template": "{{ text }}", "chat": False},
        engine={"max_model_len": 512},
        dedupe=False,
    )
    manifest = build_manifest(spec, needed_columns(spec), make_fingerprint())
    found = survey(spec, manifest, str(MODEL), context=1024)
    assert found.sample.rows == 10
    assert found.sample.failed["prompt_too_long"] == 3
    assert sum(found.sample.failed.values()) == 5
    assert found.sample.failed_share == 0.5
    assert "room for 511" in found.sample.messages["prompt_too_long"]
    assert sum(count for _, count in found.sample.lengths) == 8
    assert found.workload.rows == 5
    assert found.workload.longest_input_tokens < 512


def test_a_template_that_fails_on_every_row_is_forecast(tmp_path):
    pq.write_table(pa.table({"id": [1, 2], "subject": ["a", "b"]}), tmp_path / "rows.parquet")
    spec = make_spec(input={"uri": str(tmp_path), "id_column": "id"}, prompt={"template": "{{ subject + 1 }}"})
    found = survey(spec, build_manifest(spec, needed_columns(spec), make_fingerprint()), None)
    assert found.sample.failed == {"template_error": 2}
    assert found.workload.rows == 0


def test_choices_that_max_tokens_would_cut_are_refused_before_the_start():
    choices = ["gui", "a choice of a good many words that goes on for longer than that"]
    spec = make_spec(output={"uri": "/out", "choices": choices}, sampling={"max_tokens": 4})
    with pytest.raises(SpecError, match=r"cuts the longest of output\.choices") as caught:
        require_room_for_choices(spec, str(MODEL))
    enough = int("".join(filter(str.isdigit, caught.value.remedy)))
    require_room_for_choices(
        make_spec(output={"uri": "/out", "choices": choices}, sampling={"max_tokens": enough}), str(MODEL)
    )
    # Without the model's tokenizer nobody knows.
    require_room_for_choices(spec, None)


def test_an_empty_input_is_no_work(tmp_path):
    pq.write_table(
        pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    spec = make_spec(input={"uri": str(tmp_path), "id_column": "id"}, prompt={"template": "{{ text }}"})
    work = survey(spec, build_manifest(spec, needed_columns(spec), make_fingerprint()), None).workload
    assert (work.rows, work.sampled_rows) == (0, 0)


def test_answers_are_as_long_as_an_earlier_run_made_them(tmp_path):
    work = surveyed(tmp_path, ["x"], earlier=30.0, sampling={"max_tokens": 200, "temperature": 1.0, "n": 3})
    assert work.output_tokens.mid == pytest.approx(30)
    assert work.output_tokens.low < 30 < work.output_tokens.high


def test_answers_are_at_most_max_tokens_and_the_choices_length(tmp_path):
    free = surveyed(tmp_path, ["x"], sampling={"max_tokens": 200}).output_tokens
    assert (free.low, free.high) == (50, 200)
    exact = surveyed(tmp_path, ["x"], sampling={"max_tokens": 200, "ignore_eos": True}).output_tokens
    assert (exact.low, exact.mid, exact.high) == (200, 200, 200)
    chosen = surveyed(tmp_path, ["x"], MODEL, output={"uri": "/out", "choices": ["gui", "concurrency"]}).output_tokens
    assert 2 <= chosen.low <= chosen.high <= 10


def test_rows_far_apart_that_share_a_document_are_noticed(tmp_path):
    documents = [f"{i}" * 600 for i in range(4)]
    work = surveyed(tmp_path, [documents[i % 4] + f" question {i}" for i in range(2000)])
    assert work.scattered == 1.0
    assert work.shares_apart
    assert "100% of them begin as rows elsewhere in the input do" in work.source


def test_rows_beside_one_another_that_share_a_document_need_no_more_shards_at_once(tmp_path):
    work = surveyed(tmp_path, [f"{i // 500}" * 600 + f" question {i}" for i in range(2000)], shards={"rows": 500})
    assert not work.shares_apart


def test_the_plan_counts_with_the_tokens_that_rows_allow_their_answers(tmp_path):
    how = ['{"max_tokens": 100}', '{"max_tokens": 20}', None, '{"max_tokens": "x"}']
    pq.write_table(pa.table({"id": range(4), "text": ["a word"] * 4, "how": how}), tmp_path / "rows.parquet")
    spec = make_spec(
        input={"uri": str(tmp_path), "id_column": "id"}, sampling={"max_tokens": 60}, sampling_column="how"
    )
    found = survey(spec, build_manifest(spec, needed_columns(spec), make_fingerprint()), None)
    assert found.workload.output_tokens.high == 60
    assert found.workload.output_tokens.low == 15
    assert found.workload.longest_output_tokens == 100
    assert found.sample.failed == {"sampling_invalid": 1}


def test_a_column_of_which_no_row_can_be_used_is_one_mistake_before_the_start(tmp_path):
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"], "how": ["cold", "hot"]}), tmp_path / "rows.parquet")
    spec = make_spec(input={"uri": str(tmp_path), "id_column": "id"}, sampling_column="how")
    with pytest.raises(InputError, match="none of the 2 rows sampled can run: sampling_column: it is not JSON"):
        survey(spec, build_manifest(spec, needed_columns(spec), make_fingerprint()), None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 1000))
def test_the_share_of_repeats_is_exact_of_a_whole_input_and_never_above_what_the_rest_may_hold(sample, others):
    requests = [bytes([value]) for value in sample]
    whole = repeats(requests, len(requests))
    assert whole.low == whole.mid == whole.high
    assert whole.mid * len(requests) == pytest.approx(len(requests) - len(set(requests)))
    partly = repeats(requests, len(requests) + others)
    assert 0 <= partly.low <= partly.mid <= partly.high <= 1
    assert partly.mid >= whole.mid - 1e-9


def test_short_answers_that_come_again_and_again_are_counted_once(tmp_path):
    # Of 20,000 rows 30% are one of ten words.
    draw = random.Random(5).random
    texts = [f"word {i % 10}" if draw() < 0.3 else f"a review of its own, number {i}" for i in range(20_000)]
    work = surveyed(tmp_path, texts, dedupe=None, shards={"rows": 100})
    assert work.repeated.low < 0.3 < work.repeated.high
    assert work.rows == pytest.approx(14_000, rel=0.1)
    assert surveyed(tmp_path, texts, shards={"rows": 100}).rows == 20_000


def test_steps_are_sequences_of_their_own_and_one_that_repeats_takes_no_tokens(tmp_path):
    texts = [f"a text of its own, number {i}" for i in range(400)]
    steps = [
        {"name": "same", "prompt": "Say {{ text | first }}", "sampling": {"max_tokens": 4}},
        {"name": "own", "prompt": "Repeat: {{ text }}", "sampling": {"max_tokens": 4}},
    ]
    alone = surveyed(tmp_path, texts, dedupe=True, prompt={}, steps=steps)
    assert alone.rows == 400
    assert alone.sequences == pytest.approx(1, abs=0.01)
    assert "same 1 + 2, 100% of them repeated" in alone.source
    each = surveyed(tmp_path, texts, prompt={}, steps=steps)
    assert each.sequences == 2
    assert each.of_sequences.rows == 800
    assert each.of_sequences.input_tokens * 2 == each.input_tokens
