"""What a launch of paged attention is given: its workspace, its configuration, its checks."""

from typing import NamedTuple

import torch

from paged.kernels.attention_items import ITEM_FIELDS
from paged.kernels.launch import check_tensor, interpreted

FEW_TOKENS = 16  # of a launch whose programs do not fill the GPU


class AttentionConfig(NamedTuple):
    """How a launch computes; only block_n shows in the bits."""

    block_n: int
    num_warps: int
    num_stages: int


class Partials(NamedTuple):
    """Workspace of tiles whose splits go to several programs; one row per (token, split)."""

    acc: torch.Tensor  # [num_rows, H, D] float32
    ml: torch.Tensor  # [num_rows, H, 2] float32
    arrived: torch.Tensor  # [num_rows, num_kv_heads] int32, zero between launches


def choose_config(
    dtype: torch.dtype, block_m: int, block_d: int, num_tokens: int, page_size: int
) -> AttentionConfig:
    """BLOCK_N by dtype alone; warps by the height of a tile, stages by what shared memory holds.

    Measured (experiments/kernels/attention). Where a tile is in several pages, the block table's
    loads take half the stages and many registers: with many programs two warps are then faster.
    """
    block_n = 32 if dtype == torch.float32 and not interpreted() else 64
    has_room = block_n * block_d * dtype.itemsize <= 2**14
    buffers = 2 if has_room else 1
    in_one_page = page_size >= block_n
    num_stages = 1 + buffers if in_one_page else 1 + 2 * buffers
    if block_m >= 64:
        return AttentionConfig(block_n, 8, num_stages)
    has_few = in_one_page or num_tokens <= FEW_TOKENS or not has_room
    return AttentionConfig(block_n, 4 if has_few else 2, num_stages)


def check_arguments(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    items: torch.Tensor,
    out: torch.Tensor,
    alibi_slopes: torch.Tensor | None,
    partials: Partials | None,
) -> None:
    """Raise ValueError where the tensors of `paged_attention` do not fit each other."""
    num_tokens, num_heads, head_dim = q.shape
    num_pages, num_kv_heads, page_size, _ = k_cache.shape
    if q.stride(2) != 1 or q.stride(1) != head_dim:
        raise ValueError(f"q must have strides [any, {head_dim}, 1], got {q.stride()}")
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads must be a multiple of {num_kv_heads}, got {num_heads}")
    check_tensor("k_cache", k_cache, (num_pages, num_kv_heads, page_size, head_dim), q.dtype)
    check_tensor("v_cache", v_cache, (num_pages, num_kv_heads, page_size, head_dim), q.dtype)
    check_tensor("block_table", block_table, (None, None), torch.int32)
    check_tensor("items", items, (None, ITEM_FIELDS), torch.int32)
    check_tensor("out", out, (num_tokens, num_heads, head_dim))
    if alibi_slopes is not None:
        check_tensor("alibi_slopes", alibi_slopes, (num_heads,), torch.float32)
    if partials:
        check_tensor("partials.acc", partials.acc, (None, num_heads, head_dim), torch.float32)
        rows = partials.acc.shape[0]
        check_tensor("partials.ml", partials.ml, (rows, num_heads, 2), torch.float32)
        check_tensor("partials.arrived", partials.arrived, (rows, num_kv_heads), torch.int32)


def check_scalars(
    softmax_scale: float,
    page_size: int,
    split_size: int,
    sliding_window: int | None,
    logit_softcap: float | None,
    pairs: int | None,
) -> None:
    """Raise ValueError where a number of `paged_attention` is out of its range."""
    powers = {
        "page_size": (page_size, 16),
        "split_size": (split_size, 128),
        "pairs": (pairs or 1, 1),
    }
    for name, (value, least) in powers.items():
        if value < least or value & (value - 1):
            raise ValueError(f"{name} must be a power of two from {least} up, got {value}")
    positive = {"logit_softcap": logit_softcap, "sliding_window": sliding_window}
    for name, value in ({"softmax_scale": softmax_scale} | positive).items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
