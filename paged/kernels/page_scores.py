"""Scores of pages: how much a compression policy wants to keep each page of KV memory.

    score[row, i] = mean of SCORE(token, *args) over the tokens, KV heads and layers of page i

of the full pages [first, ends[row]) of each listed row, where SCORE is the policy's Triton function
of `CachedToken` tiles. Sums run in one fixed order, so a page's score has the same bits in every
batch. Grid: (pages, rows), both by strides; everything contiguous, arithmetic fp32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted
from paged.kernels.page_attention import ONE

MAX_TILE = 4096  # elements of a tile of keys on a GPU: they stay in registers
PAGE_SCORES_VARIANTS = (
    {"with_means": True},
    {"head_dim": 80, "num_kv_heads": 3},
    {"with_attention": True},
)


class CachedToken(NamedTuple):
    """Tokens of one layer and KV head, as `score` sees them; fp32 tiles [..., D], with zeros from
    head_dim up to the next power of two. A score reduces the last axis, which `attention` lacks."""

    key: Any  # rotated
    value: Any
    mean_key: Any  # mean of all the request's keys scaled to length 1; None unless asked for
    attention: Any = None  # paid to a token of its page, by all heads and layers; None as above


@triton.jit
def _page_scores_kernel(
    pages_ptr, block_table, num_rows_ptr, slots, ends, mean_keys, attention, scores, args,
    num_pages,
    SCORE: tl.constexpr, MAX_PAGES: tl.constexpr, FIRST: tl.constexpr, NUM_LAYERS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    MEANS: tl.constexpr, ATTENTION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = NUM_KV_HEADS * PAGE_SIZE  # of a page, head by head
    lane = tl.arange(0, BLOCK_P)
    d = tl.arange(0, BLOCK_D)[None, None, :]
    for row in range(tl.program_id(1), tl.load(num_rows_ptr), tl.num_programs(1)):
        slot = tl.load(slots + row).to(tl.int64)
        table = block_table + slot * MAX_PAGES
        end = tl.load(ends + row)
        stride = tl.num_programs(0) * BLOCK_P
        for first in range(FIRST + tl.program_id(0) * BLOCK_P, end, stride):
            live = first + lane < end
            # lanes past the end read what is there: a score may divide by what it finds
            page = tl.load(table + tl.minimum(first + lane, end - 1)).to(tl.int64)
            paid = None
            if ATTENTION:
                of_page = tl.load(attention + slot * MAX_PAGES + first + lane, mask=live, other=0)
                of_token = of_page.to(tl.float32) / (ONE * PAGE_SIZE)
                paid = tl.broadcast_to(of_token[:, None], [BLOCK_P, BLOCK_R])
            total = tl.zeros([BLOCK_P], dtype=tl.float32)
            for layer in range(NUM_LAYERS):
                plane = pages_ptr + (2 * layer * num_pages + page) * ROWS * HEAD_DIM
                for block in range(0, ROWS, BLOCK_R):
                    at = (block + tl.arange(0, BLOCK_R))[None, :]  # head * PAGE_SIZE + token
                    inside = live[:, None] & (at < ROWS)
                    at = tl.minimum(at, ROWS - 1)
                    mask = d < HEAD_DIM
                    k_ptrs = plane[:, None, None] + at[:, :, None] * HEAD_DIM + d
                    v_ptrs = k_ptrs + tl.cast(num_pages, tl.int64) * ROWS * HEAD_DIM
                    mean_key = None
                    if MEANS:
                        head = (row * NUM_LAYERS + layer) * NUM_KV_HEADS + at // PAGE_SIZE
                        m_ptrs = mean_keys + head[:, :, None].to(tl.int64) * HEAD_DIM + d
                        mean_key = tl.load(m_ptrs, mask=mask, other=0.0)
                    token = CachedToken(
                        key=tl.load(k_ptrs, mask=mask, other=0.0).to(tl.float32),
                        value=tl.load(v_ptrs, mask=mask, other=0.0).to(tl.float32),
                        mean_key=mean_key,
                        attention=paid,
                    )  # [BLOCK_P, BLOCK_R, BLOCK_D]
                    total += tl.sum(tl.where(inside, SCORE(token, *args), 0.0), axis=1)
            mean = total / (NUM_LAYERS * ROWS)
            at = scores + tl.cast(row, tl.int64) * MAX_PAGES + first + lane
            tl.store(at, mean, mask=live)


def page_scores(
    pages: torch.Tensor,
    block_table: torch.Tensor,
    num_rows: torch.Tensor,
    slots: torch.Tensor,
    ends: torch.Tensor,
    scores: torch.Tensor,
    score: Callable,
    page_size: int,
    head_dim: int,
    first: int = 0,
    mean_keys: torch.Tensor | None = None,
    attention: torch.Tensor | None = None,
    args: tuple = (),
) -> None:
    """Write the scores of entries [first, ends[i]) of the block table of slot slots[i].

    Args:
        pages: [2 * layers, N, num_kv_heads * page_size * head_dim], a layer's keys, then values.
        block_table: [R, M] int32.
        num_rows: [1] int32, how many of `slots` and `ends` [S] int32 are meant.
        scores: [S, M] float32, written.
        score: Triton function `(token, *args) -> float32`, see `CachedToken`.
        mean_keys: [S, layers, num_kv_heads, head_dim] float32 from `mean_keys`, or None.
        attention: [R, M] int64 from `page_attention`, or None.

    Raises ValueError on a wrong shape, dtype or stride.
    """
    layers, num_pages, heads = check_pages(pages, page_size, head_dim)
    check_tensor("block_table", block_table, (None, None), torch.int32)
    max_pages = block_table.shape[1]
    check_tensor("num_rows", num_rows, (1,), torch.int32)
    check_tensor("slots", slots, (None,), torch.int32)
    check_tensor("ends", ends, tuple(slots.shape), torch.int32)
    check_tensor("scores", scores, (slots.shape[0], max_pages), torch.float32)
    if mean_keys is not None:
        shape = (slots.shape[0], layers, heads, head_dim)
        check_tensor("mean_keys", mean_keys, shape, torch.float32)
    if attention is not None:
        check_tensor("attention", attention, tuple(block_table.shape), torch.int64)
    block_d = triton.next_power_of_2(head_dim)
    block_r = min(triton.next_power_of_2(heads * page_size), max(1, MAX_TILE // block_d))
    block_p, grid = 1, (128, min(slots.shape[0], 32))
    if interpreted():
        block_r = triton.next_power_of_2(heads * page_size)
        room = max(1, 2**20 // (block_r * block_d))
        block_p, grid = min(triton.next_power_of_2(max_pages), room), (1, 1)
    _page_scores_kernel[grid](
        pages, block_table, num_rows, slots, ends, mean_keys, attention, scores, args, num_pages,
        SCORE=score, MAX_PAGES=max_pages, FIRST=first, NUM_LAYERS=layers, NUM_KV_HEADS=heads,
        PAGE_SIZE=page_size, HEAD_DIM=head_dim, MEANS=mean_keys is not None,
        ATTENTION=attention is not None, BLOCK_P=block_p, BLOCK_R=block_r, BLOCK_D=block_d,
        num_warps=4,
    )  # fmt: skip


def check_pages(pages: torch.Tensor, page_size: int, head_dim: int) -> tuple[int, int, int]:
    """(layers, pages, KV heads) of `pages`. Raises ValueError on a wrong shape."""
    check_tensor("pages", pages, (None, None, None))
    planes, num_pages, elements = pages.shape
    if planes % 2 or elements % (page_size * head_dim):
        raise ValueError(
            f"pages must have two planes a layer and {page_size * head_dim} elements a head, "
            f"got {planes} planes of {elements}"
        )
    return planes // 2, num_pages, elements // (page_size * head_dim)


def page_scores_ref(
    pages: torch.Tensor,
    block_table: torch.Tensor,
    num_rows: torch.Tensor,
    slots: torch.Tensor,
    ends: torch.Tensor,
    scores: torch.Tensor,
    score: Callable[[CachedToken], torch.Tensor],
    page_size: int,
    head_dim: int,
    first: int = 0,
    mean_keys: torch.Tensor | None = None,
    attention: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `scores` becomes, as a copy; here `score` is a torch function."""
    layers, num_pages, heads = check_pages(pages, page_size, head_dim)
    cache = pages.view(layers, 2, num_pages, heads, page_size, head_dim).float()
    scores = scores.clone()
    for row in range(int(num_rows)):
        held = block_table[slots[row], first : int(ends[row])].long()
        key, value = cache[:, 0, held], cache[:, 1, held]  # [layers, pages, heads, page_size, D]
        mean_key = None if mean_keys is None else mean_keys[row][:, None, :, None]
        paid = None
        if attention is not None:
            paid = attention[slots[row], first : int(ends[row])].float()
            paid = (paid / (ONE.value * page_size))[:, None, None].expand(key.shape[:-1])
        of_tokens = score(CachedToken(key, value, mean_key, paid))
        scores[row, first : int(ends[row])] = of_tokens.mean((0, 2, 3))
    return scores


@triton.jit
def _dot_of_all(token):
    """A score that reads everything a policy may read, to compile and compare with."""
    other = token.value
    if token.mean_key is not None:
        other = other + token.mean_key
    if token.attention is not None:
        other = other * token.attention[:, :, None]
    return tl.sum(token.key * other, axis=-1)


def page_scores_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    num_layers: int = 2,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    page_size: int = 16,
    ends: tuple[int, ...] = (7, 3),
    first: int = 1,
    with_means: bool = False,
    with_attention: bool = False,
) -> dict:
    """Arguments of `page_scores`: rows on shuffled slots and pages, one row to spare."""
    generator = torch.Generator().manual_seed(0)
    rows, width = len(ends), max(ends) + 2
    num_pages = (rows + 1) * width
    elements = num_kv_heads * page_size * head_dim
    pages = torch.randn(2 * num_layers, num_pages, elements, generator=generator)
    table = torch.randperm(num_pages, generator=generator).view(rows + 1, width).int()
    slots = torch.randperm(rows + 1, generator=generator).int()
    means = torch.randn(rows + 1, num_layers, num_kv_heads, head_dim, generator=generator)
    paid = torch.randint(2**40, table.shape, generator=generator).to(device)
    return {
        "pages": pages.to(device, dtype),
        "block_table": table.to(device),
        "num_rows": torch.tensor([rows], dtype=torch.int32, device=device),
        "slots": slots.to(device),
        "ends": torch.tensor([*ends, 2**30], dtype=torch.int32, device=device),
        "scores": torch.full((rows + 1, width), float("nan"), device=device),
        "score": _dot_of_all,
        "page_size": page_size,
        "head_dim": head_dim,
        "first": first,
        "mean_keys": means.to(device) if with_means else None,
        "attention": paid if with_attention else None,
    }
