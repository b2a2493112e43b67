"""A corpus as vectors: the whole job beside `vllm.LLM.embed`, rows a second and peak memory.

    python benchmarks/embeddings.py [--rows 500,2000] [--tokens 1000]

A random checkpoint of Qwen3's kind (two layers, vectors of 128 numbers) and rows of as many tokens each. Both read the
same Parquet files and write their vectors to Parquet: the job through Ray, in shards, and `LLM.embed` in one call that
holds all texts and all vectors. Steady: from the first shard's start to the last one's end, and the call. Memory is the
highest sum of the proportional set sizes of the command's processes. From the root of the project, which holds `tests`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from peers import command

from tests.support.tiny_models import TEXTS, make_checkpoint

FILES = 4
KV_CACHE_BYTES = 2**28


def write_rows(folder: Path, model: Path, rows: int, tokens: int) -> None:
    """`rows` texts of `tokens` tokens each, from the words that the tokenizer was trained on."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    words = " ".join(TEXTS).split()
    draw = random.Random(3)
    folder.mkdir()
    for number in range(FILES):
        span = range(number * rows // FILES, (number + 1) * rows // FILES)
        # No text has fewer tokens than words.
        texts = [" ".join(draw.choices(words, k=tokens)) for _ in span]
        cut = [
            text[: found.offsets[tokens - 1][1]]
            for text, found in zip(texts, tokenizer.encode_batch(texts), strict=True)
        ]
        pq.write_table(pa.table({"id": list(span), "text": cut}), folder / f"{number}.parquet")


def job(place: Path, model: Path, tokens: int) -> tuple[float, Any]:
    """`batchinfer run`: steady seconds, and how the command went."""
    spec = {
        "name": "vectors",
        "task": "embed",
        "model": {"source": str(model), "dtype": "float32"},
        "input": {"uri": str(place / "in"), "id_column": "id"},
        "prompt": {"column": "text"},
        "engine": {"max_model_len": tokens + 8, "enforce_eager": True, "kv_cache_memory_bytes": KV_CACHE_BYTES},
        "output": {"uri": str(place / "out"), "column": "vector"},
    }
    (place / "job.yaml").write_text(yaml.safe_dump(spec))
    ran = command([sys.executable, "-m", "batchinfer", "run", str(place / "job.yaml")])
    spans = pq.read_table(place / "out" / "accounting", columns=["started_at", "finished_at"]).to_pylist()
    ended, began = max(span["finished_at"] for span in spans), min(span["started_at"] for span in spans)
    return (ended - began).total_seconds(), ran


def llm_embed(place: Path, model: Path, tokens: int) -> tuple[float, Any]:
    """`LLM.embed` in a process of its own: the seconds of the call, and how the command went."""
    ran = command([sys.executable, __file__, "--peer", str(place), str(model), str(tokens)])
    return json.loads((place / "found.json").read_text())["seconds"], ran


def peer(place: Path, model: str, tokens: int) -> None:
    """The process of `llm_embed`."""
    from vllm import LLM

    table = pq.read_table(place / "in")
    llm = LLM(
        model=model,
        runner="pooling",
        dtype="float32",
        max_model_len=tokens + 8,
        enforce_eager=True,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
    )
    began = time.monotonic()
    outputs = llm.embed(table["text"].to_pylist(), use_tqdm=False)
    seconds = time.monotonic() - began
    vectors = pa.array([output.outputs.embedding for output in outputs], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": table["id"], "vector": vectors}), place / "vectors.parquet")
    (place / "found.json").write_text(json.dumps({"seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", default="500,2000")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--peer", nargs=3)
    options = parser.parse_args()
    if options.peer:
        peer(Path(options.peer[0]), options.peer[1], int(options.peer[2]))
        return
    print(f"|rows of {options.tokens:,} tokens|way|steady rows/s|tokens/s|whole command s|CPU s|peak MiB|")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        model = Path(folder, "model")
        make_checkpoint("Qwen3ForCausalLM", model, max_position_embeddings=options.tokens + 8, initializer_range=0.02)
        for count in map(int, options.rows.split(",")):
            place = Path(folder, str(count))
            place.mkdir()
            write_rows(place / "in", model, count, options.tokens)
            for name, way in (("`LLM.embed`", llm_embed), ("the job", job)):
                seconds, ran = way(place, model, options.tokens)
                speed = count / seconds
                print(
                    f"|{count:,}|{name}|{speed:.1f}|{speed * options.tokens:,.0f}|{ran.seconds:.0f}"
                    f"|{ran.watch.cpu_seconds:.0f}|{ran.watch.peak_bytes / 2**20:,.0f}|",
                    flush=True,
                )


if __name__ == "__main__":
    main()
