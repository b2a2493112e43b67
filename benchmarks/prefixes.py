"""Rows that share a document, in no order, under a KV cache that holds few of the documents.

    python benchmarks/prefixes.py [--documents 64] [--questions 12] [--rounds 2]

Three whole processes in turn, on the same shuffled rows: our job (which orders what it feeds), `vllm.LLM.chat` with
prefix caching, and without. Steady speed is rows over the seconds of the call of `chat` there, from the first shard's
start to the last one's end here. Then what the ordering costs where nothing is shared: processor time a row.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from batchinfer.engine.prefix_order import PrefixOrder

ROOT = Path(__file__).parent.parent
DOCUMENT_WORDS = 700
"""About 1,000 tokens of the demo's tokenizer, 8 blocks of 128."""
BLOCKS = 200
ENGINE = {"max_model_len": 2048, "enforce_eager": True, "num_gpu_blocks_override": BLOCKS}
SAMPLING = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True}

PLAIN = """
import json, sys, time
import pyarrow.parquet as pq
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    folder, model, engine, sampling, caching = json.loads(sys.argv[1])
    texts = pq.read_table(folder)["text"].to_pylist()
    llm = LLM(model, dtype="float32", enable_prefix_caching=caching, **engine)
    began = time.monotonic()
    outputs = llm.chat([[{"role": "user", "content": t}] for t in texts], SamplingParams(**sampling), use_tqdm=False)
    seconds = time.monotonic() - began
    cached = sum(o.num_cached_tokens or 0 for o in outputs) / sum(len(o.prompt_token_ids) for o in outputs)
    json.dump({"rows_per_second": len(texts) / seconds, "cached": cached}, open(sys.argv[2], "w"))
"""

MODEL = """
import sys
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
set_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=6144, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048)).save_pretrained(sys.argv[1])
"""


def write_model(folder: Path) -> None:
    """A Llama of 6 layers with random weights and the demo's tokenizer: the time is true, the text is noise."""
    subprocess.run([sys.executable, "-c", MODEL, str(folder)], check=True, capture_output=True)
    for path in (ROOT / "jobs/demo/model").iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copy(path, folder)


def write_rows(folder: Path, documents: int, questions: int) -> int:
    """Every question about every document, shuffled."""
    draw = random.Random(7)
    words = ["socket", "file", "widget", "thread", "parser", "path", "buffer", "signal", "queue", "lock"]
    texts = []
    for _ in range(documents):
        document = " ".join(draw.choice(words) for _ in range(DOCUMENT_WORDS))
        texts += [f"{document}\nQuestion {number}: what is said of this?" for number in range(questions)]
    draw.shuffle(texts)
    folder.mkdir()
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), folder / "rows.parquet")
    return len(texts)


def plain(folder: Path, caching: bool) -> dict[str, float]:
    """`vllm.LLM.chat` on the rows as they lie."""
    given = json.dumps([str(folder / "in"), str(folder / "model"), ENGINE, SAMPLING, caching])
    (folder / "plain.py").write_text(PLAIN)
    found = folder / "found.json"
    subprocess.run([sys.executable, str(folder / "plain.py"), given, str(found)], capture_output=True, check=True)
    return dict(json.loads(found.read_text()))


def job(folder: Path, number: int) -> dict[str, float]:
    """The whole job on the same rows."""
    out = folder / f"out-{number}"
    spec = {
        "name": "prefixes",
        "model": {"source": str(folder / "model"), "dtype": "float32"},
        "input": {"uri": str(folder / "in"), "id_column": "id"},
        "prompt": {"column": "text"},
        "sampling": SAMPLING,
        "output": {"uri": str(out)},
        "engine": ENGINE | {"enable_prefix_caching": True},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "batchinfer", "run", str(folder / "job.yaml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    shards = pq.read_table(out / "accounting")
    seconds = pc.max(shards["finished_at"]).as_py() - pc.min(shards["started_at"]).as_py()
    ids = pa.concat_tables([pq.read_table(path) for path in sorted((out / "data").iterdir())])["id"].to_pylist()
    assert ids == sorted(ids), "results are in input order"
    return {
        "rows_per_second": report["rows"] / seconds.total_seconds(),
        "cached": report["cached_tokens"] / report["input_tokens"],
    }


def ordering_microseconds(characters: int = 2000, shards: int = 16, rows: int = 1024) -> float:
    """Processor time a row of the ordering, of prompts that share nothing but their first words."""
    draw = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyz "
    texts = [
        ["Summarize this: " + "".join(draw.choices(letters, k=characters)) for _ in range(rows)] for _ in range(shards)
    ]
    order: PrefixOrder[int] = PrefixOrder(16)
    began = time.process_time()
    for number, shard in enumerate(texts):
        order.add(number, shard)
    while order:
        order.pop()
    return (time.process_time() - began) / (shards * rows) * 1e6


def main() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchinfer-prefixes-") as name:
        folder = Path(name)
        write_model(folder / "model")
        rows = write_rows(folder / "in", asked.documents, asked.questions)
        print(f"{rows} rows, {BLOCKS} blocks of KV cache\n")
        print("|round|job rows/s|chat, caching|chat, no cache|job / caching|job / no cache|cached: job|chat|")
        print("|---|---|---|---|---|---|---|---|")
        for number in range(asked.rounds):
            ours, caching, without = job(folder, number), plain(folder, True), plain(folder, False)
            speed, with_cache, no_cache = (found["rows_per_second"] for found in (ours, caching, without))
            print(
                f"|{number + 1}|{speed:.1f}|{with_cache:.1f}|{no_cache:.1f}|{speed / with_cache:.2f}"
                f"|{speed / no_cache:.2f}|{ours['cached']:.0%}|{caching['cached']:.0%}|",
                flush=True,
            )
    print(f"\nOrdering where nothing is shared: {ordering_microseconds():.1f} us of processor time a row")


if __name__ == "__main__":
    main()
