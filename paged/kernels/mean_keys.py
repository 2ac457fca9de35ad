"""The mean direction of a request's keys: the anchor of KeyDiff.

    mean[row, layer, head] = mean over the keys k in the cache of k / |k|

Grid: (layers * KV heads, rows), both by strides; a program adds the keys up in their order, so the
bits do not depend on the batch. Everything contiguous, arithmetic fp32. After Park et al.,
"KeyDiff" (2025).
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted
from paged.kernels.page_scores import check_pages

MEAN_KEYS_VARIANTS = ({"head_dim": 80, "num_kv_heads": 3},)


@triton.jit
def _mean_keys_kernel(
    pages_ptr, block_table, num_rows_ptr, slots, lens, mean_keys, num_pages,
    MAX_PAGES: tl.constexpr, NUM_LAYERS: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    HEADS: tl.constexpr = NUM_LAYERS * NUM_KV_HEADS
    head = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    plane = (head // NUM_KV_HEADS * 2).to(tl.int64) * num_pages * NUM_KV_HEADS
    d = tl.arange(0, BLOCK_D)
    is_head = (head < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
    for row in range(tl.program_id(1), tl.load(num_rows_ptr), tl.num_programs(1)):
        table = block_table + tl.load(slots + row).to(tl.int64) * MAX_PAGES
        num_keys = tl.load(lens + row)
        total = tl.zeros([BLOCK_H, BLOCK_D], dtype=tl.float32)
        for first in range(0, num_keys, BLOCK_T):
            token = first + tl.arange(0, BLOCK_T)
            live = token < num_keys
            page = tl.load(table + token // PAGE_SIZE, mask=live, other=0).to(tl.int64)
            of_head = plane[:, None] + page[None, :] * NUM_KV_HEADS + (head % NUM_KV_HEADS)[:, None]
            at = of_head * PAGE_SIZE + (token % PAGE_SIZE)[None, :]
            mask = is_head[:, None, :] & live[None, :, None]
            ptrs = pages_ptr + at[:, :, None] * HEAD_DIM + d[None, None, :]
            key = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_H, BLOCK_T, BLOCK_D]
            norm = tl.sqrt(tl.sum(key * key, axis=2))
            total += tl.sum(key / tl.where(norm > 0, norm, 1.0)[:, :, None], axis=1)
        at = (tl.cast(row, tl.int64) * HEADS + head)[:, None] * HEAD_DIM + d[None, :]
        tl.store(mean_keys + at, total / num_keys, mask=is_head)


def mean_keys(
    pages: torch.Tensor,
    block_table: torch.Tensor,
    num_rows: torch.Tensor,
    slots: torch.Tensor,
    lens: torch.Tensor,
    means: torch.Tensor,
    page_size: int,
    head_dim: int,
) -> None:
    """Write `means` of the first `lens[i]` keys of slot `slots[i]`, in every layer and KV head.

    pages: [2 * layers, N, num_kv_heads * page_size * head_dim]; block_table [R, M] int32; num_rows
    [1] int32, how many of `slots` and `lens` [S] int32 are meant; means [S, layers, num_kv_heads,
    head_dim] float32. Raises ValueError on a wrong shape, dtype or stride.
    """
    layers, num_pages, heads = check_pages(pages, page_size, head_dim)
    check_tensor("block_table", block_table, (None, None), torch.int32)
    check_tensor("num_rows", num_rows, (1,), torch.int32)
    check_tensor("slots", slots, (None,), torch.int32)
    check_tensor("lens", lens, tuple(slots.shape), torch.int32)
    check_tensor("means", means, (slots.shape[0], layers, heads, head_dim), torch.float32)
    block_h, rows = 1, min(slots.shape[0], 32)
    if interpreted():
        block_h, rows = triton.next_power_of_2(layers * heads), 1
    _mean_keys_kernel[(triton.cdiv(layers * heads, block_h), rows)](
        pages, block_table, num_rows, slots, lens, means, num_pages,
        MAX_PAGES=block_table.shape[1], NUM_LAYERS=layers, NUM_KV_HEADS=heads,
        PAGE_SIZE=page_size, HEAD_DIM=head_dim, BLOCK_H=block_h, BLOCK_T=64,
        BLOCK_D=triton.next_power_of_2(head_dim), num_warps=4,
    )  # fmt: skip


def mean_keys_ref(
    pages: torch.Tensor,
    block_table: torch.Tensor,
    num_rows: torch.Tensor,
    slots: torch.Tensor,
    lens: torch.Tensor,
    means: torch.Tensor,
    page_size: int,
    head_dim: int,
) -> torch.Tensor:
    """What `means` becomes, as a copy."""
    layers, num_pages, heads = check_pages(pages, page_size, head_dim)
    keys = pages.view(layers, 2, num_pages, heads, page_size, head_dim)[:, 0].float()
    means = means.clone()
    for row in range(int(num_rows)):
        token = torch.arange(int(lens[row]), device=pages.device)
        page = block_table[slots[row], token // page_size].long()
        held = keys[:, page, :, token % page_size]  # [tokens, layers, heads, D]
        means[row] = torch.nn.functional.normalize(held, dim=-1).mean(0)
    return means


def mean_keys_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    num_layers: int = 2,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    page_size: int = 16,
    lens: tuple[int, ...] = (130, 17, 64),
) -> dict:
    """Arguments of `mean_keys`: rows on shuffled slots and pages, one row to spare."""
    generator = torch.Generator().manual_seed(0)
    rows, width = len(lens), triton.cdiv(max(lens), page_size) + 1
    num_pages = (rows + 1) * width
    elements = num_kv_heads * page_size * head_dim
    pages = torch.randn(2 * num_layers, num_pages, elements, generator=generator)
    table = torch.randperm(num_pages, generator=generator).view(rows + 1, width).int()
    slots = torch.randperm(rows + 1, generator=generator).int()
    shape = (rows + 1, num_layers, num_kv_heads, head_dim)
    return {
        "pages": pages.to(device, dtype),
        "block_table": table.to(device),
        "num_rows": torch.tensor([rows], dtype=torch.int32, device=device),
        "slots": slots.to(device),
        "lens": torch.tensor([*lens, 2**30], dtype=torch.int32, device=device),
        "means": torch.full(shape, float("nan"), device=device),
        "page_size": page_size,
        "head_dim": head_dim,
    }
