"""Three questions to each document: one job of three steps beside three jobs of one question.

    python benchmarks/steps.py [--documents 192] [--rounds 2]

Whole commands in turn, on the same documents, with a prefix cache. Time and cost have the load of the model in them,
which three jobs pay three times; work is the device-seconds that answered.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from prefixes import DOCUMENT_WORDS, write_model

QUESTIONS = {"topic": "What is it about?", "tone": "How does it sound?", "gist": "What does it say?"}
ENGINE = {"max_model_len": 2048, "enforce_eager": True, "num_gpu_blocks_override": 200, "enable_prefix_caching": True}


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one or more commands: seconds on the wall, dollars, device-seconds of work, and the cached share of tokens."""

    seconds: float
    dollars: float
    work: float
    cached: float


def write_documents(folder: Path, documents: int) -> None:
    """Documents of about 1,000 tokens that have nothing in common."""
    draw = random.Random(7)
    words = ["socket", "file", "widget", "thread", "parser", "path", "buffer", "signal", "queue", "lock"]
    texts = [" ".join(draw.choice(words) for _ in range(DOCUMENT_WORDS)) for _ in range(documents)]
    folder.mkdir()
    pq.write_table(pa.table({"id": list(range(documents)), "text": texts}), folder / "rows.parquet")


def run(folder: Path, name: str, asked: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Seconds and report of one command."""
    spec = {
        "name": name,
        "model": {"source": str(folder / "model"), "dtype": "float32"},
        "input": {"uri": str(folder / "in"), "id_column": "id"},
        "sampling": {"max_tokens": 4, "ignore_eos": True},
        "output": {"uri": str(folder / name)},
        "engine": ENGINE,
        **asked,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "batchinfer", "run", str(folder / f"{name}.yaml"), "--json"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.monotonic() - began, json.loads(done.stdout)


def added(runs: list[tuple[float, dict[str, Any]]]) -> Measured:
    """What some commands took together."""
    reports = [report for _, report in runs]
    return Measured(
        seconds=sum(seconds for seconds, _ in runs),
        dollars=sum(report["cost_usd"] for report in reports),
        work=sum(report["seconds"]["work"] for report in reports),
        cached=sum(r["cached_tokens"] for r in reports) / sum(r["input_tokens"] for r in reports),
    )


def main() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    print("|round|time: steps|three jobs|ratio|cost|work|cached: steps|three jobs|")
    print("|---|---|---|---|---|---|---|---|")
    for number in range(asked.rounds):
        with tempfile.TemporaryDirectory(prefix="batchinfer-steps-") as name:
            folder = Path(name)
            write_model(folder / "model")
            write_documents(folder / "in", asked.documents)
            prompts = {key: {"template": "{{ text }}\n" + question} for key, question in QUESTIONS.items()}
            steps = [{"name": key, "prompt": prompt} for key, prompt in prompts.items()]
            one = added([run(folder, "steps", {"steps": steps})])
            three = added([run(folder, key, {"prompt": prompt}) for key, prompt in prompts.items()])
            print(
                f"|{number + 1}|{one.seconds:.0f} s|{three.seconds:.0f} s|{one.seconds / three.seconds:.2f}|"
                f"{one.dollars / three.dollars:.2f}|{one.work / three.work:.2f}|{one.cached:.0%}|{three.cached:.0%}|",
                flush=True,
            )


if __name__ == "__main__":
    main()
