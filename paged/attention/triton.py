"""Paged attention in Triton: one kernel for decode, chunks and prefill; batch-invariant bits."""

import torch
from triton import next_power_of_2

from paged.attention.alibi import alibi_slopes
from paged.interfaces import Attention, AttentionMeta, AttentionSpec
from paged.kernels.attention_tiles import (
    attention_tiles,
    choose_tokens_per_tile,
    max_attention_tiles,
)
from paged.kernels.launch import interpreted
from paged.kernels.paged_attention import paged_attention

FAST_DECODE_SPLIT = 256  # numerics=fast: keys a split where few tokens must fill the GPU


class TritonAttention(Attention):
    """The engine's default attention; see `paged.kernels.paged_attention`.

    Buffers (tiles, workspace, slopes) are made on the first call of each capacity and kept, so a
    captured graph finds them where they were.

    Args:
        split_size: keys a split, a power of two from 128 up. It is part of a token's bits.
        numerics: "invariant" keeps `split_size` in every step, so a token's bits do not depend on
            its batch, chunking or prefix hits; "fast" lets it follow the step's capacity: short
            splits where few tokens must fill the GPU, one split where many do.
        max_parallel_tokens: steps of at most this capacity give the splits of a long context to
            programs of their own; larger ones have programs enough. The bits are the same. Default
            64, and 0 in the interpreter, where programs run one after another.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        split_size: int = 512,
        numerics: str = "invariant",
        max_parallel_tokens: int | None = None,
    ) -> None:
        if numerics not in ("invariant", "fast"):
            raise ValueError(f"attention.numerics must be invariant or fast, got {numerics!r}")
        if split_size < 128 or split_size & (split_size - 1):
            raise ValueError(
                f"attention.split_size must be a power of two from 128 up, got {split_size}"
            )
        if max_parallel_tokens is None:
            max_parallel_tokens = 0 if interpreted() else 64
        if max_parallel_tokens < 0:
            raise ValueError(
                f"attention.max_parallel_tokens must be at least 0, got {max_parallel_tokens}; "
                "0 turns parallel splits off"
            )
        self.split_size = split_size
        self.numerics = numerics
        self.max_parallel_tokens = max_parallel_tokens
        self._tiles: dict[tuple, torch.Tensor] = {}
        self._partials: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}
        self._slopes: dict[tuple, torch.Tensor] = {}
        self._planned: set[int] = set()  # tokens per tile whose tiles this step already has

    def plan(self, meta: AttentionMeta) -> None:
        # how tokens are cut depends on the layer's heads: the first layer of a kind cuts them
        self._planned.clear()

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv_cache: tuple[torch.Tensor, torch.Tensor],
        meta: AttentionMeta,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> torch.Tensor:
        group = spec.num_heads // spec.num_kv_heads
        tokens_per_tile = choose_tokens_per_tile(meta.max_num_tokens, group, spec.head_dim, q.dtype)
        return paged_attention(
            q,
            *kv_cache,
            meta.block_table,
            self._plan_tiles(meta, tokens_per_tile),
            out,
            spec.softmax_scale,
            tokens_per_tile,
            self._split_size(meta),
            sliding_window=spec.sliding_window,
            logit_softcap=spec.logit_softcap,
            alibi_slopes=self._alibi(spec, q.device) if spec.alibi else None,
            partials=self._workspace(meta, spec, q.device),
        )

    def _split_size(self, meta: AttentionMeta) -> int:
        if self.numerics == "invariant":
            return self.split_size
        if meta.max_num_tokens <= self.max_parallel_tokens:
            return FAST_DECODE_SPLIT
        return max(self.split_size, next_power_of_2(meta.max_seq_len))

    def _plan_tiles(self, meta: AttentionMeta, tokens_per_tile: int) -> torch.Tensor:
        max_num_seqs = meta.seq_lens.shape[0]
        max_tiles = max_attention_tiles(meta.max_num_tokens, max_num_seqs, tokens_per_tile)
        device = meta.seq_lens.device
        key = (max_tiles, tokens_per_tile, device)
        if key not in self._tiles:
            self._tiles[key] = torch.empty(max_tiles, 4, dtype=torch.int32, device=device)
        tiles = self._tiles[key]
        if tokens_per_tile not in self._planned:
            attention_tiles(meta.cu_seqlens_q, meta.seq_lens, meta.num_seqs, tiles, tokens_per_tile)
            self._planned.add(tokens_per_tile)
        return tiles

    def _workspace(
        self, meta: AttentionMeta, spec: AttentionSpec, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        # a power of two: a bound that grows with the sequences then makes few buffers and kernels
        max_splits = next_power_of_2(-(-meta.max_seq_len // self._split_size(meta)))
        if meta.max_num_tokens > self.max_parallel_tokens or max_splits == 1:
            return None
        key = (spec.num_heads, spec.head_dim, max_splits, device)
        if key not in self._partials:
            rows = (self.max_parallel_tokens, spec.num_heads, max_splits)
            self._partials[key] = (
                torch.empty(*rows, spec.head_dim, dtype=torch.float32, device=device),
                torch.empty(*rows, 2, dtype=torch.float32, device=device),
            )
        return self._partials[key]

    def _alibi(self, spec: AttentionSpec, device: torch.device) -> torch.Tensor:
        key = (spec.num_heads, device)
        if key not in self._slopes:
            self._slopes[key] = alibi_slopes(spec.num_heads, device)
        return self._slopes[key]
