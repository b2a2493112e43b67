"""Model folders without weights: a true config.json and a made-up tokenizer of the true vocabulary, for
`engine.load_format: dummy`. Speed and memory are then true, and the text is noise.

Two things random weights do not show: how a mixture's router spreads real text over its experts, and how often
speculative decoding guesses right.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from batchinfer.catalog import ModelShape

SPECIAL = ("<s>", "</s>", "<unk>")
ALPHABET = 256

# What the catalog does not hold, as it says nothing about size: the rotary embedding, from the config.json of each
# model as printed in public repositories (2026-11-21).
ROPE: dict[str, dict[str, Any]] = {
    "llama-2-13b": {"rope_theta": 10000.0},
    "llama-2-70b": {"rope_theta": 10000.0},
    "llama-3.1-8b": {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "mistral-7b": {"rope_theta": 1000000.0},
    "mixtral-8x7b": {"rope_theta": 1000000.0},
}

_TYPES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "MixtralForCausalLM": "mixtral"}

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
"""Weights in fp8 with one scale a matrix, activations quantized as they come."""


def shrunk(shape: ModelShape) -> ModelShape:
    """The same architecture small enough for a CPU: 2 layers, 1,024 tokens. Heads of 32 are the smallest that
    vLLM's CPU attention takes."""
    small: dict[str, Any] = {"layers": 2, "hidden_size": 128, "intermediate_size": 256, "attention_heads": 4}
    small |= {"kv_heads": 2, "head_dim": 32, "vocab_size": 1024, "context": 512}
    if shape.experts is not None:
        small["experts"] = shape.experts.model_copy(update={"count": 4, "intermediate_size": 256, "layers": 2})
    return shape.model_copy(update=small)


def config_of(name: str, shape: ModelShape, fp8: bool) -> dict[str, Any]:
    """The config.json of the catalog's model `name` at the dimensions of `shape`."""
    config: dict[str, Any] = {
        "architectures": [shape.architecture],
        "model_type": _TYPES[shape.architecture],
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.attention_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied_embeddings,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
    if shape.architecture != "LlamaForCausalLM":
        config["sliding_window"] = shape.window
    if shape.experts is not None:
        config |= {"num_local_experts": shape.experts.count, "num_experts_per_tok": shape.experts.active}
    rope = dict(ROPE[name])
    if rope.get("rope_scaling", {}).get("original_max_position_embeddings", 0) >= shape.context:
        # A shrunken model's context is shorter than what the scaling begins with.
        del rope["rope_scaling"]
    return config | rope | ({"quantization_config": FP8} if fp8 else {})


def write_model(name: str, shape: ModelShape, fp8: bool, folder: Path) -> dict[str, Any]:
    """Write the folder, and give its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(name, shape, fp8)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(folder, shape.vocab_size)
    return config


def _words() -> Iterator[str]:
    """Space-led words of lower-case letters, shortest first, so that each but its last letter came before.
    `\\u0120` is what byte-level tokenizers write for a space."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "\u0120" + "".join(letters)


def _write_tokenizer(folder: Path, size: int) -> None:
    """A byte-level BPE of exactly `size` tokens: the special ones, every byte, then words, each one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    words = list(itertools.islice(_words(), size - len(vocabulary)))
    vocabulary |= {word: len(vocabulary) + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(word[:-1], word[-1]) for word in words]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2**20}
    about |= dict(zip(("bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1))


def prompts(vocab_size: int, rows: int, tokens: int, seed: int) -> tuple[list[str], list[list[int]]]:
    """Texts of exactly `tokens` random tokens each of that tokenizer, and their ids."""
    first = len(SPECIAL) + ALPHABET
    words = [word.replace("\u0120", " ") for word in itertools.islice(_words(), vocab_size - first)]
    drawn = np.random.default_rng(seed).integers(0, len(words), size=(rows, tokens))
    return ["".join(words[i] for i in row) for row in drawn], (drawn + first).tolist()
