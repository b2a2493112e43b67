"""`vllm.LLM.generate` alone, in a process of its own, for gpu.py.

    python plain_vllm.py ARGUMENTS.json FOUND.json

ARGUMENTS: {"engine": keywords of LLM, "sampling": keywords of SamplingParams, "on_cpu": bool, "prompts": a JSON file of
lists of token ids}. FOUND: seconds of the call, seconds until the model was loaded, output tokens, KV cache tokens.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    began = time.monotonic()
    from vllm import LLM, SamplingParams

    given = json.loads(Path(sys.argv[1]).read_text())
    engine = given["engine"]
    if given["on_cpu"]:
        # As batchinfer's replica has it.
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        engine["distributed_executor_backend"] = UniProcExecutor
    llm = LLM(**engine)
    load = time.monotonic() - began
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(Path(given["prompts"]).read_text())]
    params = SamplingParams(**given["sampling"])
    began = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.monotonic() - began
    cache = llm.llm_engine.vllm_config.cache_config
    found = {
        "seconds": seconds,
        "load_seconds": load,
        "output_tokens": sum(len(one.token_ids) for output in outputs for one in output.outputs),
        # Not `kv_cache_size_tokens`, which is in whole sequences of `max_model_len`.
        "kv_cache_tokens": cache.num_gpu_blocks * cache.block_size,
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
