"""A model's dimensions, and the parameters and KV cache bytes computed from them.

Computed figures are not stored, because a stored parameter count could contradict the dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class _ShapeFacts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Experts(_ShapeFacts):
    """The mixture-of-experts part: `count` routed experts in each of `layers` layers; a token runs `active` of them.

    `shared_size`: the intermediate size of all shared experts together, which every token runs. `shared_gate`: one
    weight vector a layer says how much they count. `router_bias`: the router has a bias. `correction_bias`: each
    expert has a score correction.
    """

    count: int
    active: int
    intermediate_size: int
    layers: int
    shared_size: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    correction_bias: bool = False


class LatentAttention(_ShapeFacts):
    """Multi-head latent attention: keys and values share one compressed vector of
    `kv_lora_rank + qk_rope_head_dim` a token and layer."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


class LinearAttention(_ShapeFacts):
    """Gated delta rule (Yang et al. 2024) in `layers` layers instead of attention: a state of fixed size a sequence,
    value_heads x key_head_dim x value_head_dim in 32 bits, and no KV cache. `kernel`: tokens that the convolution of
    queries, keys and values sees."""

    layers: int
    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    kernel: int

    @property
    def mixed(self) -> int:
        """The width of queries, keys and values together, which the convolution mixes."""
        return 2 * self.key_heads * self.key_head_dim + self.value_heads * self.value_head_dim

    def weights(self, hidden_size: int) -> int:
        """Weights of one layer's linear layers: queries, keys, values, gate, decay and step, output."""
        values = self.value_heads * self.value_head_dim
        return hidden_size * (self.mixed + 2 * values + 2 * self.value_heads)

    @property
    def small(self) -> int:
        """Parameters of one layer's convolution, decays and norm."""
        return self.mixed * self.kernel + 2 * self.value_heads + self.value_head_dim

    @property
    def state_bytes(self) -> float:
        """Bytes that all layers hold for a sequence of any length: states in 32 bits, the convolution's last inputs in
        16."""
        state = self.value_heads * self.key_head_dim * self.value_head_dim * 4
        return self.layers * (state + self.mixed * (self.kernel - 1) * 2.0)


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters by whether they are quantized, and by the tokens that use them.

    attention, dense_mlp, experts, shared_experts: linear layers that can be quantized.
    embedding, head, router, other (norms, biases, sinks): parameters that stay in 16 bits.
    active: parameters that one token is multiplied with: with the head, without the embedding (a lookup).
    """

    embedding: int
    head: int
    attention: int
    dense_mlp: int
    experts: int
    shared_experts: int
    router: int
    other: int
    active: int

    @property
    def total(self) -> int:
        """All parameters in the files of the checkpoint."""
        return self.embedding + self.head + self.quantizable + self.router + self.other

    @property
    def quantizable(self) -> int:
        return self.attention + self.dense_mlp + self.experts + self.shared_experts


class ModelShape(_ShapeFacts):
    """The dimensions of a decoder-only transformer, under the names of `config.json` if it has them.

    windowed_layers: layers whose attention sees at most `window` tokens (sliding or chunked), and which hold at most
    `window` tokens of KV cache a sequence. intermediate_size: of the dense layers, if there are experts.
    gated_mlp: gate, up and down projections; otherwise up and down. norms: norms of hidden size in a layer.
    qk_norm: norms of queries and keys, each with head_dim weights for all heads ("shared") or for each ("per_head").
    linear: layers without attention. gated_attention: each query has a gate of its width beside it.
    """

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    tied_embeddings: bool = False
    experts: Experts | None = None
    latent: LatentAttention | None = None
    linear: LinearAttention | None = None
    gated_attention: bool = False
    window: int | None = None
    windowed_layers: int = 0
    gated_mlp: bool = True
    norms: int = 2
    norm_bias: bool = False
    qk_norm: Literal["none", "shared", "per_head"] = "none"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    expert_bias: bool = False
    head_bias: bool = False
    attention_sinks: bool = False

    def parameters(self) -> ParameterCount:
        """The exact counts of the text model, without vision encoders and multi-token-prediction layers."""
        dense_layers = self.layers - (self.experts.layers if self.experts else 0)
        projections = 3 if self.gated_mlp else 2
        experts = shared = router = router_other = active_experts = 0
        if self.experts:
            e = self.experts
            one = projections * self.hidden_size * e.intermediate_size
            experts = e.layers * e.count * one
            active_experts = e.layers * e.active * one
            shared = e.layers * projections * self.hidden_size * e.shared_size
            router = e.layers * self.hidden_size * e.count
            router_other = e.layers * (e.count * (e.router_bias + e.correction_bias) + e.shared_gate * self.hidden_size)
            if self.expert_bias:
                router_other += e.layers * e.count * ((projections - 1) * e.intermediate_size + self.hidden_size)
        attention = self.attention_layers * self._attention()
        attention += self.linear.layers * self.linear.weights(self.hidden_size) if self.linear else 0
        dense = dense_layers * projections * self.hidden_size * self.intermediate_size
        embedding = head = self.vocab_size * self.hidden_size
        return ParameterCount(
            embedding=embedding,
            head=0 if self.tied_embeddings else head,
            attention=attention,
            dense_mlp=dense,
            experts=experts,
            shared_experts=shared,
            router=router,
            other=self._other(dense_layers, projections) + router_other,
            active=attention + dense + active_experts + shared + router + head,
        )

    @property
    def attention_layers(self) -> int:
        """Layers with attention, which hold a KV cache."""
        return self.layers - (self.linear.layers if self.linear else 0)

    def _attention(self) -> int:
        """Weights of the linear layers of one layer's attention."""
        if self.latent is None:
            queries = self.attention_heads * self.head_dim
            of_queries = 3 if self.gated_attention else 2
            return self.hidden_size * (of_queries * queries + 2 * self.kv_heads * self.head_dim)
        m, heads = self.latent, self.attention_heads
        q_out = heads * (m.qk_nope_head_dim + m.qk_rope_head_dim)
        q = self.hidden_size * q_out if m.q_lora_rank is None else m.q_lora_rank * (self.hidden_size + q_out)
        kv = self.hidden_size * (m.kv_lora_rank + m.qk_rope_head_dim)
        kv += m.kv_lora_rank * heads * (m.qk_nope_head_dim + m.v_head_dim)
        return q + kv + heads * m.v_head_dim * self.hidden_size

    def _other(self, dense_layers: int, projections: int) -> int:
        """Parameters of norms, biases and sinks."""
        q, kv = self.attention_heads * self.head_dim, self.kv_heads * self.head_dim
        norm = self.hidden_size * (2 if self.norm_bias else 1)
        layer = self.qkv_bias * ((2 if self.gated_attention else 1) * q + 2 * kv) + self.output_bias * self.hidden_size
        layer += {"none": 0, "shared": 2 * self.head_dim, "per_head": q + kv}[self.qk_norm]
        layer += self.attention_heads if self.attention_sinks else 0
        if self.latent is not None:
            layer += self.latent.kv_lora_rank + (self.latent.q_lora_rank or 0)
        mlp = self.mlp_bias * ((projections - 1) * self.intermediate_size + self.hidden_size)
        mixed = self.linear.layers * self.linear.small if self.linear else 0
        norms = (self.layers * self.norms + 1) * norm
        return self.attention_layers * layer + mixed + norms + dense_layers * mlp + self.head_bias * self.vocab_size

    def kv_bytes(self, tokens: int, bytes_per_value: float = 2.0, tensor_parallel: int = 1) -> float:
        """Bytes of KV cache of one sequence of `tokens` on each GPU of a tensor-parallel group.

        2 (keys, values) x layers x KV heads x head_dim x tokens. A windowed layer holds at most its window. Latent
        attention holds one vector for all heads, copied to every GPU. If there are fewer KV heads than GPUs, the
        heads are copied. A layer of linear attention holds its state, however long the sequence is.
        """
        full = (self.attention_layers - self.windowed_layers) * tokens
        windowed = self.windowed_layers * min(tokens, self.window or tokens)
        state = self.linear.state_bytes / tensor_parallel if self.linear else 0.0
        return self.layer_kv_bytes(bytes_per_value, tensor_parallel) * (full + windowed) + state

    def layer_kv_bytes(self, bytes_per_value: float = 2.0, tensor_parallel: int = 1) -> float:
        """Bytes that one layer with attention holds of one token on each GPU of the group."""
        if self.latent is not None:
            width = float(self.latent.kv_lora_rank + self.latent.qk_rope_head_dim)
        else:
            width = 2.0 * self.head_dim * -(-self.kv_heads // tensor_parallel)
        return width * bytes_per_value
