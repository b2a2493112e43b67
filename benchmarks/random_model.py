"""A Llama of random weights with the demo's tokenizer: `python benchmarks/random_model.py FOLDER large|wide`.

`large` has 104M parameters. `wide` is as small as the demo's, with weights ten times as wide as usual, so that what it
says next depends on all that it has said: its greedy walk through the vocabulary does not settle into a loop.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

DEMO = Path(__file__).parent.parent / "jobs/demo/model"
CONTEXT = 2048
SIZES = {
    "large": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12},
    "wide": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def write(folder: Path, name: str) -> None:
    """The same weights each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[name],
        vocab_size=6144,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2 if name == "wide" else 0.02,
        tie_word_embeddings=name != "wide",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "chat_template.jinja"):
        (folder / file).write_bytes((DEMO / file).read_bytes())
    settings = json.loads((DEMO / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": CONTEXT}))


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2])
