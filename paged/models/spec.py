"""What a decoder is, as data: shapes, variants, and the weights that follow from them."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions; `type` and `scaling` as in `paged.models.rope.rope_table`."""

    type: str
    theta: float
    rotary_dim: int  # leading elements of a head that are rotated
    scaling: dict = field(default_factory=dict, hash=False)
    interleaved: bool = False  # pairs are (2i, 2i + 1) instead of (i, i + rotary_dim / 2)


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A pre-norm decoder: x += attention(norm(x)), then x += mlp(norm(x)), in every layer."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_model_len: int  # positions the model knows
    norm: str  # "rms" or "layer"; a layer norm has a bias
    norm_eps: float
    activation: str  # one of paged.kernels.activation.ACTIVATIONS
    gated: bool  # act(gate) * up instead of act(up)
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head of q and k, before rotation
    rope: RopeSpec | None = None
    position_offset: int | None = None  # learned positions: row of position 0; None = none
    tied_embeddings: bool = False  # the LM head is the embedding
    sliding_window: tuple[int | None, ...] = ()  # one a layer; empty = full attention everywhere
    softmax_scale: float | None = None  # None = 1 / sqrt(head_dim)
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    norm_weight_offset: float = 0.0
    embed_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads must divide num_heads ({self.num_heads}), "
                f"got {self.num_kv_heads}"
            )
        if not 1 <= self.head_dim <= 256:
            raise ValueError(f"model.head_dim must be from 1 to 256, got {self.head_dim}")
        if self.sliding_window and len(self.sliding_window) != self.num_layers:
            raise ValueError(
                f"model.sliding_window must have {self.num_layers} entries, one a layer, "
                f"got {len(self.sliding_window)}"
            )

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def weight_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight; a linear weight is [out_features, in_features].

    q, k and v are stacked in `qkv`, gate and up in `gate_up`. A tied LM head is not listed.
    """
    hidden, width = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out_features: int, in_features: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (out_features, in_features)
        if bias:
            shapes[f"{name}.bias"] = (out_features,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (hidden,)
        if spec.norm == "layer":
            shapes[f"{name}.bias"] = (hidden,)

    linear("embed", spec.vocab_size, hidden, False)
    if spec.position_offset is not None:
        linear("positions", spec.max_model_len + spec.position_offset, hidden, False)
    for i in range(spec.num_layers):
        norm(f"layers.{i}.attn_norm")
        linear(f"layers.{i}.qkv", spec.q_size + 2 * spec.kv_size, hidden, spec.qkv_bias)
        if spec.qk_norm:
            shapes[f"layers.{i}.q_norm.weight"] = (spec.head_dim,)
            shapes[f"layers.{i}.k_norm.weight"] = (spec.head_dim,)
        linear(f"layers.{i}.o", hidden, spec.q_size, spec.o_bias)
        norm(f"layers.{i}.mlp_norm")
        if spec.gated:
            linear(f"layers.{i}.gate_up", 2 * width, hidden, spec.mlp_bias)
        else:
            linear(f"layers.{i}.up", width, hidden, spec.mlp_bias)
        linear(f"layers.{i}.down", hidden, width, spec.mlp_bias)
    norm("final_norm")
    if not spec.tied_embeddings:
        linear("lm_head", spec.vocab_size, hidden, False)
    return shapes


def row_range(spec: DecoderSpec, part: str) -> slice:
    """Rows that `part` (q, k, v, gate or up) takes in its stacked weight."""
    q, kv, width = spec.q_size, spec.kv_size, spec.intermediate_size
    return {
        "q": slice(0, q),
        "k": slice(q, q + kv),
        "v": slice(q + kv, q + 2 * kv),
        "gate": slice(0, width),
        "up": slice(width, 2 * width),
    }[part]


def kv_bytes_per_page(spec: DecoderSpec, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one page, all layers together."""
    return 2 * spec.num_layers * spec.kv_size * page_size * dtype.itemsize
