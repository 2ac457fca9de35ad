"""Reference and inputs of `paged_attention`, apart because its kernel and launcher fill a file."""

from itertools import pairwise

import torch
import triton

from paged.kernels.attention_arguments import Partials


def paged_attention_ref(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    items: torch.Tensor,
    out: torch.Tensor,
    softmax_scale: float,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    **_how: object,
) -> torch.Tensor:
    """Softmax over each token's gathered keys in fp32, as a new tensor; rows of no item are 0."""
    attended = torch.zeros_like(out)
    group = q.shape[1] // k_cache.shape[1]
    for seq, first_row, position, num_tokens, *_ in items.tolist():
        for row, q_pos in zip(range(first_row, first_row + num_tokens), range(position, 2**31)):
            key = torch.arange(q_pos + 1, device=q.device)
            if sliding_window:
                key = key[-sliding_window:]
            page = block_table[seq, key // k_cache.shape[2]].long()
            k, v = (
                cache[page, :, key % cache.shape[2]].float().repeat_interleave(group, 1)
                for cache in (k_cache, v_cache)
            )  # [num_keys, H, D]
            scores = torch.einsum("hd,nhd->hn", q[row].float(), k) * softmax_scale
            if logit_softcap:
                scores = logit_softcap * torch.tanh(scores / logit_softcap)
            if alibi_slopes is not None:
                scores = scores - alibi_slopes[:, None] * (q_pos - key)
            attended[row] = torch.einsum("hn,nhd->hd", scores.softmax(-1), v).to(out.dtype)
    return attended


def paged_attention_inputs(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    lens: tuple[tuple[int, int], ...] = ((1, 150), (9, 30), (17, 17)),
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    tokens_per_tile: int = 4,
    split_size: int = 128,
    spread: int = 1,
    alibi: bool = False,
    **passed_on: float,
) -> dict:
    """Sequences of `lens` = ((query tokens, keys), ...); further arguments are passed on.

    The splits of a tile are spread over `spread` items, of which some may have none.

    Pages are shuffled. Whatever must not be read is NaN: unused pages, the tail of last pages,
    the workspace.
    """
    generator = torch.Generator().manual_seed(0)
    window = passed_on.get("sliding_window")
    num_tokens = sum(q_len for q_len, _ in lens)
    max_seq_len = max((seq_len for _, seq_len in lens), default=1)
    max_pages, num_pages = triton.cdiv(max_seq_len, page_size), 1
    num_pages += sum(triton.cdiv(seq_len, page_size) for _, seq_len in lens)
    free = torch.randperm(num_pages, generator=generator).tolist()
    caches = torch.full((2, num_pages, num_kv_heads, page_size, head_dim), float("nan"))
    block_table = torch.full((len(lens), max_pages), -1, dtype=torch.int32)
    items, row, slot = [], 0, 0
    for seq, (q_len, seq_len) in enumerate(lens):
        for i, key in enumerate(range(0, seq_len, page_size)):
            block_table[seq, i] = page = free.pop()
            live = caches[:, page, :, : min(page_size, seq_len - key)]
            live.copy_(torch.randn(live.shape, generator=generator))
        for i in range(0, q_len, tokens_per_tile):
            position, count = seq_len - q_len + i, min(tokens_per_tile, q_len - i)
            first = max(0, position - (window or seq_len) + 1) // split_size
            splits = triton.cdiv(position + count, split_size) - first
            cuts = [first + part * splits // spread for part in range(spread + 1)]
            tile = (seq, row + i, position, count)
            items += [(*tile, *cut, spread, slot) for cut in pairwise(cuts)]
            slot += splits * count
        row += q_len
    items.append((-1, *[0] * 7))
    qkv = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim, generator=generator).to(
        device, dtype
    )
    nan = torch.full((max(slot, num_tokens), num_heads, head_dim), torch.nan)
    slopes = torch.rand(num_heads, generator=generator).to(device) if alibi else None
    k_cache, v_cache = caches.to(device, dtype)
    ml = nan[..., :2].to(device).contiguous()
    arrived = torch.zeros(len(nan), num_kv_heads, dtype=torch.int32, device=device)
    return {
        "q": qkv[:, :num_heads],
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": block_table.to(device),
        "items": torch.tensor(items, dtype=torch.int32, device=device),
        "out": nan[:num_tokens].to(device, dtype, copy=True),
        "softmax_scale": head_dim**-0.5,
        "tokens_per_tile": tokens_per_tile,
        "split_size": split_size,
        "alibi_slopes": slopes,
        "partials": Partials(nan.to(device), ml, arrived) if spread > 1 else None,
        **passed_on,
    }


PAGED_ATTENTION_VARIANTS: tuple[dict, ...] = (
    {"spread": 2, "page_size": 128},
    {"pairs": 4},
    {"tokens_per_tile": 32, "page_size": 64, "pairs": 1},
    {"tokens_per_tile": 32, "head_dim": 40, "sliding_window": 50, "pairs": 1},
    {"sliding_window": 20, "logit_softcap": 30.0},
    {"alibi": True, "num_heads": 5, "num_kv_heads": 1, "head_dim": 80, "tokens_per_tile": 3},
)
