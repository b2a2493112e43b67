"""What compact JSON and the end of repetition save, on models that do not know when to stop.

Two random Llama checkpoints and two schemas: strings without an upper length, which such a model hardly ever ends, and
fields that all have one. 200 rows, 160 tokens at most. One thread of one engine, in this process.
`python benchmarks/loops.py` from the root of the project, which holds `tests`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}

from batchinfer.engine import start_engine
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.answers import OutputCheck
from batchinfer.prompting.prompts import Prompt
from tests.support.builders import make_plan
from tests.support.engine_process import forget_groups, spec_values
from tests.support.tiny_models import make_checkpoint

ROWS = 200
MAX_TOKENS = 160
TEXT = {"type": "string"}
OPEN = {"name": TEXT, "tags": {"type": "array", "items": TEXT}, "n": {"type": "integer"}}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
BOUNDED = {
    "kind": {"enum": ["a", "b"]},
    "ids": {"type": "array", "items": DIGIT, "maxItems": 3},
    "note": {"type": "string", "maxLength": 20},
}
# The spread of the weights: 0.02 is that of real models before training, and gives much the same token again and again.
CASES = (("open", OPEN, 0.2), ("bounded", BOUNDED, 0.02))


def measured(name: str, folder: Path, sampling: dict[str, Any], output: dict[str, Any]) -> None:
    """Run the rows once, and print a line of a table."""
    spec = JobSpec.model_validate(spec_values({"source": str(folder)}, {"max_tokens": MAX_TOKENS} | sampling, output))
    engine = start_engine(spec, make_plan(accelerator="cpu", tensor_parallel=1, num_gpus=0, price_per_gpu_hour=0.0))
    prompts = [Prompt(text=f"row {i}: the sum of all numbers of list {i * 37 % 101}") for i in range(ROWS)]
    began = time.process_time()
    answers = engine.generate(prompts, lambda _: None, lambda _: None)
    seconds = time.process_time() - began
    engine.close()
    del engine
    forget_groups()
    check = OutputCheck(spec.output, MAX_TOKENS)
    wrong = [a for a in answers if check.check(a.texts[0], a.finish_reasons[0]).problem is not None]
    tokens, wasted = (sum(a.output_tokens for a in some) for some in (answers, wrong))
    reasons = dict(Counter(a.finish_reasons[0] for a in answers))
    print(f"|{name}|{ROWS - len(wrong)}|{tokens:,}|{wasted:,}|{reasons}|{seconds:.1f}|", flush=True)


def main() -> None:
    """Print the table."""
    print("|case|valid of 200|tokens|of them invalid|ended by|CPU s|\n|---|---|---|---|---|---|")
    for case, properties, spread in CASES:
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint("LlamaForCausalLM", Path(folder), initializer_range=spread)
            schema = {"type": "object", "properties": properties, "required": list(properties),
                      "additionalProperties": False}  # fmt: skip
            for temperature in (0.0, 1.0):
                seed = {"seed": 7} if temperature else {}
                for name, compact, ended in (("neither", False, False), ("compact", True, False),
                                             ("repetition", False, True), ("both", True, True)):  # fmt: skip
                    sampling = {"temperature": temperature, "repetition_detection": {} if ended else None} | seed
                    output = {"json_schema": schema, "compact_json": compact}
                    measured(f"{case}, temperature {temperature:g}, {name}", Path(folder), sampling, output)
            for name, ended in (("neither", None), ("repetition", {})):
                measured(f"{case}, free text, {name}", Path(folder), {"repetition_detection": ended}, {})


if __name__ == "__main__":
    main()
