"""The vLLM engine: runs in a separate process, for many shards at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence

import psutil

from batchinfer.engine import vllm_private
from batchinfer.engine.base import Completion, EngineDied
from batchinfer.engine.installed import not_importable, require_engine_arguments
from batchinfer.engine.pump import Pump, Request
from batchinfer.engine.vllm_arguments import engine_arguments, request_parameters
from batchinfer.engine.vllm_requests import StepRequests, brief
from batchinfer.errors import EngineError, RowError, SpecError, WrongRelease
from batchinfer.jobspec import JobSpec
from batchinfer.model.checkpoint import local_adapter
from batchinfer.model.resolve import tokenizer_folder
from batchinfer.model.thinking import reasoning_parser
from batchinfer.planner import Plan
from batchinfer.planner.host import require_avx512
from batchinfer.prompting.prompts import Prompt
from batchinfer.prompting.tokens import Tokenized

LINGER_SECONDS = 0.25
"""Seconds that an idle engine waits for further shards if rows share prefixes. Shorter misses shards that arrive
together, longer leaves the engine idle."""


class VllmEngine:
    """See `engine.base.Engine`. Raises EngineError if the model cannot be loaded.

    `fork`: fork vLLM's engine process from this one, which saves its imports, unless other Python threads run.
    """

    def __init__(self, spec: JobSpec, plan: Plan, fork: bool = False) -> None:
        fork = fork and "VLLM_WORKER_MULTIPROC_METHOD" not in os.environ
        prepare_environment(plan)
        require_vllm()
        vllm_private.require()
        from vllm.lora.request import LoRARequest

        require_engine_arguments(spec)
        _require_kernels(spec, plan)
        jobs = spec.step_jobs
        self._writes = spec.generates
        thinking = (
            None if spec.reasoning is None else reasoning_parser(jobs[0], tokenizer_folder(spec, plan.checkpoint))
        )
        # A text for /v1/completions is continued as it is.
        parsers = [None if job.takes_requests and job.prompt.chat is False else thinking for job in jobs]
        params = [request_parameters(job, parser) for job, parser in zip(jobs, parsers, strict=True)]
        self._fetched = tempfile.TemporaryDirectory(prefix="batchinfer-adapter-")
        adapter = (
            local_adapter(spec.model.lora, self._fetched.name, spec.storage) if spec.model.lora is not None else None
        )
        lora = LoRARequest(lora_name="adapter", lora_int_id=1, lora_path=adapter.folder) if adapter else None
        arguments = engine_arguments(spec, plan, adapter, thinking)
        # On a CPU vLLM starts the worker in another process, to set its threads by the environment. This environment
        # is set already, and another process would import vLLM for 12 seconds, so the worker shares the engine's.
        schemas = [job.output.json_schema for job in jobs if job.output.json_schema is not None]
        if schemas:
            structured = arguments["structured_outputs_config"]
            backends = {vllm_private.json_backend(schema) for schema in schemas}
            # One engine has one backend. guidance takes what xgrammar does not, and is slower.
            structured["backend"] = "xgrammar" if backends == {"xgrammar"} else "guidance"
            # xgrammar writes no key that the schema does not name, guidance does: a typed answer has no column for it.
            structured["disable_additional_properties"] = structured["backend"] == "guidance" and any(
                job.output.kind is not None for job in jobs
            )
        here = plan.accelerator == "cpu" and "distributed_executor_backend" not in arguments
        if fork:
            vllm_private.fork_engines()
            vllm_private.import_model(arguments["model"])
        try:
            engine = vllm_private.new_engine(arguments, worker_in_engine=here)
            if lora is not None:
                # Added before the first request: with a request, an adapter that does not fit would kill the engine.
                engine.add_lora(lora)
        except WrongRelease:
            raise
        except Exception as error:
            # vLLM raises many types of errors here: ValueError, OSError, RuntimeError from its process.
            raise EngineError(
                f"vLLM did not start with {spec.model.source}: {brief(error)}",
                "its own messages in the log say why; check the model and the engine keys",
            ) from error
        self._context: int = vllm_private.context_length(engine)
        try:
            self._steps = [
                StepRequests(job, engine, given, parser, self._context)
                for job, given, parser in zip(jobs, params, parsers, strict=True)
            ]
        except SpecError:
            vllm_private.Core(engine).shutdown()
            raise
        sharing = plan.workload is not None and plan.workload.shares_apart
        self._pump = Pump(engine, lora, LINGER_SECONDS if sharing else 0.0)

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        completions: list[Completion | None] = [None] * len(prompts)
        requests, places = [], []
        made = self._tokenized(prompts)
        for i, prompt in enumerate(made):
            if isinstance(prompt, RowError):
                completions[i] = Completion.failed(prompt)
                continue
            step = self._steps[prompts[i].step]
            answer = step.least_answer(prompts[i])
            if len(prompt.ids) + answer > self._context:
                room = "leave room for an answer in" if self._writes else "fit into"
                asked = f" with max_tokens {answer}" if answer > 1 else ""
                message = f"{len(prompt.ids)} tokens{asked} do not {room} a context of {self._context}"
                completions[i] = Completion.failed(RowError("prompt_too_long", message), len(prompt.ids))
            else:
                ids = list(prompt.ids)
                params = step.parameters(prompts[i], prompt)
                if isinstance(params, RowError):
                    completions[i] = Completion.failed(params)
                    continue
                requests.append(Request({"type": "token", "prompt_token_ids": ids}, params, prompt.text))
                places.append(i)
        batch = self._pump.run(requests, begun, finished)
        for i, result, seconds in zip(places, batch.results, batch.seconds, strict=True):
            prompt = made[i]
            if result is not None and not isinstance(prompt, RowError):
                completions[i] = completion = self._steps[prompts[i].step].completion(result)
                completion.truncated_tokens, completion.seconds = prompt.truncated, seconds
        if None in completions:
            running = [places[i] for i in batch.running()]
            raise EngineDied(self._pump.death or "the engine gave no answer", completions, running)
        return [completion for completion in completions if completion is not None]

    @property
    def steps(self) -> int:
        return self._pump.steps

    def _tokenized(self, prompts: Sequence[Prompt]) -> list[Tokenized | RowError]:
        """The tokens of each prompt."""
        if len(self._steps) == 1:
            return self._steps[0].tokens(prompts)
        made: list[Tokenized | RowError | None] = [None] * len(prompts)
        for step, requests in enumerate(self._steps):
            places = [place for place, prompt in enumerate(prompts) if prompt.step == step]
            for place, found in zip(places, requests.tokens([prompts[place] for place in places]), strict=True):
                made[place] = found
        return [found for found in made if found is not None]

    def close(self) -> None:
        self._pump.close()
        self._fetched.cleanup()


def require_vllm() -> None:
    """Raise EngineError if vLLM cannot be imported; the message names the packages that prevent it."""
    try:
        # This module imports transformers. A wrong build of torchvision raises RuntimeError, OSError or ImportError.
        import vllm.engine.arg_utils  # noqa: F401
    except Exception as error:
        raise not_importable(error) from error


def _require_kernels(spec: JobSpec, plan: Plan) -> None:
    """Raise ResourceError for 4-bit weights on a CPU without AVX-512: vLLM 0.32 loads them, then dies with the first
    request. vLLM must be imported before, which loads the kernels that this CPU can run."""
    if plan.accelerator == "cpu":
        require_avx512(spec.model.source, plan.quantization, vllm_private.has_four_bit_kernel())


def _loopback_name() -> str | None:
    """The network interface with the address 127.0.0.1; None if there is none."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if any(one.address == "127.0.0.1" for one in found)), None)


def prepare_environment(plan: Plan) -> None:
    """Set the variables that vLLM reads from the environment, unless the user has set them."""
    if not os.environ.get("VLLM_PORT", "0").isdigit():
        # Kubernetes sets VLLM_PORT=tcp://... for every Service called vllm, but vLLM expects a number.
        del os.environ["VLLM_PORT"]
    # The engine runs in a spawned process: a fork of a Ray worker would share its sockets.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    loopback = _loopback_name()
    if plan.nodes_per_replica == 1 and loopback is not None:
        # Gloo listens where the host's name leads to, which in a pod is the address that other machines reach.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    if plan.accelerator == "cpu":
        if plan.tensor_parallel * plan.pipeline_parallel * plan.max_replicas > 1:
            # On one NUMA node, binding assigns the same cores to every rank, or fails.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        else:
            # By default vLLM reserves one core for other work, because its idle threads spin. Threads that sleep
            # (OMP_WAIT_POLICY) can share all cores, and one core is half of a small machine.
            os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        # Ray sets this to the actor's CPU share, which is not the engine's.
        os.environ.pop("OMP_NUM_THREADS", None)
