"""Engines of ours one after another in one process: vLLM takes seconds to import, an engine two to start."""

from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_models import ARCHITECTURES

# Not from conftest, which imports Ray: the engine's process imports this file too.
ROOT = Path(__file__).parents[2]

PREAMBLE = """
import json, os, sys
sys.path[:0] = [{tests!r}, {here!r}, {root!r}, {demo!r}]
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# The models are tiny: a second thread would only wait, for long where other processes want the cores too.
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["OMP_NUM_THREADS"] = "1"
import torch
"""


def in_one_process(script: str, given: object, folder: Path, timeout: float = 280) -> Any:
    """Run `script`, which finds `given` on stdin and calls `report(value)`; what it reported."""
    target = folder / "found.json"
    here = Path(__file__).parent
    head = PREAMBLE.format(tests=str(here.parent), here=str(here), root=str(ROOT), demo=str(ROOT / "jobs" / "demo"))
    tail = "def report(value): json.dump(value, open(sys.argv[1], 'w'))\ngiven = json.load(sys.stdin)\n"
    done = subprocess.run(
        [sys.executable, "-c", head + tail + script, str(target)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(target.read_text())


def spec_values(model: dict[str, Any], sampling: dict[str, Any], output: dict[str, Any] | None = None) -> Any:
    """A spec as JSON for a small model in float32."""
    return {
        "name": "x",
        "model": {"dtype": "float32"} | model,
        "input": {"uri": "in"},
        "prompt": {"column": "text"},
        "sampling": sampling,
        "output": {"uri": "out"} | (output or {}),
        "engine": {"max_model_len": 256, "enforce_eager": True, "kv_cache_memory_bytes": 2**26},
    }


def answers(spec: Any, texts: Sequence[str], **planned: Any) -> dict[str, Any]:
    """Start the spec's engine here, ask it, end it. `error` instead where it did not start or died."""
    from builders import make_plan

    from batchinfer.engine import start_engine
    from batchinfer.errors import BatchinferError
    from batchinfer.prompts import Prompt
    from batchinfer.spec import JobSpec

    began = time.monotonic()
    _know_architectures()
    plan = make_plan(accelerator="cpu", tensor_parallel=1, num_gpus=0, price_per_gpu_hour=0.0, **planned)
    engine = None
    try:
        engine = start_engine(JobSpec.model_validate(spec), plan)
        completions = engine.generate([Prompt(text=text) for text in texts], lambda _: None, lambda _: None)
        return {
            "texts": [text for completion in completions for text in completion.texts[:1]],
            "vectors": [c.embedding.tolist() for c in completions if c.embedding is not None],
            "tokens": [
                [position[0]["token_id"] for position in completion.logprobs[0]]
                for completion in completions
                if completion.logprobs
            ],
            "seconds": time.monotonic() - began,
        }
    except BatchinferError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:
        # An engine that dies in this process raises what killed it.
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    finally:
        if engine is not None:
            engine.close()
        del engine
        _forget_groups()


@functools.cache
def _know_architectures() -> None:
    """vLLM looks at each model class in a process of its own, to keep CUDA out of this one; on CPU it can be here."""
    from vllm import ModelRegistry

    for name in ("TransformersForCausalLM", *ARCHITECTURES):
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    # What was imported lives as long as the process: without this each collection walks through all of it.
    gc.freeze()


def _forget_groups() -> None:
    """vLLM keeps its process groups for the next engine, which may need others (experts)."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
