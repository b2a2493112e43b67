"""The whole job against plain `vllm.LLM.chat`: same rows, same engine arguments, in turn.

    python benchmarks/against_vllm.py [ROUNDS]         (default: 2 rounds of 4,096 rows)

Steady speed is rows over seconds: of the call of `chat` there, from the first shard's start to the last one's end
here; start-up is excluded on both sides. Cold is the whole command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parent.parent
ROWS = 4096
ENGINE = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 2**28}
CHOICES = ["data", "files", "system", "concurrency", "network", "markup", "gui", "tools", "runtime"]

PLAIN = """
import json, sys, time
import pyarrow.parquet as pq
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams
if __name__ == "__main__":
    folder, model, engine, sampling, choices = json.loads(sys.argv[1])
    texts = pq.read_table(folder)["text"].to_pylist()
    llm = LLM(model, dtype="float32", **engine)
    structured = StructuredOutputsParams(choice=choices) if choices else None
    params = SamplingParams(**sampling, structured_outputs=structured)
    began = time.monotonic()
    outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params, use_tqdm=False)
    seconds = time.monotonic() - began
    found = {"rows_per_second": len(texts) / seconds, "texts": [o.outputs[0].text for o in outputs]}
    json.dump(found, open(sys.argv[2], "w"))
"""


def environment() -> dict[str, str]:
    """What batchinfer's replica sets for the engine, for both sides alike."""
    return os.environ | {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "true",
    }


def plain(folder: Path, case: dict[str, object]) -> dict[str, object]:
    """One run of `vllm.LLM.chat`."""
    script = folder / "plain.py"
    script.write_text(PLAIN)
    given = json.dumps([str(folder / "in"), str(ROOT / "jobs/demo/model"), ENGINE, case["sampling"], case["choices"]])
    began = time.monotonic()
    found = folder / "found.json"
    subprocess.run([sys.executable, str(script), given, str(found)], capture_output=True, env=environment(), check=True)
    return json.loads(found.read_text()) | {"cold_seconds": time.monotonic() - began}


def job(folder: Path, case: dict[str, object], number: int) -> dict[str, object]:
    """One run of the job."""
    spec = {
        "name": "against-vllm",
        "model": {"source": str(ROOT / "jobs/demo/model"), "dtype": "float32"},
        "input": {"uri": str(folder / "in"), "id_column": "id"},
        "prompt": {"column": "text"},
        "sampling": case["sampling"],
        "output": {"uri": str(folder / f"out-{number}")} | ({"choices": case["choices"]} if case["choices"] else {}),
        "engine": ENGINE,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "batchinfer", "run", str(path), "--json"],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["rows"] == ROWS
    shards = pq.read_table(folder / f"out-{number}" / "accounting")
    seconds = pc.max(shards["finished_at"]).as_py() - pc.min(shards["started_at"]).as_py()
    return {
        "rows_per_second": ROWS / seconds.total_seconds(),
        "cold_seconds": time.monotonic() - began,
        "texts": pq.read_table(folder / f"out-{number}" / "data")["output"].to_pylist(),
    }


def main() -> None:
    """Run both in turn and print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    cases: dict[str, dict[str, object]] = {
        "classification (choices, 1 token + end)": {
            "sampling": {"max_tokens": 4, "temperature": 0.0},
            "choices": CHOICES,
        },
        "generation (32 tokens)": {
            "sampling": {"max_tokens": 32, "temperature": 0.0, "ignore_eos": True},
            "choices": None,
        },
    }
    with tempfile.TemporaryDirectory(prefix="batchinfer-against-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, str(ROOT / "jobs/demo/docstrings.py"), str(folder / "docs")], check=True)
        rows = pq.read_table(folder / "docs").slice(0, ROWS).select(["id", "text"])
        (folder / "in").mkdir()
        pq.write_table(pa.table(rows), folder / "in" / "rows.parquet")
        print("|case|round|LLM.chat rows/s|job rows/s|steady ratio|LLM.chat cold s|job cold s|same answers|")
        print("|---|---|---|---|---|---|---|---|")
        number = 0
        for title, case in cases.items():
            for turn in range(rounds):
                number += 1
                a, b = plain(folder, case), job(folder, case, number)
                same = sum(x == y for x, y in zip(a["texts"], b["texts"], strict=True))
                print(
                    f"|{title}|{turn + 1}|{a['rows_per_second']:.0f}|{b['rows_per_second']:.0f}"
                    f"|{b['rows_per_second'] / a['rows_per_second']:.2f}"
                    f"|{a['cold_seconds']:.0f}|{b['cold_seconds']:.0f}|{same} of {ROWS}|",
                    flush=True,
                )


if __name__ == "__main__":
    main()
