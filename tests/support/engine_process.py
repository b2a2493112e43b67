"""Engines of ours one after another in one process: vLLM takes many seconds to import, an engine two to start.

Each script runs in a fork of a process that has imported torch, transformers and vLLM: it sees none of what another
script left behind in those.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tests.support import ROOT
from tests.support.tiny_models import ARCHITECTURES

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The models are tiny: a second thread would only wait, for long where other processes want the cores too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "jobs" / "demo"))),
}
START_SECONDS = 200


def in_one_process(script: str, given: object, folder: Path, timeout: float = 400) -> Any:
    """Run `script`, which finds `given` and calls `report(value)`; what it reported."""
    target, said = folder / "found.json", folder / "said"
    server, log = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    request = {"script": script, "given": given, "target": str(target), "said": str(said)}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], timeout)[0]:
        _server.cache_clear()
        server.kill()
        raise TimeoutError(said.read_text()[-5000:])
    code = server.stdout.readline().strip()
    assert code, "the process that forks has ended: " + _end_of(log)
    assert code == "0", said.read_text()[-5000:]
    return json.loads(target.read_text())


@functools.cache
def _server() -> tuple[subprocess.Popen[str], IO[bytes]]:
    """This file, running and ready. It ends when its input does: with the process of the tests."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 # as long as the process
    server = subprocess.Popen(
        [sys.executable, "-m", __name__],
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    assert server.stdout is not None
    assert select.select([server.stdout], [], [], START_SECONDS)[0], "vLLM was not imported in time"
    assert server.stdout.readline() == "ready\n", _end_of(log)
    return server, log


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-3000:]


def serve() -> None:
    """Run each request of the standard input, a line of JSON, in a fork; its exit code to the standard output."""
    answers = os.fdopen(os.dup(1), "w")
    # vLLM says this and that.
    os.dup2(2, 1)
    _know_architectures()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_run(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _run(request: dict[str, Any]) -> int:
    import torch

    with open(request["said"], "wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)

    def report(value: object) -> None:
        Path(request["target"]).write_text(json.dumps(value))

    try:
        exec(request["script"], {"given": request["given"], "report": report, "torch": torch, "__name__": "script"})
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


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
    from batchinfer.engine import start_engine
    from batchinfer.errors import BatchinferError
    from batchinfer.jobspec import JobSpec
    from batchinfer.prompting.prompts import Prompt
    from tests.support.builders import make_plan

    began = time.monotonic()
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
        forget_groups()


def _know_architectures() -> None:
    """vLLM looks at each model class in a process of its own, to keep CUDA out of this one; on CPU it can be here."""
    from vllm import ModelRegistry

    for name in ("TransformersForCausalLM", *ARCHITECTURES):
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    # What was imported lives as long as the process; else each collection, and an engine asks for eight, walks
    # through all of it. vLLM would thaw it at an engine's end, and freeze an engine's own objects at its start.
    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None


def forget_groups() -> None:
    """vLLM keeps its process groups for the next engine, which may need others (experts)."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


if __name__ == "__main__":
    serve()
