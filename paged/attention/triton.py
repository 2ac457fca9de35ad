"""Paged attention in Triton: one kernel for decode, chunks and prefill; batch-invariant bits."""

from typing import NamedTuple

import torch
from triton import next_power_of_2

from paged.attention.alibi import alibi_slopes
from paged.interfaces import Attention, AttentionMeta, AttentionSpec
from paged.kernels.attention_arguments import Partials
from paged.kernels.attention_items import ITEM_FIELDS, attention_items, max_attention_tiles
from paged.kernels.launch import interpreted
from paged.kernels.paged_attention import paged_attention
from paged.kernels.prefill_attention import fits_prefill_attention, prefill_attention

MANY = 2**31 - 1
SHORT_ROWS = 16  # query rows of a decode's tile: the least a tensor core multiplies
SHORT_TOKENS = 32  # query tokens of a sequence: more tall tiles for fewer would mostly be empty
SHORT_CAPACITY = 256  # tokens of a step
WORKSPACE_ROWS = 4096  # 64 MiB with 32 heads of 128; a row is one split of one token
SPREAD_PROGRAMS = 512  # that the splits of a launch of short tiles should fill


class Cut(NamedTuple):
    """One list of items, and one launch: the sequences of `least` to `most` query tokens."""

    tokens_per_tile: int
    least: int
    most: int
    max_items: int
    num_rows: int
    spread: int
    split_size: int


class TritonAttention(Attention):
    """The engine's default attention; see `paged.kernels.paged_attention`.

    Sequences of few query tokens go in short tiles, whose splits may be spread over programs; in
    steps with room for more tokens the others go in tall tiles, in a launch of their own.
    Buffers (items, workspace, slopes) are made on the first call of each capacity and kept, so a
    captured graph finds them where they were.

    Args:
        split_size: keys a split, a power of two from 128 up. It is part of a token's bits.
        numerics: "invariant" keeps `split_size` in every tile, so a token's bits do not depend on
            its batch, chunking or prefix hits; "fast" has no splits in tall tiles.
        workspace_rows: room for splits that are spread over programs, one row a split of a token;
            0 gives each tile to one program. The bits are the same. Default 4,096 on NVIDIA; 0 in
            the interpreter, where programs run one after another, and on AMD, where a barrier is
            not known to complete the stores that the last program to arrive reads.
        short_capacity: steps of at most this many tokens have short tiles only, in one launch. The
            bits are the same. Default 256, and no limit in the interpreter.
        warp_groups: on Hopper, tall tiles by `paged.kernels.prefill_attention` where it fits. The
            bits are the same. Faster, but off: the kernel was measured alone, not in an engine yet.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        split_size: int = 256,
        numerics: str = "invariant",
        workspace_rows: int | None = None,
        short_capacity: int | None = None,
        warp_groups: bool = False,
    ) -> None:
        if numerics not in ("invariant", "fast"):
            raise ValueError(f"attention.numerics must be invariant or fast, got {numerics!r}")
        if split_size < 128 or split_size & (split_size - 1):
            raise ValueError(
                f"attention.split_size must be a power of two from 128 up, got {split_size}"
            )
        if workspace_rows is None:
            can_spread = not interpreted() and torch.version.hip is None
            workspace_rows = WORKSPACE_ROWS if can_spread else 0
        if workspace_rows < 0:
            raise ValueError(
                f"attention.workspace_rows must be at least 0, got {workspace_rows}; "
                "0 turns parallel splits off"
            )
        if short_capacity is None:
            short_capacity = MANY if interpreted() else SHORT_CAPACITY
        self.short_capacity = short_capacity
        self.warp_groups = warp_groups
        self.split_size = split_size
        self.numerics = numerics
        self.workspace_rows = workspace_rows
        self._items: dict[tuple, torch.Tensor] = {}
        self._partials: dict[tuple, Partials] = {}
        self._slopes: dict[tuple, torch.Tensor] = {}
        self._planned: set[tuple] = set()  # what this step has cut already

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
        has_extras = spec.sliding_window or spec.logit_softcap or spec.alibi
        for cut in self._cuts(meta, spec, q.dtype):
            items = self._cut(meta, cut, spec.sliding_window)
            cut_at = (cut.tokens_per_tile, cut.split_size)
            arguments = (q, *kv_cache, meta.block_table, items, out, spec.softmax_scale, *cut_at)
            may_group = self.warp_groups and not has_extras and not cut.num_rows
            if may_group and fits_prefill_attention(q, kv_cache[0], cut.tokens_per_tile):
                prefill_attention(*arguments)
                continue
            paged_attention(
                *arguments,
                sliding_window=spec.sliding_window,
                logit_softcap=spec.logit_softcap,
                alibi_slopes=self._alibi(spec, q.device) if spec.alibi else None,
                partials=self._workspace(spec, q.device) if cut.num_rows else None,
            )
        return out

    def _cuts(self, meta: AttentionMeta, spec: AttentionSpec, dtype: torch.dtype) -> list[Cut]:
        """The launches of a layer: short tiles, and tall ones where the step has room for them."""
        group = spec.num_heads // spec.num_kv_heads
        capacity, max_num_seqs = meta.max_num_tokens, meta.seq_lens.shape[0]
        short = max(1, SHORT_ROWS // group)
        is_mixed = capacity > self.short_capacity
        most = max(short, SHORT_TOKENS) if is_mixed else MANY
        tiles = max_attention_tiles(capacity, max_num_seqs, short)
        spread = num_rows = 0
        if meta.max_seq_len > self.split_size and self.workspace_rows:
            num_rows = self.workspace_rows
            spread = max(1, SPREAD_PROGRAMS // spec.num_kv_heads)
        cuts = [Cut(short, 1, most, tiles + spread, num_rows, spread, self.split_size)]
        if is_mixed:
            tall = max(1, tall_rows(dtype, spec.head_dim) // group)
            tiles = capacity // tall + min(max_num_seqs, capacity // (most + 1))
            split_size = self.split_size
            if self.numerics == "fast":
                split_size = max(split_size, next_power_of_2(meta.max_seq_len))
            cuts.append(Cut(tall, most + 1, MANY, tiles, 0, 0, split_size))
        return cuts

    def _cut(self, meta: AttentionMeta, cut: Cut, sliding_window: int | None) -> torch.Tensor:
        window = sliding_window if cut.num_rows else None  # without a range of splits it is no part
        key = (cut, window, meta.seq_lens.shape[0], meta.seq_lens.device)
        if key not in self._items:
            shape = (cut.max_items, ITEM_FIELDS)
            self._items[key] = torch.empty(shape, dtype=torch.int32, device=meta.seq_lens.device)
        items = self._items[key]
        if key not in self._planned:
            attention_items(
                meta.cu_seqlens_q,
                meta.seq_lens,
                meta.num_seqs,
                items,
                cut.tokens_per_tile,
                cut.split_size,
                window,
                cut.num_rows,
                cut.spread,
                cut.least,
                cut.most,
            )
            self._planned.add(key)
        return items

    def _workspace(self, spec: AttentionSpec, device: torch.device) -> Partials:
        key = (spec.num_heads, spec.num_kv_heads, spec.head_dim, device)
        if key not in self._partials:
            rows, heads = self.workspace_rows, spec.num_heads
            self._partials[key] = Partials(
                torch.empty(rows, heads, spec.head_dim, dtype=torch.float32, device=device),
                torch.empty(rows, heads, 2, dtype=torch.float32, device=device),
                torch.zeros(rows, spec.num_kv_heads, dtype=torch.int32, device=device),
            )
        return self._partials[key]

    def _alibi(self, spec: AttentionSpec, device: torch.device) -> torch.Tensor:
        key = (spec.num_heads, device)
        if key not in self._slopes:
            self._slopes[key] = alibi_slopes(spec.num_heads, device)
        return self._slopes[key]


def tall_rows(dtype: torch.dtype, head_dim: int) -> int:
    """Query rows of a prefill's tile: as many as registers hold, less where elements are wide."""
    if dtype == torch.float32:
        return 32 if head_dim <= 128 else 16
    return 128 if head_dim <= 128 else 64
