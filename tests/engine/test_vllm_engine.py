"""The real engine: what it answers against vLLM's own offline interface, and what becomes of odd rows.

One process for all: the engine runs in it (VLLM_ENABLE_V1_MULTIPROCESSING=0), which starts faster.
The engine in processes of its own is what `tests/execution/test_kills.py` runs.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.engine_process import in_one_process

pytestmark = pytest.mark.end_to_end

SCRIPT = """
from concurrent.futures import ThreadPoolExecutor
from batchinfer.engine import start_engine
from batchinfer.planner import Cluster, make_plan
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import Prompt
from batchinfer.jobspec import JobSpec
import pyarrow as pa
from tests.support.engine_process import forget_groups
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

llm = LLM(given["model"], dtype="float32", max_model_len=512, enforce_eager=True, kv_cache_memory_bytes=2**27,
          enable_chunked_prefill=False)
reference = {}
for name, sampling in given["sampling"].items():
    choices = sampling.pop("choices", None)
    params = SamplingParams(**sampling, structured_outputs=StructuredOutputsParams(choice=choices) if choices else None)
    outputs = llm.chat([[{"role": "user", "content": t}] for t in given["texts"]], params, use_tqdm=False)
    reference[name] = [{"texts": [o.text for o in r.outputs], "in": len(r.prompt_token_ids),
                        "out": sum(len(o.token_ids) for o in r.outputs)} for r in outputs]
own = [SamplingParams(**keys) for keys in given["own"]]
outputs = llm.chat([[{"role": "user", "content": t}] for t in given["texts"]], own, use_tqdm=False)
reference["own"] = [{"texts": [o.text for o in r.outputs], "out": sum(len(o.token_ids) for o in r.outputs)}
                    for r in outputs]
del llm
forget_groups()

cluster = Cluster(gpus=0, largest_node_gpus=0, accelerator_type=None, memory_bytes=2**33)
answers = {}
for name, case in given["cases"].items():
    spec = JobSpec.model_validate(case["spec"])
    engine = start_engine(spec, make_plan(spec, cluster, "demo"))
    events = {"begun": 0, "finished": 0}

    def run(texts):
        def begun(n): events["begun"] += n
        def finished(n): events["finished"] += n
        # With steps, a text is for each of them in turn.
        count = len(spec.step_jobs)
        prompts = [Prompt(text=t, step=i % count) for i, t in enumerate(texts)]
        return engine.generate(prompts, begun, finished)

    def run_rows(rows):
        prompts = JobPrompts(spec).prompts(pa.table(rows))
        return engine.generate(prompts, lambda _: None, lambda _: None)

    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(run, case["batches"])) if "batches" in case else [run_rows(case["rows"])]
    answers[name] = {"events": events, "batches": [[
        {"texts": c.texts, "reasons": c.finish_reasons, "in": c.input_tokens, "cached": c.cached_tokens,
         "out": c.output_tokens,
         "error": c.error.code if c.error else None, "logprobs": c.logprobs,
         "probabilities": c.probabilities} for c in batch] for batch in batches]}
    engine.close()
    del engine
report({"answers": answers, "reference": reference})
"""

MODEL = str(ROOT / "jobs" / "demo" / "model")
AREAS = ["data", "files", "system", "concurrency", "network", "markup", "gui", "tools", "runtime"]
TEXTS = [f"def read{i}(self, path)\\nRead item {i} from a file and return a list of {i} sockets." for i in range(60)]


def spec(sampling: dict[str, Any], output: dict[str, Any] | None = None, **prompt: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "model": {"source": MODEL, "dtype": "float32"},
        "input": {"uri": "in"},
        "prompt": {"column": "text"} | prompt,
        "sampling": sampling,
        "output": {"uri": "out"} | (output or {}),
        "engine": {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 2**27},
    }


DOCUMENTS, QUESTIONS = 24, 8


def asked_of_documents() -> list[str]:
    """Prompts in no order: every document of about 140 tokens with every question."""
    words = ["socket", "file", "widget", "thread", "parser", "path", "buffer", "signal"]
    random = Random(7)
    documents = [" ".join(random.choice(words) for _ in range(130)) for _ in range(DOCUMENTS)]
    prompts = [f"{document}\nQuestion {i}?" for document in documents for i in range(QUESTIONS)]
    random.shuffle(prompts)
    return prompts


SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 12, "temperature": 0},
    "seeded": {"max_tokens": 8, "temperature": 2.0, "ignore_eos": True, "n": 3, "seed": 7},
    "choices": {"max_tokens": 4, "temperature": 0},
}


USUAL: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "ignore_eos": True}
REFUSED = [None, '{"stop_token_ids": [99999]}', '{"allowed_token_ids": [99999]}', '{"logit_bias": {"99999": 1}}', "{}"]
"""Token ids that the model does not have: vLLM refuses such a request, or its engine dies."""


def rows_own() -> list[dict[str, Any]]:
    """What each row of TEXTS has of its own, in one shard: none, a length, a temperature with a seed, a stop text."""
    kinds: list[dict[str, Any]] = [
        {},
        {"max_tokens": 3},
        {"temperature": 1.5, "seed": 11, "top_k": None},
        {"ignore_eos": False, "stop": ["a", "e"], "max_tokens": 25},
        {"allowed_token_ids": [5, 6, 7], "max_tokens": 4},
    ]
    return [kinds[i % len(kinds)] for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every case once, four shards of it at a time, and the first three's rows through `vllm.LLM.chat`."""
    quarters = [TEXTS[i::4] for i in range(4)]
    odd = ["fine", "word " * 600, "also fine"]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    # A cache for six prompts at a time.
    small_cache = spec({"max_tokens": 1})
    small_cache["engine"] |= {"num_gpu_blocks_override": 13, "enable_prefix_caching": True}
    how = [json.dumps(row) for row in rows_own()]
    steps = spec({"max_tokens": 1}) | {"prompt": {}}
    steps["steps"] = [
        {"name": "free", "prompt": "{{ text }}", "sampling": SAMPLING["greedy"]},
        {"name": "area", "prompt": "{{ text }}", "sampling": SAMPLING["choices"], "output": {"choices": AREAS}},
    ]
    cases = {
        "greedy": {"spec": spec(SAMPLING["greedy"]), "batches": quarters},
        "seeded": {"spec": spec(SAMPLING["seeded"]), "batches": quarters},
        "choices": {"spec": spec(SAMPLING["choices"], {"choices": AREAS}), "batches": quarters},
        "steps": {"spec": steps, "batches": [[text for text in quarter for _ in range(2)] for quarter in quarters]},
        "own": {"spec": spec(USUAL) | {"sampling_column": "how"}, "rows": {"text": TEXTS, "how": how}},
        "refused": {"spec": spec(USUAL) | {"sampling_column": "how"}, "rows": {"text": TEXTS[:5], "how": REFUSED}},
        "labels": {
            "spec": spec({"max_tokens": 10}, {"choices": AREAS, "confidence": True}) | {"sampling_column": "how"},
            "rows": {"text": TEXTS[:4], "how": ['{"temperature": 1.5, "seed": 1}', None, '{"max_tokens": 9}', None]},
        },
        "odd": {"spec": spec({"max_tokens": 3, "ignore_eos": True, "logprobs": 2}), "batches": [odd]},
        "shared": {"spec": small_cache, "batches": [asked_of_documents()]},
        "plain": {"spec": spec({"max_tokens": 3}, chat=False), "batches": [["fine"]]},
        "regex": {"spec": spec({"max_tokens": 8}, {"regex": "[0-9]{3}"}), "batches": [["fine"]]},
        "schema": {"spec": spec({"max_tokens": 40}, {"json_schema": schema}), "batches": [["fine"]]},
    }
    sampling = SAMPLING | {"choices": SAMPLING["choices"] | {"choices": AREAS}}
    own = [USUAL | {key: value for key, value in row.items() if value is not None} for row in rows_own()]
    given = {"cases": cases, "model": MODEL, "texts": TEXTS, "sampling": sampling, "own": own}
    return in_one_process(SCRIPT, given, tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def answers(found: Any) -> Any:
    return found["answers"]


@pytest.fixture(scope="module")
def reference(found: Any) -> Any:
    """The same rows through `vllm.LLM.chat`."""
    return found["reference"]


@pytest.mark.parametrize("name", list(SAMPLING))
def test_answers_equal_vllms_own(name: str, answers: Any, reference: Any) -> None:
    batches = answers[name]["batches"]
    ours = [batches[i % 4][i // 4] for i in range(len(TEXTS))]
    assert [row["in"] for row in ours] == [row["in"] for row in reference[name]]
    assert [row["texts"] for row in ours] == [row["texts"] for row in reference[name]]
    assert [row["out"] for row in ours] == [row["out"] for row in reference[name]]


@pytest.mark.parametrize(("step", "name"), [(0, "greedy"), (1, "choices")])
def test_each_step_has_its_own_sampling_and_shape(step: int, name: str, answers: Any, reference: Any) -> None:
    batches = answers["steps"]["batches"]
    ours = [batches[i % 4][2 * (i // 4) + step] for i in range(len(TEXTS))]
    assert [row["texts"] for row in ours] == [row["texts"] for row in reference[name]]


def test_rows_of_one_shard_are_sampled_each_by_its_own_keys(answers: Any, reference: Any) -> None:
    (ours,) = answers["own"]["batches"]
    assert [row["texts"] for row in ours] == [row["texts"] for row in reference["own"]]
    assert [row["out"] for row in ours] == [row["out"] for row in reference["own"]]
    assert {row["out"] for row in ours[1::5]} == {3}
    assert {row["out"] for row in ours[0::5]} == {10}


def test_a_token_that_the_model_does_not_have_is_the_mistake_of_that_row(answers: Any) -> None:
    (rows,) = answers["refused"]["batches"]
    assert [row["error"] for row in rows] == [None, *["sampling_invalid"] * 3, None]
    assert [row["out"] for row in rows] == [10, 0, 0, 0, 10]


def test_labels_have_their_probabilities_in_rows_that_are_sampled_in_another_way(answers: Any) -> None:
    (rows,) = answers["labels"]["batches"]
    assert all(row["texts"][0] in AREAS and row["error"] is None for row in rows)
    assert [set(row["probabilities"]) for row in rows] == [set(AREAS)] * 4


def test_choices_are_kept_to(answers: Any) -> None:
    texts = [row["texts"][0] for batch in answers["choices"]["batches"] for row in batch]
    assert len(texts) == 60
    assert set(texts) <= set(AREAS)


def test_n_samples_differ_and_have_a_reason_each(answers: Any) -> None:
    rows = [row for batch in answers["seeded"]["batches"] for row in batch]
    assert all(len(row["texts"]) == len(row["reasons"]) == 3 for row in rows)
    assert any(len(set(row["texts"])) > 1 for row in rows)


def test_a_prompt_beyond_the_context_fails_alone(answers: Any) -> None:
    fine, long, also_fine = answers["odd"]["batches"][0]
    assert (fine["error"], also_fine["error"]) == (None, None)
    assert long["error"] == "prompt_too_long"
    assert long["in"] > 512
    assert long["texts"] == []


def test_max_tokens_reached_is_the_reason(answers: Any) -> None:
    row = answers["odd"]["batches"][0][0]
    assert (row["reasons"], row["out"]) == (["length"], 3)


def test_logprobs_come_for_each_token_with_the_chosen_one(answers: Any) -> None:
    row = answers["odd"]["batches"][0][0]
    (positions,) = row["logprobs"]
    assert len(positions) == 3
    for alternatives in positions:
        assert 2 <= len(alternatives) <= 3
        assert min(entry["rank"] for entry in alternatives) == 1
        assert all(entry["logprob"] <= 0 for entry in alternatives)


def test_rows_that_enter_are_rows_that_leave(answers: Any) -> None:
    assert answers["greedy"]["events"] == {"begun": 60, "finished": 60}
    assert answers["odd"]["events"] == {"begun": 2, "finished": 2}, "the refused row never entered"


def test_without_the_chat_template_the_prompt_is_shorter(answers: Any) -> None:
    plain, chat = answers["plain"]["batches"][0][0], answers["odd"]["batches"][0][0]
    assert plain["in"] < chat["in"]


def test_regex_and_schema_shape_the_answer(answers: Any) -> None:
    (number,) = answers["regex"]["batches"][0][0]["texts"]
    assert number.isdigit()
    assert len(number) == 3
    (text,) = answers["schema"]["batches"][0][0]["texts"]
    assert text.lstrip().startswith("{")


def test_rows_that_share_a_document_find_it_in_the_cache_however_far_apart_they_lie(answers: Any) -> None:
    rows = [row for batch in answers["shared"]["batches"] for row in batch]
    assert len(rows) == DOCUMENTS * QUESTIONS
    # Blocks of 128 tokens: all of a document's whole ones, for every question but the first.
    most = sum(row["in"] // 128 * 128 for row in rows) * (QUESTIONS - 1) / QUESTIONS
    assert sum(row["cached"] for row in rows) >= 0.95 * most
