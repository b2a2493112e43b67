"""`vllm.LLM.generate` alone, in a process of its own, for gpu.py.

    python plain_vllm.py ARGUMENTS.json

ARGUMENTS: {"engine": keywords of LLM, "on_cpu": bool, "sets": a list of {"sampling": keywords of SamplingParams,
"prompts": a JSON file of lists of token ids, "found": the file to write}}. A file of what was found: seconds of the
call, seconds until the model was loaded, output tokens, KV cache tokens.
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
    cache = llm.llm_engine.vllm_config.cache_config
    for asked in given["sets"]:
        prompts = [{"prompt_token_ids": ids} for ids in json.loads(Path(asked["prompts"]).read_text())]
        params = SamplingParams(**asked["sampling"])
        began = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - began
        if any(len(one.token_ids) != params.max_tokens for output in outputs for one in output.outputs):
            sys.exit(f"not every answer has the {params.max_tokens} tokens asked for")
        found = {
            "seconds": seconds,
            "load_seconds": load,
            "output_tokens": sum(len(one.token_ids) for output in outputs for one in output.outputs),
            # Not `kv_cache_size_tokens`, which is in whole sequences of `max_model_len`.
            "kv_cache_tokens": cache.num_gpu_blocks * cache.block_size,
        }
        Path(asked["found"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
