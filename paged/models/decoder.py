"""The decoder: a DecoderSpec, its weights, and one forward pass over paged KV memory."""

from dataclasses import dataclass

import torch

from paged.interfaces import Attention, AttentionMeta, AttentionSpec
from paged.kernels.embedding import embedding
from paged.kernels.gated_linear import gated_linear
from paged.kernels.linear import linear
from paged.kernels.norm import norm
from paged.kernels.rope_kv import rope_kv
from paged.models.rope import rope_table
from paged.models.spec import DecoderSpec
from paged.state import StepPlan


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a linear layer or a norm."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """One layer's weights, and what its attention computes."""

    attn_norm: Affine
    qkv: Affine
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: Affine
    mlp_norm: Affine
    up: Affine  # gate rows, then up rows, in a gated MLP
    down: Affine
    attention: AttentionSpec


class Decoder:
    """Runs the packed tokens of a step through every layer.

    After `allocate`, `forward` launches kernels only: it allocates nothing and never waits for
    the device, so it can be captured in a graph.
    """

    kv_caches: list[tuple[torch.Tensor, torch.Tensor]]  # a layer: k, v [N, Hkv, page_size, D]
    pages: torch.Tensor  # the same memory by the page: [2 * layers, N, Hkv * page_size * D]

    def __init__(self, spec: DecoderSpec, weights: dict[str, torch.Tensor]) -> None:
        """`weights` as in `paged.models.spec.weight_shapes`, all of one dtype, on one device."""
        self.spec = spec
        self.weights = weights
        self.embed = weights["embed.weight"]  # [vocab, H]
        self.positions = weights.get("positions.weight")
        self.lm_head = weights.get("lm_head.weight", self.embed)
        self.final_norm = self._affine("final_norm")
        self.layers = [self._layer(i) for i in range(spec.num_layers)]
        self.device, self.dtype = self.embed.device, self.embed.dtype
        self.cos_sin = None  # [max_model_len, rotary_dim] fp32
        if spec.rope is not None:
            rope = spec.rope
            self.cos_sin = rope_table(
                rope.type,
                rope.theta,
                rope.rotary_dim,
                spec.max_model_len,
                rope.scaling,
                self.device,
            )
        self.head_dim = spec.head_dim
        self.kv_caches = []
        self.max_num_tokens = 0

    def _affine(self, name: str) -> Affine:
        return Affine(self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _layer(self, i: int) -> Layer:
        spec = self.spec
        return Layer(
            attn_norm=self._affine(f"layers.{i}.attn_norm"),
            qkv=self._affine(f"layers.{i}.qkv"),
            q_norm=self.weights.get(f"layers.{i}.q_norm.weight"),
            k_norm=self.weights.get(f"layers.{i}.k_norm.weight"),
            o=self._affine(f"layers.{i}.o"),
            mlp_norm=self._affine(f"layers.{i}.mlp_norm"),
            up=self._affine(f"layers.{i}.gate_up" if spec.gated else f"layers.{i}.up"),
            down=self._affine(f"layers.{i}.down"),
            attention=AttentionSpec(
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                softmax_scale=spec.softmax_scale or spec.head_dim**-0.5,
                sliding_window=spec.sliding_window[i] if spec.sliding_window else None,
                logit_softcap=spec.attention_softcap,
            ),
        )

    def allocate(
        self, max_num_batched_tokens: int, max_num_samples: int, page_size: int, num_pages: int
    ) -> None:
        """Create the activations of the largest step (T tokens, B rows of logits) and the KV
        caches."""
        spec, tokens = self.spec, max_num_batched_tokens

        def rows(width: int) -> torch.Tensor:
            return torch.zeros(tokens, width, dtype=self.dtype, device=self.device)

        self.max_num_tokens = tokens
        self.residual, self.hidden = rows(spec.hidden_size), rows(spec.hidden_size)
        self.qkv = rows(spec.q_size + 2 * spec.kv_size)
        self.attended = rows(spec.q_size)
        self.activated = rows(spec.intermediate_size)
        samples = min(max_num_samples, tokens)
        self.sampled = torch.zeros(samples, spec.hidden_size, dtype=self.dtype, device=self.device)
        self.logits = torch.zeros(samples, spec.vocab_size, dtype=torch.float32, device=self.device)
        cache = torch.zeros(
            (spec.num_layers, 2, num_pages, spec.num_kv_heads, page_size, spec.head_dim),
            dtype=self.dtype,
            device=self.device,
        )
        self.kv_caches = [(k, v) for k, v in cache]
        self.pages = cache.view(2 * spec.num_layers, num_pages, -1)

    def forward(
        self, plan: StepPlan, meta: AttentionMeta, attention: Attention, capacity: int
    ) -> torch.Tensor:
        """Logits of the rows that the plan samples, [min(B, capacity), vocab] float32.

        Row i belongs to token `plan.logits_indices[i]`; rows from `plan.num_samples` on hold
        whatever they held. `capacity` bounds `plan.num_tokens` and sizes the launches. Side
        effects: keys and values of the step's tokens go to `plan.slot_mapping`; calls
        `attention.plan` once. Raises ValueError if capacity is beyond what was allocated.
        """
        if not 1 <= capacity <= self.max_num_tokens:
            raise ValueError(
                f"capacity must be from 1 to the {self.max_num_tokens} tokens allocated, "
                f"got {capacity}"
            )
        spec, num_tokens = self.spec, plan.num_tokens
        residual, hidden = self.residual[:capacity], self.hidden[:capacity]  # [T, H]
        embedding(
            plan.input_ids[:capacity],
            self.embed,
            num_tokens,
            residual,
            positions=None if self.positions is None else plan.positions[:capacity],
            position_weight=self.positions,
            position_offset=spec.position_offset or 0,
            scale=spec.embed_scale,
        )
        attention.plan(meta)
        for layer, kv_cache in zip(self.layers, self.kv_caches):
            if layer is self.layers[0]:
                self._norm(layer.attn_norm, residual, num_tokens, hidden)
            else:
                # hidden holds the last block's output, which the norm adds to the residual first
                self._norm(layer.attn_norm, hidden, num_tokens, hidden, residual)
            self._attend(layer, kv_cache, plan, meta, attention, capacity)
            self._norm(layer.mlp_norm, hidden, num_tokens, hidden, residual)
            self._mlp(layer, num_tokens, capacity)
        samples = min(capacity, self.logits.shape[0])
        sampled, logits = self.sampled[:samples], self.logits[:samples]
        rows = plan.logits_indices[:samples]
        self._norm(self.final_norm, hidden, plan.num_samples, sampled, residual, rows)
        linear(sampled, self.lm_head, plan.num_samples, logits, logit_softcap=spec.logit_softcap)
        return logits

    def _norm(
        self,
        affine: Affine,
        x: torch.Tensor,
        num_rows: torch.Tensor,
        out: torch.Tensor,
        residual: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> None:
        norm(
            x,
            affine.weight,
            num_rows,
            out,
            self.spec.norm_eps,
            bias=affine.bias,
            residual=residual,
            rows=rows,
            kind=self.spec.norm,
            weight_offset=self.spec.norm_weight_offset,
        )

    def _attend(
        self,
        layer: Layer,
        kv_cache: tuple[torch.Tensor, torch.Tensor],
        plan: StepPlan,
        meta: AttentionMeta,
        attention: Attention,
        capacity: int,
    ) -> None:
        """hidden = o(attention(qkv(hidden)))."""
        spec, num_tokens = self.spec, plan.num_tokens
        hidden, qkv = self.hidden[:capacity], self.qkv[:capacity]
        attended = self.attended[:capacity]
        linear(hidden, layer.qkv.weight, num_tokens, qkv, bias=layer.qkv.bias)
        rope_kv(
            qkv,
            plan.positions[:capacity],
            self.cos_sin,
            plan.slot_mapping[:capacity],
            *kv_cache,
            num_tokens,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=spec.norm_eps,
            interleaved=spec.rope is not None and spec.rope.interleaved,
        )
        heads = qkv.view(capacity, -1, spec.head_dim)  # [T, Hq + 2 * Hkv, D]
        q, k, v = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        out = attended.view(capacity, spec.num_heads, spec.head_dim)
        attention.forward(q, k, v, kv_cache, meta, layer.attention, out)
        linear(attended, layer.o.weight, num_tokens, hidden, bias=layer.o.bias)

    def _mlp(self, layer: Layer, num_tokens: torch.Tensor, capacity: int) -> None:
        """hidden = down(act(up(hidden))), or down(act(gate(hidden)) * up(hidden))."""
        hidden, activated = self.hidden[:capacity], self.activated[:capacity]
        up, down, activation = layer.up, layer.down, self.spec.activation
        project = gated_linear if self.spec.gated else linear
        project(hidden, up.weight, num_tokens, activated, activation=activation, bias=up.bias)
        linear(activated, down.weight, num_tokens, hidden, bias=down.bias)
