"""`config.json` as the configuration classes of `transformers` write it, against the parameters that its models
really have: built on the meta device, where they take no memory."""

import json

import pytest

from batchinfer.catalog import models, readable_architectures, shape_from_config
from batchinfer.errors import ModelError

SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 512,
}
MLA = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "qk_nope_head_dim": 16}
DEEPSEEK = SMALL | MLA | {"moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2}
DEEPSEEK |= {"topk_group": 1, "num_key_value_heads": 8}
LLAMA4 = SMALL | {"head_dim": 8, "intermediate_size_mlp": 80, "num_local_experts": 4, "attention_chunk_size": 128}
FALCON = {name: SMALL[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")}
MPT = {"d_model": 64, "n_heads": 8, "n_layers": 3, "vocab_size": 160, "max_seq_len": 256}
QWEN3_MOE = SMALL | {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16}

GLM = SMALL | {"moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2, "head_dim": 16}
GLM |= {"n_group": 1, "topk_group": 1}
QWEN35 = SMALL | {"head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 6}
QWEN35 |= {"linear_key_head_dim": 12, "linear_value_head_dim": 20}

CASES = {
    "llama": ("llama", "LlamaForCausalLM", SMALL),
    "llama, tied": ("llama", "LlamaForCausalLM", SMALL | {"tie_word_embeddings": True}),
    "llama, biases": ("llama", "LlamaForCausalLM", SMALL | {"attention_bias": True, "mlp_bias": True}),
    "llama, head_dim of its own": ("llama", "LlamaForCausalLM", SMALL | {"head_dim": 24}),
    "mistral": ("mistral", "MistralForCausalLM", SMALL | {"head_dim": 16}),
    "mixtral": ("mixtral", "MixtralForCausalLM", SMALL | {"num_local_experts": 4}),
    "phi": ("phi", "PhiForCausalLM", SMALL | {"num_key_value_heads": 8}),
    "phi3": ("phi3", "Phi3ForCausalLM", SMALL | {"pad_token_id": 0}),
    "cohere": ("cohere", "CohereForCausalLM", SMALL | {"use_qk_norm": True}),
    "cohere, biases": ("cohere", "CohereForCausalLM", SMALL | {"attention_bias": True}),
    "falcon, as 180B": (
        "falcon",
        "FalconForCausalLM",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    ),
    "falcon, as 11B": (
        "falcon",
        "FalconForCausalLM",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon, as 7B": ("falcon", "FalconForCausalLM", FALCON),
    "falcon, as rw-1b": (
        "falcon",
        "FalconForCausalLM",
        FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
    ),
    "mpt": ("mpt", "MptForCausalLM", MPT),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", SMALL),
    "qwen2, tied": ("qwen2", "Qwen2ForCausalLM", SMALL | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", SMALL),
    "qwen3, biases": ("qwen3", "Qwen3ForCausalLM", SMALL | {"attention_bias": True, "head_dim": 24}),
    "qwen3 moe": ("qwen3_moe", "Qwen3MoeForCausalLM", QWEN3_MOE),
    "qwen3 moe, dense layers": (
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        QWEN3_MOE | {"mlp_only_layers": [1], "decoder_sparse_step": 2},
    ),
    "deepseek": ("deepseek_v3", "DeepseekV3ForCausalLM", DEEPSEEK | {"first_k_dense_replace": 1, "q_lora_rank": 20}),
    "deepseek, whole queries": (
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        DEEPSEEK | {"first_k_dense_replace": 2, "q_lora_rank": None, "n_shared_experts": 2},
    ),
    "gemma 3": ("gemma3_text", "Gemma3ForCausalLM", SMALL | {"head_dim": 16, "num_hidden_layers": 7}),
    "glm 4 moe": ("glm4_moe", "Glm4MoeForCausalLM", GLM),
    "glm 4 moe, as 4.5": (
        "glm4_moe",
        "Glm4MoeForCausalLM",
        GLM | {"attention_bias": True, "use_qk_norm": True, "first_k_dense_replace": 2, "n_shared_experts": 2},
    ),
    "granite": ("granite", "GraniteForCausalLM", SMALL | {"tie_word_embeddings": True}),
    "granite, biases": ("granite", "GraniteForCausalLM", SMALL | {"attention_bias": True, "mlp_bias": True}),
    "minimax m2": ("minimax_m2", "MiniMaxM2ForCausalLM", SMALL | {"head_dim": 16, "num_local_experts": 4}),
    "olmo 2": ("olmo2", "Olmo2ForCausalLM", SMALL | {"pad_token_id": 0}),
    "olmo 3": ("olmo3", "Olmo3ForCausalLM", SMALL | {"pad_token_id": 0, "sliding_window": 64}),
    "qwen3.5": ("qwen3_5_text", "Qwen3_5ForCausalLM", QWEN35),
    "qwen3.5, biases": ("qwen3_5_text", "Qwen3_5ForCausalLM", QWEN35 | {"attention_bias": True}),
    "qwen3.5 moe": (
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        QWEN35
        | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"shared_expert_intermediate_size": 40},
    ),
    "gpt-oss": ("gpt_oss", "GptOssForCausalLM", SMALL | {"head_dim": 16, "num_local_experts": 4}),
    "llama 4, text": ("llama4_text", "Llama4ForCausalLM", LLAMA4),
    "llama 4, text, every other layer dense": (
        "llama4_text",
        "Llama4ForCausalLM",
        LLAMA4 | {"interleave_moe_layer_step": 2},
    ),
}


def _written(config, architecture):
    """The config.json that `transformers` writes for it."""
    config.architectures = [architecture]
    return json.loads(config.to_json_string())


def _parameters(model):
    """Without the vision part; a shared weight once."""
    found = {id(weight): weight.numel() for name, weight in model.named_parameters() if not _sees(name)}
    # A score correction is a buffer in `transformers` and a weight in the files.
    found |= {id(b): b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")}
    return sum(found.values())


def _sees(name):
    return any(part in name for part in ("vision", "visual", "projector", "patch_merger"))


@pytest.mark.parametrize("case", CASES)
def test_the_parameters_are_those_of_the_real_model(case, torch, transformers):
    model_type, architecture, settings = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, **settings)
    # Before the model is built: Falcon's fills in what its config leaves out.
    shape = shape_from_config(_written(config, architecture))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert shape.parameters().total == _parameters(model)


QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model_type", "architecture", "text", "vision"),
    [
        (
            "llama4",
            "Llama4ForConditionalGeneration",
            LLAMA4 | {"interleave_moe_layer_step": 2},
            VISION | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        ),
        (
            "gemma3",
            "Gemma3ForConditionalGeneration",
            SMALL | {"head_dim": 16},
            VISION | {"image_size": 28, "patch_size": 14},
        ),
        ("qwen3_5", "Qwen3_5ForConditionalGeneration", QWEN35, QWEN_VISION),
        (
            "qwen3_5_moe",
            "Qwen3_5MoeForConditionalGeneration",
            QWEN35 | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
            QWEN_VISION,
        ),
        ("mistral3", "Mistral3ForConditionalGeneration", SMALL | {"model_type": "mistral", "head_dim": 16}, VISION),
    ],
)
def test_of_a_model_that_sees_only_the_text_part_counts(model_type, architecture, text, vision, torch, transformers):
    config = transformers.AutoConfig.for_model(
        model_type,
        text_config=text,
        vision_config=vision,
        # What Gemma's leave out: its default is true, the others' are false.
        tie_word_embeddings=model_type == "gemma3",
    )
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    shape = shape_from_config(_written(config, architecture))
    assert shape.architecture == architecture
    assert shape.parameters().total == _parameters(model)


def test_every_readable_architecture_is_proven_here_or_by_its_published_count():
    proven = {architecture for _, architecture, _ in CASES.values()}
    proven |= {"Llama4ForConditionalGeneration", "Mistral3ForConditionalGeneration", "Gemma3ForConditionalGeneration"}
    proven |= {"Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"}
    # Remote code, never in `transformers`; MPT's two names have one reader.
    assert set(readable_architectures()) - proven == {"QWenLMHeadModel", "MPTForCausalLM"}
    assert {model.shape.architecture for model in models().values()} <= set(readable_architectures())


PUBLISHED = {
    "qwen-72b": {
        "architectures": ["QWenLMHeadModel"],
        "hidden_size": 8192,
        "intermediate_size": 49152,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "kv_channels": 128,
        "seq_length": 32768,
        "max_position_embeddings": 32768,
        "no_bias": True,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
    },
    "mpt-7b": {
        "architectures": ["MPTForCausalLM"],
        "attn_config": {"alibi": True, "attn_type": "multihead_attention"},
        "d_model": 4096,
        "expansion_ratio": 4,
        "max_seq_len": 2048,
        "n_heads": 32,
        "n_layers": 32,
        "no_bias": True,
        "vocab_size": 50432,
    },
    "llama-4-maverick": {
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": {
            "attention_bias": False,
            "attention_chunk_size": 8192,
            "head_dim": 128,
            "hidden_size": 5120,
            "interleave_moe_layer_step": 2,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "max_position_embeddings": 1048576,
            "num_attention_heads": 40,
            "num_experts_per_tok": 1,
            "num_hidden_layers": 48,
            "num_key_value_heads": 8,
            "num_local_experts": 128,
            "rope_scaling": None,
            "vocab_size": 202048,
        },
        "vision_config": {"hidden_size": 1408},
    },
    "command-r-plus": {
        "architectures": ["CohereForCausalLM"],
        "attention_bias": False,
        "hidden_size": 12288,
        "intermediate_size": 33792,
        "max_position_embeddings": 8192,
        "model_max_length": 131072,
        "num_attention_heads": 96,
        "num_hidden_layers": 64,
        "num_key_value_heads": 8,
        "use_qk_norm": True,
        "vocab_size": 256000,
    },
    "deepseek-v3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "first_k_dense_replace": 3,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
        "tie_word_embeddings": False,
        "v_head_dim": 128,
        "vocab_size": 129280,
    },
    "gpt-oss-20b": {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0},
        "sliding_window": 128,
        "vocab_size": 201088,
    },
    "openhermes-2.5": {
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32002,
    },
    "phi-3.5-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rope_scaling": {"type": "longrope"},
        "sliding_window": 262144,
        "vocab_size": 32064,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_gives_the_dimensions_of_the_catalog(name):
    assert shape_from_config(PUBLISHED[name]) == models()[name].shape


LLAMA = {"architectures": ["LlamaForCausalLM"]} | SMALL
QWEN2 = {"architectures": ["Qwen2ForCausalLM"]} | SMALL | {"sliding_window": 64, "max_window_layers": 3}


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 1024),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 512),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, 512),
        ({"rope_scaling": None}, 512),
    ],
)
def test_the_context_is_the_one_that_vllm_derives(rope, context):
    assert shape_from_config(LLAMA | rope).context == context


@pytest.mark.parametrize(
    ("config", "window", "layers"),
    [
        (QWEN2, None, 0),
        (QWEN2 | {"use_sliding_window": True}, 64, 1),
        (QWEN2 | {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 4}, 64, 4),
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 512}, None, 0),
        (LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": None}, None, 0),
        (LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 100}, 100, 4),
        (LLAMA | {"architectures": ["Phi3ForCausalLM"], "sliding_window": 100}, 100, 4),
        (LLAMA | {"architectures": ["MixtralForCausalLM"], "sliding_window": 100}, 100, 4),
        ({"architectures": ["Llama4ForCausalLM"]} | LLAMA4, 128, 3),
        ({"architectures": ["Llama4ForCausalLM"]} | LLAMA4 | {"no_rope_layers": [1, 0, 0, 0]}, 128, 1),
        ({"architectures": ["Llama4ForCausalLM"]} | LLAMA4 | {"attention_chunk_size": None}, None, 0),
    ],
)
def test_windows_count_in_the_layers_that_have_one(config, window, layers):
    shape = shape_from_config(config)
    assert (shape.window, shape.windowed_layers) == (window, layers)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({}, "without `architectures`"),
        ({"architectures": ["LlamaForCausalLM"]}, "no hidden_size"),
        (LLAMA | {"hidden_size": "64"}, "hidden_size = '64'"),
        (LLAMA | {"max_position_embeddings": None}, "max_position_embeddings"),
        (LLAMA | {"architectures": ["PhiForCausalLM"], "qk_layernorm": True}, "qk_layernorm"),
        ({"architectures": ["MPTForCausalLM"]} | MPT | {"no_bias": False}, "no_bias"),
        ({"architectures": ["DeepseekV3ForCausalLM"]} | DEEPSEEK | {"attention_bias": True}, "attention_bias"),
    ],
)
def test_a_config_that_cannot_be_read_says_what_is_wrong(config, said):
    with pytest.raises(ModelError, match=said.replace("`", ".")) as raised:
        shape_from_config(config)
    assert raised.value.exit_code == 2
    assert raised.value.remedy
