"""How much memory a large frame costs on its way to a run: it is written beside the output, and recognised again.

`python benchmarks/large_frame.py --rows 5000000` prints one JSON document. The frame itself is in memory in any case;
what counts is how much more the process takes while the rows are written and while they are compared. The peak is read
from the kernel, so that memory of Arrow and of Parquet counts too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from batchinfer.python_api.data import row_stream
from batchinfer.python_api.kept_rows import difference, write_rows
from batchinfer.storage import LocalStorage

MIB = 2**20


class Peak:
    """The largest resident memory of this process while the context lasts, beyond what it began with."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self._begin = self.most = self._process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss)

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self.seconds = round(time.monotonic() - self._began, 1)

    def document(self) -> dict[str, Any]:
        """The seconds, and the MiB beyond the beginning."""
        return {"seconds": self.seconds, "more_mib": (self.most - self._begin) // MIB}


def make_frame(rows: int, kind: str) -> Any:
    """Tickets of about 100 characters, each with an id and a date."""
    ids = pd.RangeIndex(rows)
    body = pd.Series(ids.astype(str)).str.pad(100, fillchar="x")
    frame = pd.DataFrame({"id": ids, "body": body, "at": pd.Timestamp("2026-01-01") + pd.to_timedelta(ids, unit="s")})
    if kind == "objects":
        frame["body"] = frame["body"].astype(object)
    if kind == "polars":
        import polars as pl

        return pl.from_pandas(frame)
    return frame


def measure(rows: int, kind: str) -> dict[str, Any]:
    """Write the frame, then compare it with what was written."""
    frame = make_frame(rows, kind)
    with tempfile.TemporaryDirectory() as folder:
        with Peak() as writing:
            kept = write_rows(row_stream(frame), LocalStorage(), folder)
        with Peak() as comparing:
            assert difference(row_stream(frame), kept, LocalStorage()) == []
        size = sum(path.stat().st_size for path in Path(kept.uri).iterdir())
    return {
        "kind": kind, "rows": rows, "parts": len(kept.parts), "parquet_mib": size // MIB,
        "writing": writing.document(), "comparing": comparing.document(),
    }  # fmt: skip


def main() -> None:
    """Print the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--kind", choices=["pandas", "objects", "polars"], default="pandas")
    given = parser.parse_args()
    print(json.dumps(measure(given.rows, given.kind), indent=2))


if __name__ == "__main__":
    main()
