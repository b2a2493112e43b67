"""A model's dimensions and quantization from its `config.json`, for models outside the catalog.

A key that a `config.json` lacks has the default of the configuration class in `transformers`, as in vLLM, which
reads the file with these classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from batchinfer.catalog.shape import Experts, LatentAttention, LinearAttention, ModelShape
from batchinfer.errors import ModelError


@dataclass(frozen=True, slots=True)
class _Config:
    """The keys of a `config.json`, or of its text part. Reading a missing or wrong key raises a ModelError."""

    architecture: str
    values: Mapping[str, Any]

    def number(self, *keys: str, default: int | None = None) -> int:
        """The value of the first of `keys` that exists and is not null."""
        for key in keys:
            if self.values.get(key) is not None:
                return self._int(key)
        if default is None:
            raise ModelError(
                f"the config.json of this {self.architecture} has no {' or '.join(keys)}",
                "download the model's config.json again",
            )
        return default

    def optional(self, key: str, default: int | None = None) -> int | None:
        """The value of `key`; None if it is null, `default` if it is missing."""
        if key not in self.values:
            return default
        return None if self.values[key] is None else self._int(key)

    def _int(self, key: str) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(
                f"the config.json of this {self.architecture} has {key} = {value!r}, which is not a whole number",
                "download the model's config.json again",
            )
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        return default if value is None else bool(value)

    def refuse(self, key: str, value: object, default: object) -> None:
        """Raise ModelError if `key` has `value`, a variant whose parameters cannot be computed."""
        if self.values.get(key, default) == value:
            raise ModelError(
                f"a {self.architecture} with {key}: {value} has parts whose size is not known here",
                "set resources.tensor_parallel and resources.replicas yourself, or take another model",
            )


def readable_architectures() -> tuple[str, ...]:
    """The architectures whose `config.json` is understood, in alphabetical order."""
    return tuple(sorted(_READERS))


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The dimensions of the model with this `config.json`; of a model with vision, those of its text part.

    Raises ModelError for an unknown architecture, and for a key that is missing or no number.
    """
    named = config.get("architectures") or []
    architecture = next((name for name in named if name in _READERS), None)
    if architecture is None:
        what = f"the architecture {', '.join(map(str, named))}" if named else "a config.json without `architectures`"
        raise ModelError(
            f"the size of {what} cannot be worked out",
            f"take a model of one of these: {', '.join(readable_architectures())}",
        )
    text = config.get("text_config")
    reader = _Config(architecture, text if isinstance(text, Mapping) else config)
    try:
        return _READERS[architecture](reader)
    except ValidationError as error:
        raise ModelError(
            f"the config.json of this {architecture} is not valid: {error.errors()[0]['msg']}",
            "download the model's config.json again",
        ) from None


def _shape(c: _Config, **differences: Any) -> ModelShape:
    """The shape from the keys that most architectures share; `differences` replace fields of this architecture."""
    hidden = c.number("hidden_size")
    heads = c.number("num_attention_heads")
    fields: dict[str, Any] = {
        "architecture": c.architecture,
        "layers": c.number("num_hidden_layers"),
        "hidden_size": hidden,
        "attention_heads": heads,
        "kv_heads": c.number("num_key_value_heads", default=heads),
        "head_dim": c.number("head_dim", default=hidden // heads),
        "vocab_size": c.number("vocab_size"),
        "context": _context(c),
        "tied_embeddings": c.flag("tie_word_embeddings"),
    }
    if "intermediate_size" not in differences:
        fields["intermediate_size"] = c.number("intermediate_size")
    return ModelShape(**(fields | differences))


_SCALED_ALREADY = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope")


def _context(c: _Config) -> int:
    """The context in tokens, as vLLM derives it: `model_max_length` if set, otherwise the smallest of the keys. It is
    multiplied by the factor of a rotary embedding whose type does not store the scaled length."""
    keys = ("max_position_embeddings", "max_seq_len", "seq_length")
    lengths = [c.number(key) for key in keys if c.values.get(key) is not None]
    if not lengths and c.values.get("model_max_length") is None:
        c.number("max_position_embeddings")
    context = c.number("model_max_length", default=min(lengths, default=0))
    rope = c.values.get("rope_parameters") or c.values.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) not in _SCALED_ALREADY:
        context = int(context * (rope.get("factor") or 1))
    return context


def _window(c: _Config, size: int | None, layers: int) -> dict[str, int | None]:
    """The fields of a window; none if the window is as long as the context."""
    if size is None or layers == 0 or size >= _context(c):
        return {}
    return {"window": size, "windowed_layers": layers}


def _layers_of(c: _Config, kind: str, default: Sequence[str]) -> int:
    """The number of `layer_types` of one kind."""
    return list(c.values.get("layer_types") or default).count(kind)


def _llama(c: _Config) -> ModelShape:
    bias = c.flag("attention_bias")
    return _shape(c, qkv_bias=bias, output_bias=bias, mlp_bias=c.flag("mlp_bias"))


def _mistral(c: _Config) -> ModelShape:
    return _shape(c, **_window(c, c.optional("sliding_window", default=4096), c.number("num_hidden_layers")))


def _mixtral(c: _Config) -> ModelShape:
    layers = c.number("num_hidden_layers")
    experts = Experts(
        count=c.number("num_local_experts", "num_experts", default=8),
        active=c.number("num_experts_per_tok", default=2),
        intermediate_size=c.number("intermediate_size"),
        layers=layers,
    )
    return _shape(c, experts=experts, **_window(c, c.optional("sliding_window"), layers))


def _llama4(c: _Config) -> ModelShape:
    """Layers without rotary embedding (0 in `no_rope_layers`) see all tokens, other layers only their chunk."""
    layers = c.number("num_hidden_layers")
    step = c.number("interleave_moe_layer_step", default=1)
    listed = c.values.get("moe_layers")
    moe_layers = layers // step if listed is None else len(listed)
    interval = c.number("no_rope_layer_interval", default=4)
    rope = c.values.get("no_rope_layers") or [int((layer + 1) % interval != 0) for layer in range(layers)]
    kinds = ["chunked_attention" if flag else "full_attention" for flag in rope]
    size = c.number("intermediate_size", default=8192)
    experts = Experts(
        count=c.number("num_local_experts", default=16),
        active=c.number("num_experts_per_tok", default=1),
        intermediate_size=size,
        layers=moe_layers,
        shared_size=size,
    )
    bias = c.flag("attention_bias")
    window = _window(c, c.optional("attention_chunk_size", 8192), _layers_of(c, "chunked_attention", kinds))
    return _shape(
        c,
        intermediate_size=c.number("intermediate_size_mlp", default=16384),
        experts=experts if moe_layers else None,
        qkv_bias=bias,
        output_bias=bias,
        **window,
    )


def _phi(c: _Config) -> ModelShape:
    c.refuse("qk_layernorm", True, default=False)
    return _shape(
        c,
        gated_mlp=False,
        norms=1,
        norm_bias=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
    )


def _phi3(c: _Config) -> ModelShape:
    return _shape(c, **_window(c, c.optional("sliding_window"), c.number("num_hidden_layers")))


def _cohere(c: _Config) -> ModelShape:
    bias = c.flag("attention_bias")
    return _shape(
        c,
        tied_embeddings=c.flag("tie_word_embeddings", default=True),
        norms=1,
        qk_norm="per_head" if c.flag("use_qk_norm") else "none",
        qkv_bias=bias,
        output_bias=bias,
    )


def _falcon(c: _Config) -> ModelShape:
    """The new decoder has groups of KV heads and, by default, one norm for attention and one for the MLP. The old
    decoder has one KV head (`multi_query`) or all."""
    hidden, heads = c.number("hidden_size", "n_embed"), c.number("num_attention_heads", "n_head")
    new = c.flag("new_decoder_architecture")
    if new:
        kv_heads = c.number("num_kv_heads", "n_head_kv", default=heads)
    else:
        kv_heads = 1 if c.flag("multi_query", default=True) else heads
    norms = c.number("num_ln_in_parallel_attn", default=2 if new else 1)
    bias = c.flag("bias")
    return ModelShape(
        architecture=c.architecture,
        layers=c.number("num_hidden_layers", "n_layer"),
        hidden_size=hidden,
        intermediate_size=c.number("ffn_hidden_size", default=4 * hidden),
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=c.number("vocab_size"),
        context=c.number("max_position_embeddings", default=2048),
        tied_embeddings=c.flag("tie_word_embeddings", default=True),
        gated_mlp=False,
        norms=norms if c.flag("parallel_attn", default=True) else 2,
        norm_bias=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
    )


def _mpt(c: _Config) -> ModelShape:
    c.refuse("no_bias", False, default=True)
    hidden, heads = c.number("d_model"), c.number("n_heads")
    attention = _Config(c.architecture, c.values.get("attn_config") or {})
    attention.refuse("qk_ln", True, default=False)
    return ModelShape(
        architecture=c.architecture,
        layers=c.number("n_layers"),
        hidden_size=hidden,
        intermediate_size=c.number("expansion_ratio", default=4) * hidden,
        attention_heads=heads,
        kv_heads=attention.number("kv_n_heads", default=heads),
        head_dim=hidden // heads,
        vocab_size=c.number("vocab_size"),
        context=_context(c),
        tied_embeddings=c.flag("tie_word_embeddings", default=True),
        gated_mlp=False,
    )


def _qwen1(c: _Config) -> ModelShape:
    """`intermediate_size` is the size of gate and up projections together."""
    return _shape(c, intermediate_size=c.number("intermediate_size") // 2, qkv_bias=True)


def _qwen_window(c: _Config) -> dict[str, int | None]:
    if not c.flag("use_sliding_window"):
        return {}
    size, layers = c.optional("sliding_window", default=4096), c.number("num_hidden_layers")
    full = min(layers, c.number("max_window_layers", default=28))
    kinds = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    return _window(c, size, _layers_of(c, "sliding_attention", kinds))


def _qwen2(c: _Config) -> ModelShape:
    return _shape(c, qkv_bias=True, **_qwen_window(c))


def _qwen3(c: _Config) -> ModelShape:
    bias = c.flag("attention_bias")
    head_dim = c.number("head_dim", default=128)
    return _shape(c, head_dim=head_dim, qk_norm="shared", qkv_bias=bias, output_bias=bias, **_qwen_window(c))


def _qwen3_moe(c: _Config) -> ModelShape:
    layers, step = c.number("num_hidden_layers"), c.number("decoder_sparse_step", default=1)
    dense = set(c.values.get("mlp_only_layers") or [])
    moe_layers = sum((layer + 1) % step == 0 and layer not in dense for layer in range(layers))
    experts = Experts(
        count=c.number("num_experts", "num_local_experts", default=128),
        active=c.number("num_experts_per_tok", default=8),
        intermediate_size=c.number("moe_intermediate_size"),
        layers=moe_layers,
    )
    bias = c.flag("attention_bias")
    window = _window(c, c.optional("sliding_window", default=4096), layers) if c.flag("use_sliding_window") else {}
    return _shape(
        c,
        experts=experts if moe_layers else None,
        qk_norm="shared",
        qkv_bias=bias,
        output_bias=bias,
        **window,
    )


def _deepseek_v3(c: _Config) -> ModelShape:
    c.refuse("attention_bias", True, default=False)
    layers = c.number("num_hidden_layers")
    size = c.number("moe_intermediate_size")
    nope, rope = c.number("qk_nope_head_dim"), c.number("qk_rope_head_dim")
    experts = Experts(
        count=c.number("n_routed_experts", "num_local_experts"),
        active=c.number("num_experts_per_tok"),
        intermediate_size=size,
        layers=layers - min(layers, c.number("first_k_dense_replace", default=3)),
        shared_size=size * c.number("n_shared_experts", default=0),
        correction_bias=True,
    )
    latent = LatentAttention(
        q_lora_rank=c.optional("q_lora_rank", default=1536),
        kv_lora_rank=c.number("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=c.number("v_head_dim"),
    )
    return _shape(c, head_dim=nope + rope, experts=experts if experts.layers else None, latent=latent)


def _gpt_oss(c: _Config) -> ModelShape:
    layers = c.number("num_hidden_layers")
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    experts = Experts(
        count=c.number("num_local_experts", "num_experts"),
        active=c.number("num_experts_per_tok", "experts_per_token", default=4),
        intermediate_size=c.number("intermediate_size"),
        layers=layers,
        router_bias=True,
    )
    bias = c.flag("attention_bias", default=True)
    window = _window(c, c.optional("sliding_window", default=128), _layers_of(c, "sliding_attention", kinds))
    return _shape(
        c,
        experts=experts,
        qkv_bias=bias,
        output_bias=bias,
        expert_bias=True,
        attention_sinks=True,
        **window,
    )


def _gemma3(c: _Config) -> ModelShape:
    """Every sixth layer sees all tokens. The keys that Google's larger models leave out have `transformers`' defaults;
    vLLM takes their context as scaled already."""
    layers = c.number("num_hidden_layers", default=26)
    pattern = c.number("sliding_window_pattern", "_sliding_window_pattern", default=6)
    kinds = ["full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)]
    bias = c.flag("attention_bias")
    context = c.number("max_position_embeddings", default=131_072)
    size, windowed = c.number("sliding_window", default=4096), _layers_of(c, "sliding_attention", kinds)
    seen = size < context and windowed > 0
    return ModelShape(
        architecture=c.architecture,
        layers=layers,
        hidden_size=c.number("hidden_size", default=2304),
        intermediate_size=c.number("intermediate_size", default=9216),
        attention_heads=c.number("num_attention_heads", default=8),
        kv_heads=c.number("num_key_value_heads", default=4),
        head_dim=c.number("head_dim", default=256),
        vocab_size=c.number("vocab_size", default=262_208),
        context=context,
        tied_embeddings=c.flag("tie_word_embeddings", default=True),
        norms=4,
        qk_norm="shared",
        qkv_bias=bias,
        output_bias=bias,
        window=size if seen else None,
        windowed_layers=windowed if seen else 0,
    )


def _glm4_moe(c: _Config) -> ModelShape:
    layers, size = c.number("num_hidden_layers"), c.number("moe_intermediate_size")
    experts = Experts(
        count=c.number("n_routed_experts", "num_local_experts", default=128),
        active=c.number("num_experts_per_tok", default=8),
        intermediate_size=size,
        layers=layers - min(layers, c.number("first_k_dense_replace", default=1)),
        shared_size=size * c.number("n_shared_experts", default=1),
        correction_bias=True,
    )
    norm = "shared" if c.flag("use_qk_norm") else "none"
    return _shape(c, experts=experts if experts.layers else None, qk_norm=norm, qkv_bias=c.flag("attention_bias"))


def _minimax_m2(c: _Config) -> ModelShape:
    experts = Experts(
        count=c.number("num_local_experts", "num_experts", default=256),
        active=c.number("num_experts_per_tok", default=8),
        intermediate_size=c.number("intermediate_size"),
        layers=c.number("num_hidden_layers"),
        correction_bias=True,
    )
    return _shape(c, experts=experts, qk_norm="per_head")


def _olmo2(c: _Config) -> ModelShape:
    """Norms follow attention and MLP instead of preceding them; there are as many."""
    bias = c.flag("attention_bias")
    return _shape(c, qk_norm="per_head", qkv_bias=bias, output_bias=bias)


def _olmo3(c: _Config) -> ModelShape:
    """Every fourth layer sees all tokens."""
    layers = c.number("num_hidden_layers")
    kinds = ["sliding_attention" if (layer + 1) % 4 else "full_attention" for layer in range(layers)]
    bias = c.flag("attention_bias")
    window = _window(c, c.optional("sliding_window", 4096), _layers_of(c, "sliding_attention", kinds))
    return _shape(c, qk_norm="per_head", qkv_bias=bias, output_bias=bias, **window)


def _qwen3_5(c: _Config) -> ModelShape:
    """Three layers of four have linear attention; attention has a gate. With experts, all layers have them."""
    layers, interval = c.number("num_hidden_layers"), c.number("full_attention_interval", default=4)
    kinds = ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(layers)]
    linear = LinearAttention(
        layers=_layers_of(c, "linear_attention", kinds),
        key_heads=c.number("linear_num_key_heads", default=16),
        value_heads=c.number("linear_num_value_heads", default=32),
        key_head_dim=c.number("linear_key_head_dim", default=128),
        value_head_dim=c.number("linear_value_head_dim", default=128),
        kernel=c.number("linear_conv_kernel_dim", default=4),
    )
    bias = c.flag("attention_bias")
    differences: dict[str, Any] = {}
    if c.values.get("num_experts"):
        differences["intermediate_size"] = size = c.number("moe_intermediate_size", default=512)
        differences["experts"] = Experts(
            count=c.number("num_experts"),
            active=c.number("num_experts_per_tok", default=8),
            intermediate_size=size,
            layers=layers,
            shared_size=c.number("shared_expert_intermediate_size", default=512),
            shared_gate=True,
        )
    return _shape(
        c,
        head_dim=c.number("head_dim", default=256),
        linear=linear if linear.layers else None,
        gated_attention=True,
        qk_norm="shared",
        qkv_bias=bias,
        output_bias=bias,
        **differences,
    )


_READERS: dict[str, Callable[[_Config], ModelShape]] = {
    "CohereForCausalLM": _cohere,
    "DeepseekV3ForCausalLM": _deepseek_v3,
    "FalconForCausalLM": _falcon,
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3ForConditionalGeneration": _gemma3,
    "Glm4MoeForCausalLM": _glm4_moe,
    "GptOssForCausalLM": _gpt_oss,
    "GraniteForCausalLM": _llama,
    "Llama4ForCausalLM": _llama4,
    "Llama4ForConditionalGeneration": _llama4,
    "LlamaForCausalLM": _llama,
    "MPTForCausalLM": _mpt,
    "Mistral3ForConditionalGeneration": _mistral,
    "MiniMaxM2ForCausalLM": _minimax_m2,
    "MistralForCausalLM": _mistral,
    "MixtralForCausalLM": _mixtral,
    "MptForCausalLM": _mpt,
    "Olmo2ForCausalLM": _olmo2,
    "Olmo3ForCausalLM": _olmo3,
    "Phi3ForCausalLM": _phi3,
    "PhiForCausalLM": _phi,
    "QWenLMHeadModel": _qwen1,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3_5ForCausalLM": _qwen3_5,
    "Qwen3_5ForConditionalGeneration": _qwen3_5,
    "Qwen3_5MoeForCausalLM": _qwen3_5,
    "Qwen3_5MoeForConditionalGeneration": _qwen3_5,
    "Qwen3MoeForCausalLM": _qwen3_moe,
}
