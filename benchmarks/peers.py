"""The whole job against its peers: same rows, same engine arguments, same environment, whole processes in turn.

    python benchmarks/peers.py [--cases one,32,mixed,large] [--peers chat,ray,run-batch,job] [--rounds 1] [--rows N]
                               [--daft-python PYTHON] [--json FILE]

`--rows` caps each case's own number of rows. Peers: see NOTES, printed first. Daft is no dependency: without it in this
interpreter, or in the one that --daft-python names, its lines say so. A line is printed as soon as it is measured.

steady rows/s   rows over the span from the first row's way into the engine to the last row's way out, as NOTES says
cold s          the whole command, to its end
CPU s           user and system time of the command's processes, as last seen every SAMPLE_SECONDS
peak MiB        the highest sum of their proportional set sizes (PSS: what they share is counted once), as often
same            answers equal to those of LLM.chat in the same round
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parent.parent
SAMPLE_SECONDS = 2.0

NOTES = {
    "chat": "`vllm.LLM.chat`, all rows in one call; steady: the call",
    "chat-uniproc": "the same with distributed_executor_backend=UniProcExecutor: the worker in the engine's process, "
    "as batchinfer's replica has it on a CPU; vLLM's own choice, a process more, is what all other peers have",
    "ray": "`ray.data.llm`: chat template and tokenizer stages of their own, engine actor with all CPUs, batches of "
    "128, 8 at once, logical CPUs for every stage, metrics export off; steady: from the first arrival in the engine "
    "to the last row out of it, so without its other stages' lead and tail",
    "run-batch": "`vllm run-batch`, one OpenAI request a line; steady: from its reading of the file to its 100% line, "
    "without the writing of the answers",
    "daft": "Daft's `prompt`, provider vllm-prefix-caching, gpus_per_actor 0, prompts with the chat template applied "
    "beforehand; steady: from the engine's construction to the collected rows",
    "job": "`batchinfer run`, results and accounting committed; steady: from the first shard's start to the last one's "
    "finish in its accounting",
}


@dataclass(frozen=True)
class Case:
    """What all peers are given. `model` is demo, or one of `random_model.SIZES`."""

    title: str
    model: str
    rows: int
    context: int
    kv_cache_bytes: int
    sampling: dict[str, Any]

    @property
    def engine(self) -> dict[str, Any]:
        """vLLM's arguments. The two sizes are those that it takes on a CPU for `LLM` alone, given to everybody:
        left out, every other way of starting it gets half of each (128 and 2,048)."""
        return {
            "dtype": "float32",
            "max_model_len": self.context,
            "enforce_eager": True,
            "kv_cache_memory_bytes": self.kv_cache_bytes,
            "max_num_seqs": 256,
            "max_num_batched_tokens": 4096,
        }


STOPS = list(range(100, 6100, 400))
"""15 of 6,144 tokens: a model of random weights, whose greedy walk through the vocabulary does not settle, meets one of
them after some 400 tokens, sooner or later by the row. So lengths differ as real ones do, and are the same for every
peer without a length for each row, which the job's spec and Daft's `prompt` do not have."""

CASES = {
    "one": Case("1 token", "demo", 4096, 512, 2**28, {"max_tokens": 1, "temperature": 0.0}),
    "32": Case("32 tokens", "demo", 4096, 512, 2**28, {"max_tokens": 32, "temperature": 0.0, "ignore_eos": True}),
    "mixed": Case(
        "64 to 1,024 tokens, mixed",
        "wide",
        256,
        1536,
        2**30,
        {"min_tokens": 64, "max_tokens": 1024, "temperature": 0.0, "stop_token_ids": STOPS},
    ),
    "large": Case(
        "32 tokens, 104M parameters",
        "large",
        128,
        512,
        3 * 2**29,
        {"max_tokens": 32, "temperature": 0.0, "ignore_eos": True},
    ),
}


@dataclass
class Line:
    """One measurement."""

    case: str
    round: int
    peer: str
    rows: int
    rows_per_second: float
    tokens: int | None
    cold_seconds: float
    cpu_seconds: float
    peak_mib: float
    same: int | None = None
    ratio: float | None = None


class Watch:
    """PSS and CPU time of a process and all its descendants, sampled from a thread until `end`."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu: dict[tuple[int, float], float] = {}
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu.values())

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            try:
                tree = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                return
            self.peak_bytes = max(self.peak_bytes, sum(map(self._look, tree)))

    def _look(self, process: psutil.Process) -> int:
        try:
            times = process.cpu_times()
            self._cpu[process.pid, process.create_time()] = times.user + times.system
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (psutil.Error, OSError):
            return 0  # it has ended meanwhile
        return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


@dataclass
class Ran:
    """A command that has ended: how it went, and what it printed, each line with its monotonic time."""

    watch: Watch
    seconds: float
    printed: list[tuple[float, str]]


def environment() -> dict[str, str]:
    """What batchinfer's replica sets for the engine, and its driver for Ray, for everybody alike."""
    return os.environ | {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "true",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def command(arguments: list[str]) -> Ran:
    """Run it to its end; RuntimeError with its last lines if it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment()
    )
    watch = Watch(process.pid)
    printed: list[tuple[float, str]] = []

    def read() -> None:
        for line in process.stdout or ():
            printed.append((time.monotonic(), line.rstrip()))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    code = process.wait()
    seconds = time.monotonic() - began
    watch.end()
    reader.join(timeout=10)
    if code != 0:
        raise RuntimeError("\n".join(text for _, text in printed[-12:]))
    return Ran(watch, seconds, printed)


class Runner:
    """Runs peers in `folder`; each method gives (what was found, how the command went)."""

    def __init__(self, folder: Path, daft_python: str) -> None:
        self._folder = folder
        self._daft_python = daft_python
        self._number = 0

    def run(self, peer: str, case: Case, rows: pa.Table) -> tuple[dict[str, Any], Ran]:
        self._number += 1
        place = self._folder / f"run-{self._number}"
        (place / "in").mkdir(parents=True)
        pq.write_table(rows, place / "in" / "rows.parquet")
        model = str(model_folder(self._folder, case.model))
        if peer == "job":
            return self._job(place, model, case)
        if peer == "run-batch":
            return self._run_batch(place, model, case, rows)
        return self._one_peer(place, model, case, peer)

    def _one_peer(self, place: Path, model: str, case: Case, peer: str) -> tuple[dict[str, Any], Ran]:
        python = self._daft_python if peer == "daft" else sys.executable
        given = {"rows": str(place / "in" / "rows.parquet"), "model": model}
        task, found = place / "task.json", place / "found.json"
        task.write_text(json.dumps(given | {"engine": case.engine, "sampling": case.sampling}))
        ran = command([python, str(ROOT / "benchmarks/one_peer.py"), peer, str(task), str(found)])
        return json.loads(found.read_text()), ran

    def _run_batch(self, place: Path, model: str, case: Case, rows: pa.Table) -> tuple[dict[str, Any], Ran]:
        requests, answers = place / "requests.jsonl", place / "answers.jsonl"
        with requests.open("w") as file:
            for row in rows.to_pylist():
                body = {"model": model, "messages": [{"role": "user", "content": row["text"]}], **case.sampling}
                url = "/v1/chat/completions"
                file.write(json.dumps({"custom_id": row["id"], "method": "POST", "url": url, "body": body}) + "\n")
        flags = []
        for name, value in case.engine.items():
            flags += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        # Not the `vllm` command: it wants metadata of a package "vllm", and the CPU build is named vllm-cpu.
        vllm = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch"]
        ran = command([*vllm, "-i", str(requests), "-o", str(answers), "--model", model, "--disable-log-stats", *flags])
        begun = [at for at, line in ran.printed if "Reading batch from" in line]
        ended = [at for at, line in ran.printed if "100% Completed" in line]
        if not begun or not ended:
            raise RuntimeError("it did not print when it read the file, or that it was done")
        found = [json.loads(line) for line in answers.read_text().splitlines()]
        bodies = {line["custom_id"]: line["response"]["body"] for line in found if line["error"] is None}
        return {
            "answers": {key: body["choices"][0]["message"]["content"] or "" for key, body in bodies.items()},
            "tokens": sum(body["usage"]["completion_tokens"] for body in bodies.values()),
            "seconds": ended[-1] - begun[0],
        }, ran

    def _job(self, place: Path, model: str, case: Case) -> tuple[dict[str, Any], Ran]:
        engine = dict(case.engine)
        spec = {
            "name": "peers",
            "model": {"source": model, "dtype": engine.pop("dtype")},
            "input": {"uri": str(place / "in"), "id_column": "id"},
            "prompt": {"column": "text"},
            "sampling": case.sampling,
            "output": {"uri": str(place / "out")},
            "engine": engine,
        }
        path = place / "job.yaml"
        path.write_text(yaml.safe_dump(spec))
        ran = command([sys.executable, "-m", "batchinfer", "run", str(path), "--json"])
        shards = pq.read_table(place / "out" / "accounting")
        data = pq.read_table(place / "out" / "data")
        span = pc.max(shards["finished_at"]).as_py() - pc.min(shards["started_at"]).as_py()
        return {
            "answers": dict(zip(data["id"].to_pylist(), data["output"].to_pylist(), strict=True)),
            "tokens": pc.sum(data["output_tokens"]).as_py(),
            "seconds": span.total_seconds(),
        }, ran


def model_folder(folder: Path, name: str) -> Path:
    """The demo's model, or one of random weights, made on the first call."""
    made = folder / name
    if name == "demo":
        return ROOT / "jobs/demo/model"
    if not made.exists():
        subprocess.run([sys.executable, str(ROOT / "benchmarks/random_model.py"), str(made), name], check=True)
    return made


def measure(runner: Runner, case: Case, rows: pa.Table, number: int, peer: str) -> tuple[Line, dict[str, str]]:
    """One line and the answers. RuntimeError if the peer fails or loses a row."""
    found, ran = runner.run(peer, case, rows)
    if len(found["answers"]) != rows.num_rows:
        raise RuntimeError(f"{len(found['answers'])} answers of {rows.num_rows}")
    line = Line(
        case=case.title,
        round=number,
        peer=peer,
        rows=rows.num_rows,
        rows_per_second=rows.num_rows / found["seconds"],
        tokens=found["tokens"],
        cold_seconds=ran.seconds,
        cpu_seconds=ran.watch.cpu_seconds,
        peak_mib=ran.watch.peak_bytes / 2**20,
    )
    return line, found["answers"]


def show(line: Line) -> None:
    cells = [
        line.case,
        line.round,
        line.peer,
        f"{line.rows:,}",
        f"{line.rows_per_second:.1f}",
        "" if line.ratio is None else f"{line.ratio:.3f}",
        f"{line.cold_seconds:.0f}",
        f"{line.cpu_seconds:.0f}",
        f"{line.peak_mib:,.0f}",
        "" if line.tokens is None else f"{line.tokens:,}",
        "" if line.same is None else f"{line.same:,}",
    ]
    print("|" + "|".join(map(str, cells)) + "|", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--peers", default=",".join(NOTES), help=f"of {', '.join(NOTES)}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=None, help="at most so many rows in each case")
    parser.add_argument("--daft-python", default=sys.executable, help="a Python that has daft, vllm and transformers")
    parser.add_argument("--json", type=Path, help="where to write the lines, after each of them")
    given = parser.parse_args()
    given.cases, given.peers = given.cases.split(","), given.peers.split(",")
    unknown = (set(given.cases) - set(CASES)) | (set(given.peers) - set(NOTES))
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return given


def main() -> None:
    """Run every peer of every case in turn, round by round, and print a table."""
    given = arguments()
    for peer in given.peers:
        print(f"- {peer}: {NOTES[peer]}")
    print("\n|case|round|peer|rows|steady rows/s|of LLM.chat|cold s|CPU s|peak MiB|tokens out|same|")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="batchinfer-peers-") as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, str(ROOT / "jobs/demo/docstrings.py"), str(folder / "docs")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        docs = pq.read_table(folder / "docs").select(["id", "text"])
        runner = Runner(folder, given.daft_python)
        for case in (CASES[key] for key in given.cases):
            rows = docs.slice(0, min(case.rows, given.rows or case.rows))
            for number in range(1, given.rounds + 1):
                base: tuple[Line, dict[str, str]] | None = None
                for peer in given.peers:
                    try:
                        line, answers = measure(runner, case, rows, number, peer)
                    except RuntimeError as error:
                        print(f"|{case.title}|{number}|{peer}|failed|" + "|" * 7 + f"\n\n{error}\n", flush=True)
                        continue
                    if peer == "chat":
                        base = line, answers
                    if base is not None:
                        line.ratio = line.rows_per_second / base[0].rows_per_second
                        line.same = sum(answers[key] == text for key, text in base[1].items())
                    show(line)
                    lines.append(line)
                    if given.json:
                        given.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))


if __name__ == "__main__":
    main()
