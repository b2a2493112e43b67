"""The whole job against plain vLLM on a GPU, at true model sizes without weights; beside it the planner's predictions
and published records.

    python benchmarks/gpu.py --accelerator H200                    every model at every length
    python benchmarks/gpu.py --accelerator H200 --models llama-3.1-8b:fp8 --cases 1000/1000,mlperf --seconds 60
    python benchmarks/gpu.py --device cpu                          the same path with shrunken models, to try it

For each model (`:fp8` for fp8 weights) and length it runs `batchinfer run` on rows of exactly so many tokens
(`ignore_eos`, fixed `max_tokens`, temperature 1) of a model folder without weights (dummy_models.py), and
`vllm.LLM.generate` on the same token ids with the same engine arguments: for each model the job of the first length,
then plain vLLM at all lengths in one engine, then the jobs of the others. Each case is written to FOLDER/results as
soon as it is done.

Speed is output tokens over seconds: of the call of `generate` there, from the first shard's start to the last one's
end here, where texts are also made into tokens. Load is the time from the start of the process there, of the replica
here, until the model can be asked; all but the first load of a model find its compile cache. The rows are as many as
the estimate expects to take `--seconds`: few rows run in few waves, so give it a minute or more beside records. A
case takes about twice that and a load, a model one load more.

Needs vLLM 0.26 or later and what it brings (torch, transformers, tokenizers, pydantic, pyyaml, jinja2, filelock,
psutil, numpy), Python 3.11 or later, ray 2.60.0, pyarrow, pandas, jsonschema. What a machine with these may lack of
batchinfer's own requirements, all of it pure Python: structlog, cronsim, tzdata, and typer with click, rich,
shellingham, annotated-doc, markdown-it-py, mdurl, pygments. Where there is no network: `pip install --target FOLDER
--no-deps` these elsewhere, bring FOLDER and the checkout, and put both on PYTHONPATH. boto3 is not needed.

What becomes of the figures. FOLDER/reports has each case's report under the name of the model's repository. Copied to
`PARENT/any-name/_run/report.json` beside a job's `output.uri` PARENT/name, it calibrates the plans of that job
(plan_job.py), if `model.source` is that repository, and accelerator, quantization, layout and engine keys are those
measured. `point` in a result is a row for published_throughput.yaml, on which the constants of planner/estimate.py are
set. KV cache tokens that are off by more than 5% are for CONTEXT_BYTES and the terms beside it in planner/memory.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from dummy_models import prompts, shrunk, write_model
from gpu_cases import CPU_CASES, CPU_MODELS, GPU_CASES, GPU_MODELS, Case, cases_of, record_of

from batchinfer.accounting.report import Report
from batchinfer.catalog import list_price, models, shape_from_config
from batchinfer.engine.vllm_arguments import engine_arguments, sampling_arguments
from batchinfer.errors import BatchinferError
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.load import parse
from batchinfer.planner import Cluster, Interval, Plan, Workload, make_plan

HERE = Path(__file__).parent

# vLLM's own for `LLM` on GPUs of 70 GiB and more (0.26 to 0.32); one replica, so that both sides have one engine.
GPU_ENGINE: dict[str, Any] = {"max_num_seqs": 1024, "max_num_batched_tokens": 16384, "gpu_memory_utilization": 0.9}
CPU_ENGINE: dict[str, Any] = {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 2**26}
CPU_ENGINE |= {"enforce_eager": True}

CPU_ROWS = 256
FEWEST_ROWS = 64
SHARDS = 16
"""So many of a job's rows are made into tokens before the engine has its first: a 16th."""


@dataclass(frozen=True)
class Settings:
    """What holds for all cases of a call."""

    on_cpu: bool
    accelerator: str
    tensor_parallel: int
    seconds: float
    rows: int | None
    timeout: float
    overrides: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Made:
    """A case with its files in `folder`, ready to run."""

    case: Case
    rows: int
    spec: JobSpec
    plan: Plan
    folder: Path

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.json"

    @property
    def found(self) -> Path:
        return self.folder / "found.json"


def model_folder(case: Case, settings: Settings) -> Path:
    """One for all lengths of a model: vLLM's compile cache belongs to a path (`ModelConfig.compute_hash`)."""
    return settings.folder / "models" / f"{case.model}{'-fp8' if case.fp8 else ''}"


def spec_of(case: Case, rows: int, longest: int, settings: Settings, folder: Path) -> JobSpec:
    """The job of a case, whose input lies in `folder`. `longest`: tokens of the model's longest case, for which the
    engines of all its cases are made: another length would be compiled again."""
    engine = CPU_ENGINE if settings.on_cpu else GPU_ENGINE | ({"kv_cache_dtype": "fp8"} if case.fp8 else {})
    written = {
        "name": case.name,
        "model": {
            "source": str(model_folder(case, settings)),
            "quantization": "fp8" if case.fp8 else "none",
            "dtype": "float32" if settings.on_cpu else "bfloat16",
        },
        "input": {"uri": str(folder / "in"), "id_column": "id"},
        "prompt": {"column": "text", "chat": False},
        "sampling": {"max_tokens": case.output_tokens, "ignore_eos": True, "temperature": 1.0},
        "output": {"uri": str(folder / "out")},
        "engine": engine | {"load_format": "dummy", "max_model_len": longest},
        "resources": {
            "accelerator": settings.accelerator,
            "replicas": 1,
            "tensor_parallel": settings.tensor_parallel,
            "pipeline_parallel": 1,
        },
        "shards": {"rows": -(-rows // SHARDS)},
    }
    return parse(yaml.safe_dump(written), case.name, settings.overrides)


def plan_of(case: Case, spec: JobSpec, config: dict[str, Any], rows: int, settings: Settings) -> Plan:
    """What the job will plan for itself on a machine with these GPUs alone."""
    gpus = 0 if settings.on_cpu else settings.tensor_parallel
    cluster = Cluster(
        gpus=gpus,
        largest_node_gpus=gpus,
        accelerator_type=settings.accelerator if gpus else None,
        memory_bytes=psutil.virtual_memory().total,
    )
    output = float(case.output_tokens)
    workload = Workload(
        rows=rows,
        input_tokens=case.input_tokens,
        longest_input_tokens=case.input_tokens,
        output_tokens=Interval(low=output, mid=output, high=output),
        sampled_rows=rows,
        source="as made",
    )
    return make_plan(
        spec,
        cluster,
        spec.model.source,
        shape=shape_from_config(config),
        checkpoint_quantization="fp8" if case.fp8 else "none",
        workload=workload,
    )


def output_rate(plan: Plan, case: Case) -> float | None:
    """Output tokens a second that the plan expects; None without an estimate (on a CPU)."""
    if plan.estimate is None:
        return None
    return plan.estimate.tokens_per_second.mid * case.output_tokens / (case.input_tokens + case.output_tokens)


def rows_for(case: Case, longest: int, config: dict[str, Any], settings: Settings, folder: Path) -> int:
    """As many rows as the estimate expects to take `settings.seconds`."""
    if settings.rows is not None:
        return settings.rows
    rows = 100_000
    # The speed depends on the rows: the fewer, the more the last wave weighs.
    for _ in range(6):
        rate = output_rate(plan_of(case, spec_of(case, rows, longest, settings, folder), config, rows, settings), case)
        if rate is None:
            return CPU_ROWS
        rows = max(FEWEST_ROWS, int(settings.seconds * rate / case.output_tokens))
    return rows


def environment(on_cpu: bool) -> dict[str, str]:
    """For both sides alike: what a replica sets for its engine, nothing from the network, and vLLM's log where
    the rest is."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    own |= {"VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    own |= {"TOKENIZERS_PARALLELISM": "true", "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "RAY_USAGE_STATS_ENABLED": "0"}
    if on_cpu:
        own |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "OMP_WAIT_POLICY": "passive"}
    return os.environ | own


def run(command: list[str], log: Path, settings: Settings, cases: int = 1) -> tuple[str, float]:
    """What the command prints, and its wall seconds. Raises RuntimeError with the end of what it complained."""
    if not settings.on_cpu:
        wait_for_free_gpus()
    began = time.monotonic()
    with log.open("w") as errors:
        # Straight to the file: who waits can read it, and a command that hangs leaves it.
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(settings.on_cpu),
                timeout=cases * settings.timeout,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{log.stem} took more than {cases * settings.timeout:.0f} s") from None
    if done.returncode:
        said = log.read_text(errors="replace").strip()
        raise RuntimeError(f"{log.stem} ended with {done.returncode}: ... {said[-600:]}")
    return done.stdout, time.monotonic() - began


def wait_for_free_gpus(seconds: float = 60.0) -> None:
    """A GPU's memory is given back a moment after its process ended; vLLM refuses to start before."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        used = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        if max(map(int, used)) < 2048:
            return
        time.sleep(0.5)


def run_plain(made: Sequence[Made], settings: Settings) -> None:
    """`vllm.LLM.generate` on the prompts of all cases of a model, one after another in one engine. What each found is
    in its folder; the cases before a failure have theirs."""
    first = made[0]
    sets = [
        {"sampling": sampling_arguments(one.spec.sampling), "prompts": str(one.prompts), "found": str(one.found)}
        for one in made
    ]
    given = {"engine": engine_arguments(first.spec, first.plan), "on_cpu": settings.on_cpu, "sets": sets}
    (first.folder / "plain.json").write_text(json.dumps(given))
    command = [sys.executable, str(HERE / "plain_vllm.py"), str(first.folder / "plain.json")]
    run(command, first.folder / "plain.log", settings, len(made))


def run_job(spec: JobSpec, settings: Settings, folder: Path) -> tuple[Report, dict[str, float]]:
    """The whole job of `spec`."""
    (folder / "job.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "batchinfer", "run", str(folder / "job.yaml"), "--json"]
    printed, wall = run(command, folder / "job.log", settings)
    report = Report.model_validate_json(printed)
    shards = pq.read_table(folder / "out" / "accounting")
    seconds = (pc.max(shards["finished_at"]).as_py() - pc.min(shards["started_at"]).as_py()).total_seconds()
    values = {"seconds": seconds, "output_tokens_per_second": report.output_tokens / seconds, "cold_seconds": wall}
    values["load_seconds"] = report.seconds.load / (1 if settings.on_cpu else settings.tensor_parallel)
    return report, values | {"output_tokens": report.output_tokens, "input_tokens": report.input_tokens}


def prepared(case: Case, longest: int, settings: Settings) -> Made:
    """The files of a case: its model, its rows and their tokens."""
    folder = settings.folder / case.name
    (folder / "in").mkdir(parents=True, exist_ok=True)
    shape = models()[case.model].shape
    shape = shrunk(shape) if settings.on_cpu else shape
    config = write_model(case.model, shape, case.fp8, model_folder(case, settings))
    rows = rows_for(case, longest, config, settings, folder)
    texts, ids = prompts(shape.vocab_size, rows, case.input_tokens, seed=0)
    pq.write_table(pa.table({"id": range(rows), "text": texts}), folder / "in" / "rows.parquet")
    spec = spec_of(case, rows, longest, settings, folder)
    made = Made(case, rows, spec, plan_of(case, spec, config, rows, settings), folder)
    made.prompts.write_text(json.dumps(ids))
    made.found.unlink(missing_ok=True)
    return made


def measure(made: Made, settings: Settings) -> dict[str, float]:
    """The job of a case; raises RuntimeError if it did not do what plain vLLM is given."""
    report, job = run_job(made.spec, settings, made.folder)
    taken = Plan.model_validate_json((made.folder / "out" / "_run" / "plan.json").read_text())
    if engine_arguments(made.spec, taken) != engine_arguments(made.spec, made.plan):
        raise RuntimeError(f"the job planned other engine arguments than plain vLLM gets: {taken} and {made.plan}")
    wanted = (made.rows * made.case.input_tokens, made.rows * made.case.output_tokens)
    if (job["input_tokens"], job["output_tokens"]) != wanted:
        raise RuntimeError(f"not all {made.rows} rows had the lengths asked for: {job}")
    save_report(made.case, report, settings)
    return job


def compared(made: Made, job: dict[str, float], settings: Settings) -> dict[str, Any]:
    """A case's figures. Ratios are of the job to plain vLLM, of measured to predicted, of the job to the record."""
    case, rows, spec, plan = made.case, made.rows, made.spec, made.plan
    plain: dict[str, float] = json.loads(made.found.read_text())
    plain["output_tokens_per_second"] = plain["output_tokens"] / plain["seconds"]
    rate = job["output_tokens_per_second"]
    predicted, record = output_rate(plan, case), record_of(case, settings.accelerator, settings.tensor_parallel)
    price = list_price(settings.accelerator)
    hourly = None if price is None else price.usd_per_hour * (1 if settings.on_cpu else settings.tensor_parallel)
    million = None if hourly is None else hourly / 3600 / rate * 1e6
    share = case.output_tokens / (case.input_tokens + case.output_tokens)
    return {
        **asdict(case),
        "rows": rows,
        "engine": engine_arguments(spec, plan),
        "plain": plain,
        "job": job,
        "ratio": rate / plain["output_tokens_per_second"],
        "predicted_kv_cache_tokens": plan.kv_cache_tokens,
        "kv_cache_ratio": plain["kv_cache_tokens"] / plan.kv_cache_tokens if plan.kv_cache_tokens else None,
        "predicted_output_tokens_per_second": predicted,
        "estimate_ratio": rate / predicted if predicted else None,
        "record": asdict(record) if record else None,
        "record_ratio": rate / record.tokens_per_second if record else None,
        "price": None if price is None else str(price),
        "usd_per_million_output_tokens": million,
        "usd_per_million_tokens": None if million is None else million * share,
        "point": [case.input_tokens, case.output_tokens, rows, spec.engine.max_num_seqs, round(rate, 1)],
    }


def save_report(case: Case, report: Report, settings: Settings) -> None:
    """The job's report under the name that the catalog has for the model: see the head of this file."""
    folder = settings.folder / "reports" / case.name / "_run"
    folder.mkdir(parents=True, exist_ok=True)
    named = report.model_copy(update={"model": models()[case.model].repository})
    (folder / "report.json").write_text(named.model_dump_json(indent=1))


HEAD = (
    "|model|in/out|rows|job tok/s|plain tok/s|ratio|load s, job|load s, plain|KV predicted|KV measured|off"
    "|estimate tok/s|job / estimate|record tok/s|job / record|$ per M out|$ per M in + out|"
)


def line(found: dict[str, Any]) -> str:
    """A case as a line of the table; tok/s are output tokens."""

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    job, plain, record, kv = found["job"], found["plain"], found["record"], found["kv_cache_ratio"]
    said = "" if record is None else f"{record['tokens_per_second']:,.0f}"
    said += f" ({record['model']})" if record and record["model"] != found["model"] else ""
    cells = [f"{found['model']}{' fp8' if found['fp8'] else ''}", f"{found['input_tokens']}/{found['output_tokens']}"]
    cells += [f"{found['rows']:,}", f"{job['output_tokens_per_second']:,.0f}"]
    cells += [f"{plain['output_tokens_per_second']:,.0f}", f"{found['ratio']:.3f}"]
    cells += [f"{job['load_seconds']:.0f}", f"{plain['load_seconds']:.0f}"]
    cells += [shown(found["predicted_kv_cache_tokens"], ",d"), f"{plain['kv_cache_tokens']:,.0f}"]
    cells += ["" if kv is None else f"{1 / kv - 1:+.1%}", shown(found["predicted_output_tokens_per_second"], ",.0f")]
    cells += [shown(found["estimate_ratio"], ".2f"), said, shown(found["record_ratio"], ".2f")]
    cells += [shown(found["usd_per_million_output_tokens"], ".3g"), shown(found["usd_per_million_tokens"], ".3g")]
    return f"|{'|'.join(cells)}|"


def measured(cases: Sequence[Case], settings: Settings) -> Iterator[dict[str, Any]]:
    """Each case's figures, or why there are none, written to a file as soon as it is done."""
    for _, group in itertools.groupby(cases, key=lambda case: (case.model, case.fp8)):
        for case, found in of_model(list(group), settings):
            place = settings.folder / "results" / f"{case.name}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(found, indent=1))
            yield found


def of_model(cases: Sequence[Case], settings: Settings) -> Iterator[tuple[Case, dict[str, Any]]]:
    """A model's cases: the job of the first, plain vLLM at all lengths, the jobs of the others."""
    longest = max(case.input_tokens + case.output_tokens for case in cases)
    made = [prepared(case, longest, settings) for case in cases]
    for number, one in enumerate(made):
        job: dict[str, float] | None = None
        errors: list[str] = []
        try:
            job = measure(one, settings)
        except (BatchinferError, RuntimeError) as error:
            errors.append(str(error))
        if number == 0:
            try:
                run_plain(made, settings)
            except RuntimeError as error:
                # Its lengths before the failure have been written.
                errors.append(str(error))
        if job is not None and one.found.exists():
            yield one.case, compared(one, job, settings) | {"plain_first": number > 0}
        else:
            errors += [] if one.found.exists() else ["plain vLLM did not come to it"]
            yield one.case, asdict(one.case) | {"error": "; ".join(errors), "job": job}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--accelerator", default="H200", help="the catalog's name of the GPU that is there")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--models", help=f"names, by commas (default: {','.join(GPU_MODELS)})")
    parser.add_argument("--cases", help=f"INPUT/OUTPUT tokens or mlperf, by commas (default: {','.join(GPU_CASES)})")
    parser.add_argument("--seconds", type=float, default=60.0, help="of work for each case, by the estimate")
    parser.add_argument("--rows", type=int, help="for each case, instead of --seconds")
    parser.add_argument("--timeout", type=float, default=540.0, help="seconds for each side of a case")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="key of the spec, both sides")
    parser.add_argument("--folder", type=Path, help="where everything is kept (default: a new temporary folder)")
    return parser.parse_args()


def main() -> None:
    """Run the cases and print the table."""
    given = arguments()
    on_cpu = given.device == "cpu"
    names = given.models.split(",") if given.models else CPU_MODELS if on_cpu else GPU_MODELS
    lengths = given.cases.split(",") if given.cases else CPU_CASES if on_cpu else GPU_CASES
    try:
        cases = cases_of(names, lengths)
    except ValueError as error:
        sys.exit(f"gpu.py: {error}")
    settings = Settings(
        on_cpu=on_cpu,
        accelerator="cpu" if on_cpu else given.accelerator,
        tensor_parallel=given.tensor_parallel,
        seconds=given.seconds,
        rows=given.rows,
        timeout=given.timeout,
        overrides=tuple(given.set),
        folder=(given.folder or Path(tempfile.mkdtemp(prefix="batchinfer-gpu-"))).resolve(),
    )
    print(f"results in {settings.folder}", file=sys.stderr)
    lines = [HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    print("\n".join(lines), flush=True)
    for found in measured(cases, settings):
        name = f"{found['model']}{' fp8' if found['fp8'] else ''}"
        length = f"{found['input_tokens']}/{found['output_tokens']}"
        why = " ".join(found.get("error", "").split())[-200:].replace("|", "/")
        lines.append(f"|{name}|{length}|no figures: {why}|" if why else line(found))
        print(lines[-1], flush=True)
        (settings.folder / "results" / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
