"""Shrunken random checkpoints of the catalog's architectures, and what `transformers` answers with them.

Runs in the process that runs the engine: `transformers` is imported once for both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTEXT = 256
NEW_TOKENS = 8
VOCABULARY = 320

TEXTS = [
    "def read(self): read a file, give its lines",
    "a connection to a host",
    "x",
    # Longer than the sliding windows and the attention chunk below.
    "alpha beta gamma delta epsilon " * 32,
    "the sum of all numbers of the list",
]

# Heads of 32 are the smallest that vLLM's CPU attention takes.
_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Ten times the usual: logits that lie far apart make equal tokens mean equal arithmetic.
    "initializer_range": 0.2,
}
_MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}

# Everything here that is not small is as in the published checkpoints: YaRN and the routing of DeepSeek V3,
# and the latent of 512 + 64 that is the only one vLLM's CPU kernel takes.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "MistralForCausalLM": ("MistralConfig", {"sliding_window": 16}),
    "MixtralForCausalLM": ("MixtralConfig", _MIXTURE),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        {
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            # The smallest: the engine's blocks of KV cache hold 128 tokens.
            "attention_chunk_size": 128,
            "head_dim": 32,
        },
    ),
    "PhiForCausalLM": ("PhiConfig", {"num_key_value_heads": 4}),
    "Phi3ForCausalLM": ("Phi3Config", {}),
    "CohereForCausalLM": ("CohereConfig", {"tie_word_embeddings": True}),
    "FalconForCausalLM": (
        "FalconConfig",
        {"multi_query": True, "parallel_attn": True, "bias": False, "new_decoder_architecture": False},
    ),
    "Qwen2ForCausalLM": ("Qwen2Config", {}),
    "Qwen3ForCausalLM": ("Qwen3Config", {"head_dim": 32}),
    "Qwen3MoeForCausalLM": (
        "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32},
    ),
    "DeepseekV3ForCausalLM": (
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 4,
            "topk_group": 2,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 64,
            "v_head_dim": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": CONTEXT // 4,
            },
        },
    ),
    "GptOssForCausalLM": ("GptOssConfig", _MIXTURE | {"head_dim": 32, "sliding_window": 32, "intermediate_size": 64}),
}


def make_checkpoint(architecture: str, folder: Path, **changes: Any) -> None:
    """A random model of the architecture and a tokenizer trained on `TEXTS`, as `save_pretrained` writes them."""
    import torch
    import transformers

    config, of_its_own = ARCHITECTURES[architecture]
    made = getattr(transformers, config)(**(_SHAPE | of_its_own | changes))
    torch.manual_seed(7)
    model = getattr(transformers, architecture)(made).float()
    # Published routers are trained apart; a random one of zeros would tie.
    for name, values in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            values.uniform_(-0.1, 0.1)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def reference(architecture: str, folder: Path) -> dict[str, Any]:
    """The greedy tokens of `transformers`' generate for each text, and the smallest lead of a chosen token over
    the next best, in standard deviations of the logits."""
    import torch
    import transformers

    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
    # The engine is told to ignore it too.
    model.generation_config.eos_token_id = None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens, leads = [], []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens.append(found.sequences[0, ids.shape[1] :].tolist())
        for logits in found.logits:
            best, second = logits[0].topk(2).values
            leads.append(float((best - second) / logits[0].std()))
    return {"tokens": tokens, "lead": min(leads), "prompt_tokens": len(tokenizer(TEXTS[3])["input_ids"])}


def make_adapter(base: Path, folder: Path, merged: Path, rank: int) -> None:
    """A random LoRA adapter for the Llama in `base`, in PEFT's format, and in `merged` the model with it
    merged: W + (alpha / r) B A (Hu et al. 2021, equation 3)."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    alpha, targets = 2 * rank, ("q_proj", "v_proj", "down_proj")
    generator = torch.Generator().manual_seed(3)
    adapter: dict[str, Any] = {}
    for name, weight in list(weights.items()):
        module = name.removesuffix(".weight")
        if module.endswith(targets):
            a = 0.1 * torch.randn(rank, weight.shape[1], generator=generator)
            b = 0.1 * torch.randn(weight.shape[0], rank, generator=generator)
            adapter[f"base_model.model.{module}.lora_A.weight"] = a
            adapter[f"base_model.model.{module}.lora_B.weight"] = b
            weights[name] = weight + (alpha / rank) * b @ a
    folder.mkdir()
    save_file(adapter, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": list(targets)}))
    shutil.copytree(base, merged)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
