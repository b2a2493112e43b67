"""Signals at random moments: what the command ends with, and whether a second run completes what the first left.

    python benchmarks/signals.py --signals 100 --seed 1
    AWS_ENDPOINT_URL=http://127.0.0.1:5000 python benchmarks/signals.py --signals 50 --output s3://bucket/folder

Each trial starts `batchinfer run` on the scripted engine and waits until the process has its handlers: what comes
before, while the interpreter starts, ends it as the system does. At a moment drawn from the rest of its life it is sent
SIGINT, SIGTERM or SIGHUP, once or twice. Asked are: exit code 4, or 0 if it was done; an error of one line; no
traceback; no process left; an end within `--limit` seconds. Then the command is run again and the rows are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent
MARK = "BATCHINFER_SIGNALS_TRIAL"
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROWS = 400

_SECOND_LIMITS = 3
"""How many limits of a signal's effect the second command may take, which starts Ray and runs what is left."""

SPEC = """
name: signals
model: {{source: scripted}}
input: {{uri: {input}, id_column: id}}
prompt: {{template: "{{{{ text }}}}"}}
output: {{uri: {output}}}
shards: {{rows: 20}}
engine: {{max_num_seqs: 20, scripted: {{seconds_per_batch: 0.3, load_seconds: 1}}}}
storage: {{"s3://": {{lease_seconds: 5}}}}
"""


@dataclass
class Trial:
    """One command, and what became of it."""

    signals: str
    seconds: float
    """When the first signal was sent, since the process has its handlers."""
    code: int | None
    ended_after: float
    """Seconds from the last signal to the end of the process."""
    lines: int
    faults: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--signals", type=int, default=20, help="how many signals in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", help="a folder or an s3:// URI for the runs; default: a temporary folder")
    parser.add_argument("--life", type=float, default=14.0, help="seconds that an undisturbed command takes")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds in which a signal must have its effect")
    parser.add_argument("--command", choices=("run", "validate"), default="run")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signals-") as folder:
        trials = run_trials(
            Path(folder), given.output or f"{folder}/out", given.signals, given.seed, given.life, given.limit,
            given.command,
        )  # fmt: skip
    print(report(trials, given.json))
    sys.exit(any(trial.faults for trial in trials))


def run_trials(
    folder: Path,
    output: str,
    signals: int,
    seed: int,
    life: float,
    limit: float,
    subcommand: str = "run",
) -> list[Trial]:
    """Trials until so many signals were sent."""
    chance = random.Random(seed)
    rows = folder / "rows"
    rows.mkdir(exist_ok=True)
    table = pa.table({"id": [f"r{i}" for i in range(ROWS)], "text": [f"text {i}" for i in range(ROWS)]})
    pq.write_table(table, rows / "rows.parquet")
    trials: list[Trial] = []
    sent = number = 0
    while sent < signals:
        # Early moments have the most different states: one in two trials is in the first 40%.
        share = chance.random() * (0.4 if chance.random() < 0.5 else 1.0)
        picked = [chance.choice(NUMBERS) for _ in range(chance.choice((1, 1, 2)))]
        gap = chance.choice((0.0, 0.05, 0.5, 2.0))
        spec = folder / f"job-{number}.yaml"
        place = f"{output}/{number}-{uuid.uuid4().hex[:6]}"
        spec.write_text(SPEC.format(input=rows, output=place))
        group = chance.random() < 0.2
        trials.append(_trial(spec, place, picked, share * life, gap, group, limit, subcommand))
        sent += len(picked)
        number += 1
    return trials


def _trial(
    spec: Path,
    output: str,
    picked: list[signal.Signals],
    at: float,
    gap: float,
    group: bool,
    limit: float,
    subcommand: str,
) -> Trial:
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "batchinfer", subcommand, str(spec)]
    environment = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    _wait_until_caught(process.pid)
    time.sleep(at)
    for i, number in enumerate(picked):
        if i:
            time.sleep(gap)
        if process.poll() is None:
            # Ctrl-C on a terminal reaches the whole group.
            if group and number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
    began = time.monotonic()
    faults: list[str] = []
    errors, hangs = _errors_of(process, limit)
    if hangs:
        faults.append(f"still there {limit:g} s after the signal")
    took = time.monotonic() - began
    told = [line for line in errors.splitlines() if not line.startswith("{")]
    said = [line for line in told if line.startswith("error:")]
    if process.returncode not in (0, 4):
        faults.append(f"exit code {process.returncode}: {told[-1:]}")
    if process.returncode == 4 and len(said) != 1:
        faults.append(f"{len(said)} lines say why: {told[:3]}")
    if "Traceback" in errors:
        faults.append("a traceback")
    deadline = time.monotonic() + 10
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        faults.append(f"left behind: {left}")
    names = "+".join(number.name for number in picked) + (" to the group" if group else "")
    trial = Trial(names, round(at, 2), process.returncode, round(took, 2), len(told), faults)
    if subcommand != "run":
        return trial
    again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    errors, hangs = _errors_of(again, _SECOND_LIMITS * limit)
    if hangs:
        faults.append(f"the second command is still there after {_SECOND_LIMITS * limit:g} s")
    elif again.returncode:
        faults.append(f"the second command ended with {again.returncode}: {errors[-300:]}")
    else:
        store, path = (
            (pafs.S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL")), output.removeprefix("s3://"))
            if output.startswith("s3://")
            else (None, output)
        )
        ids = ds.dataset(f"{path}/data", filesystem=store).to_table(columns=["id"]).column("id").to_pylist()
        if sorted(ids) != sorted(f"r{i}" for i in range(ROWS)):
            faults.append(f"{len(ids)} rows, {len(set(ids))} different ones")
    return trial


def _errors_of(process: subprocess.Popen[str], limit: float) -> tuple[str, bool]:
    """What a command said on stderr, and whether it was still there after `limit` seconds: then where its threads are
    is printed, and it is ended.
    """
    try:
        return process.communicate(timeout=limit)[1], False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
    try:
        errors = process.communicate(timeout=10)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        errors = process.communicate()[1]
    print(errors[-6000:], file=sys.stderr)
    return errors, True


def _wait_until_caught(pid: int) -> None:
    """Until the process has a handler for SIGTERM: before that it is the interpreter, which has not begun with it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            caught = next((int(line.split()[1], 16) for line in file if line.startswith("SigCgt:")), 0)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


def _marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(" ".join(process.cmdline())[:80])
        except (psutil.Error, OSError):
            continue
    return found


def report(trials: list[Trial], as_json: bool) -> str:
    """What the trials came to."""
    slowest = max((trial.ended_after for trial in trials), default=0.0)
    found = {
        "signals": sum(len(trial.signals.split(" ")[0].split("+")) for trial in trials),
        "commands": len(trials),
        "exit_codes": dict(Counter(str(trial.code) for trial in trials)),
        "slowest_end_seconds": slowest,
        "faults": [[trial.signals, trial.seconds, trial.faults] for trial in trials if trial.faults],
    }
    if as_json:
        return json.dumps(found)
    lines = [f"{key}: {value}" for key, value in found.items() if key != "faults"]
    return "\n".join([*lines, *(f"fault: {fault}" for fault in found["faults"])])  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
