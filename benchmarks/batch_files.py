"""Batch files of OpenAI's API: speed and memory of `run-batch` against the number and the size of the requests.

    python benchmarks/batch_files.py                     (10,000 and 100,000 short requests, 1,000 of 32,000 tokens)
    python benchmarks/batch_files.py 500000/32000        (REQUESTS/TOKENS of a prompt; without /TOKENS about 20)

The engine is scripted, so this is the pipeline alone: reading, cutting, asking, committing, and writing the output file
in the order of the requests. Wall time is that of the whole command. Each response is compared with its request.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline_scale import watch

DEFAULT = ("10000", "100000", "1000/32000")
COLUMNS = (
    "requests",
    "tokens each",
    "input MiB",
    "wall s",
    "requests/s",
    "MiB/s",
    "driver peak MiB",
    "replica peak MiB",
)
WORD = "text "


def write_requests(path: Path, requests: int, tokens: int) -> None:
    """Requests of which each has a text and a limit of its own."""
    text = WORD * (tokens * 4 // len(WORD))
    with path.open("w") as file:
        for number in range(requests):
            messages = [{"role": "user", "content": f"{number} {text}"}]
            body = {"model": "m", "messages": messages, "max_tokens": 8 + number % 8, "temperature": 0}
            line = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def require_right(path: Path, requests: int) -> None:
    """Fail unless each request has its own answer, in its place."""
    count = 0
    with path.open() as file:
        for number, line in enumerate(file):
            found = json.loads(line)
            content = found["response"]["body"]["choices"][0]["message"]["content"]
            assert found["custom_id"] == f"r-{number}", (number, line[:200])
            assert content.split()[0] == str(number), (number, line[:200])
            count += 1
    assert count == requests, count


def measure(folder: Path, requests: int, tokens: int) -> str:
    """Run the requests; a line of the table."""
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    write_requests(source, requests, tokens)
    size = source.stat().st_size / 2**20
    command = [sys.executable, "-m", "batchinfer", "run-batch", "-i", str(source), "-o", str(target)]
    command += ["--model", "scripted", "--served-model-name", "m"]
    began = time.monotonic()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        seen = watch(process).values()
    wall = time.monotonic() - began
    if process.returncode:
        sys.exit((folder / "log").read_text()[-3000:])
    require_right(target, requests)
    peaks = [max(entry.peak for entry in seen if entry.name == name) / 1024 for name in ("driver", "replica")]
    cells = [
        f"{requests:,}",
        f"{tokens:,}",
        f"{size:,.0f}",
        f"{wall:.0f}",
        f"{requests / wall:,.0f}",
        f"{size / wall:.1f}",
    ]
    return "|" + "|".join([*cells, *(f"{peak:,.0f}" for peak in peaks)]) + "|"


def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="REQUESTS[/TOKENS]")
    print("|" + "|".join(COLUMNS) + "|\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for case in parser.parse_args().cases or DEFAULT:
        requests, _, tokens = case.partition("/")
        with tempfile.TemporaryDirectory(prefix="batchinfer-files-") as folder:
            print(measure(Path(folder), int(requests), int(tokens or 20)), flush=True)


if __name__ == "__main__":
    main()
