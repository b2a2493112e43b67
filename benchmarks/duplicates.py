"""What `dedupe` saves: rows a second of a corpus with duplicates, with it and without, and its cost without duplicates.

A whole job on Ray with the scripted engine, which takes a fixed time for each token. One replica.
`python benchmarks/duplicates.py` from the root of the project.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 5000
SHARE = 0.3
SECONDS_PER_TOKEN = 2e-4
"""A row of 60 tokens takes 12 ms: as an engine that runs 80 rows a second. With an engine ten times as fast, a loaded
machine of two cores is busy with Ray, and the engine waits."""


def write_corpus(folder: Path, share: float) -> None:
    """`ROWS` rows, of which `share` repeat an earlier text."""
    folder.mkdir()
    different = round(ROWS * (1 - share))
    # 7919 is prime to the number of texts, so that duplicates lie all over the corpus.
    text = "a ticket of about a hundred letters, as they come in by the thousand each day, number"
    texts = [f"{text} {i * 7919 % different}" for i in range(ROWS)]
    pq.write_table(pa.table({"id": list(range(ROWS)), "text": texts}), folder / "part-0.parquet", row_group_size=1000)


def measured(folder: Path, corpus: Path, dedupe: bool) -> dict[str, Any]:
    """The report of one run."""
    output = folder / f"{corpus.name}-{dedupe}"
    spec = {
        "name": "duplicates",
        "model": {"source": "scripted"},
        "input": {"uri": str(corpus), "id_column": "id"},
        "prompt": {"template": "Summarize: {{ text }}"},
        "sampling": {"max_tokens": 32},
        "output": {"uri": str(output)},
        "shards": {"rows": 250},
        "resources": {"accelerator": "cpu", "replicas": 1},
        "engine": {"scripted": {"seconds_per_token": SECONDS_PER_TOKEN}},
        "dedupe": dedupe,
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-m", "batchinfer", "run", str(path)], check=True, capture_output=True)
    report: dict[str, Any] = json.loads((output / "_run" / "report.json").read_text())
    return report


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| duplicates | dedupe | rows/s | device-seconds of work | rows reused | times as fast |")
        print("| --- | --- | --- | --- | --- | --- |")
        for share in (SHARE, 0.0):
            corpus = folder / f"corpus-{share}"
            write_corpus(corpus, share)
            reports = {dedupe: measured(folder, corpus, dedupe) for dedupe in (False, True)}
            for dedupe, report in reports.items():
                times = report["rows_per_second"] / reports[False]["rows_per_second"]
                print(
                    f"| {share:.0%} | {'on' if dedupe else 'off'} | {report['rows_per_second']:,.0f} | "
                    f"{report['seconds']['work']:.1f} | {report['rows_reused']:,} | {times:.2f} |"
                )


if __name__ == "__main__":
    main()
