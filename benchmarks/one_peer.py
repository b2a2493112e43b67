"""One peer's whole process in `peers.py`: `python benchmarks/one_peer.py PEER TASK.json FOUND.json`.

The task holds rows (a Parquet file with id and text), model (folder), engine and sampling (vLLM's keyword
arguments). What was found: answers (id to text), tokens (generated, null where the peer does not tell), seconds (the
steady span; each function says from when to when).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Found = dict[str, Any]


def read(task: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Ids and texts."""
    table = pq.read_table(task["rows"])
    return table["id"].to_pylist(), table["text"].to_pylist()


def chat(task: dict[str, Any], **more: Any) -> Found:
    """`vllm.LLM.chat`; the span is the call's."""
    from vllm import LLM, SamplingParams

    ids, texts = read(task)
    llm = LLM(task["model"], **task["engine"], **more)
    params = SamplingParams(**task["sampling"])
    began = time.monotonic()
    outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params, use_tqdm=False)
    seconds = time.monotonic() - began
    completions = [output.outputs[0] for output in outputs]
    return {
        "answers": dict(zip(ids, [c.text for c in completions], strict=True)),
        "tokens": sum(len(c.token_ids) for c in completions),
        "seconds": seconds,
    }


def chat_uniproc(task: dict[str, Any]) -> Found:
    """The same, with the worker in the engine's process, as batchinfer's replica has it on a CPU."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return chat(task, distributed_executor_backend=UniProcExecutor)


def ray_data(task: dict[str, Any]) -> Found:
    """`ray.data.llm`; from the first row's arrival in the engine to the last row's way out of it, by vLLM's own
    `arrival_time` and Ray's `time_taken_llm` of each row. What its other stages do before and after is not counted."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    cores = os.cpu_count() or 1
    # Each stage's actor asks for a CPU and the engine for all of this machine's: logical ones, so that nobody waits.
    ray.init(address="local", num_cpus=cores + 6, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = vLLMEngineProcessorConfig(
        model_source=task["model"],
        engine_kwargs=task["engine"],
        concurrency=1,
        # 8 batches (the default) of 128 are four times the engine's slots.
        batch_size=128,
        should_continue_on_error=False,
        log_engine_metrics=False,
        # The default asks for a GPU. Ray sets OMP_NUM_THREADS to the CPUs given here.
        placement_group_config={"bundles": [{"CPU": cores}]},
        chat_template_stage=True,
        tokenize_stage=True,
        # vLLM detokenizes as it goes: one process less on few cores.
        detokenize_stage=False,
    )
    sampling = task["sampling"]
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["text"]}],
            "sampling_params": sampling,
            "id": row["id"],
        },
        postprocess=lambda row: {
            "id": row["id"],
            "answer": row["generated_text"],
            "tokens": row["num_generated_tokens"],
            "arrived": row["metrics"]["arrival_time"],
            "seconds": row["time_taken_llm"],
        },
    )
    blocks = max(1, len(pq.read_table(task["rows"], columns=["id"])) // 128)
    rows = processor(ray.data.read_parquet(task["rows"], override_num_blocks=blocks)).take_all()
    ray.shutdown()
    return {
        "answers": {row["id"]: row["answer"] for row in rows},
        "tokens": sum(row["tokens"] for row in rows),
        "seconds": max(row["arrived"] + row["seconds"] for row in rows) - min(row["arrived"] for row in rows),
    }


def daft_prompt(task: dict[str, Any]) -> Found:
    """Daft's `prompt` with its `vllm-prefix-caching` provider; from when its engine stands to the last row collected.

    The provider takes one text a row, so that the chat template is applied before (outside of the span).
    """
    import daft
    import vllm
    from daft.functions import prompt
    from transformers import AutoTokenizer

    ids, texts = read(task)
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in texts
    ]
    stands: list[float] = []
    start = vllm.AsyncLLMEngine.from_engine_args

    def started(*arguments: Any, **keywords: Any) -> Any:
        engine = start(*arguments, **keywords)
        stands.append(time.monotonic())
        return engine

    vllm.AsyncLLMEngine.from_engine_args = started
    answer = prompt(
        daft.col("prompt"),
        provider="vllm-prefix-caching",
        model=task["model"],
        concurrency=1,
        gpus_per_actor=0,
        engine_args=task["engine"],
        generate_args={"sampling_params": vllm.SamplingParams(**task["sampling"])},
    )
    found = daft.from_pydict({"id": ids, "prompt": prompts}).with_column("answer", answer).to_pydict()
    return {
        "answers": dict(zip(found["id"], found["answer"], strict=True)),
        "tokens": None,
        "seconds": time.monotonic() - stands[0],
    }


PEERS: dict[str, Callable[[dict[str, Any]], Found]] = {
    "chat": chat,
    "chat-uniproc": chat_uniproc,
    "ray": ray_data,
    "daft": daft_prompt,
}


if __name__ == "__main__":
    peer, given, to = sys.argv[1:]
    Path(to).write_text(json.dumps(PEERS[peer](json.loads(Path(given).read_text()))))
    # Daft leaves a thread and an engine behind that keep the process.
    sys.stdout.flush()
