"""Merge the splits of paged attention: the second half of its parallel way.

A split is a self-contained softmax over split_size keys: m = the largest score (base 2),
l = sum of exp2(score - m), acc = sum of exp2(score - m) * v. Two of them merge as

    m = max(m_a, m_b);  l, acc = (l_a, acc_a) * exp2(m_a - m) + (l_b, acc_b) * exp2(m_b - m)

(Milakov and Gimelshein 2018; FlashDecoding). Splits are folded in order 0, 1, 2, ... by one
function, `merge_split`, which the sequential way calls too: both give the same bits. A split in
which a row sees no key is (-inf, 0, 0), an identity of the fold.

Grid: one program per (tile, KV head). All tensors contiguous.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted


@triton.jit
def merge_split(m, l_sum, acc, m_split, l_split, acc_split):
    """Fold one split into the running softmax: m, l_sum [..., BLOCK_M], acc [..., BLOCK_M, D]."""
    m_new = tl.maximum(m, m_split)
    # a row that has seen no key yet: -inf - -inf would be NaN
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    old, new = tl.exp2(m - shift), tl.exp2(m_split - shift)
    # explicit fma: two kernels in which the compiler fuses a different product would differ in bits
    l_sum = tl.fma(l_sum, old, l_split * new)
    acc = tl.fma(acc, tl.expand_dims(old, -1), acc_split * tl.expand_dims(new, -1))
    return m_new, l_sum, acc


@triton.jit(do_not_specialize=["max_splits"])
def _attention_merge_kernel(
    tiles_ptr,
    partial_acc_ptr,
    partial_ml_ptr,
    out_ptr,
    max_splits,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    UNROLL: tl.constexpr,
):
    record = tiles_ptr + tl.program_id(0) * 4
    num_tokens = tl.load(record + 3)
    if num_tokens == 0:
        return
    position = tl.load(record + 2)
    row = tl.arange(0, BLOCK_M)
    token = row // GROUP
    is_row = token < num_tokens
    token_head = token * NUM_HEADS + tl.program_id(1) * GROUP + row % GROUP
    dim = tl.arange(0, BLOCK_D)
    mask = is_row[:, None] & (dim < HEAD_DIM)[None, :]
    base = tl.load(record + 1).to(tl.int64) * NUM_HEADS
    acc_ptr = partial_acc_ptr + base * max_splits * HEAD_DIM
    acc_ptrs = acc_ptr + (token_head * max_splits * HEAD_DIM)[:, None] + dim[None, :]
    ml_ptrs = partial_ml_ptr + base * max_splits * 2 + token_head * max_splits * 2

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_sum = tl.full([BLOCK_M], 0.0, tl.float32)
    acc = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
    first_split = tl.maximum(position - WINDOW + 1, 0) // SPLIT_SIZE if WINDOW > 0 else 0
    num_splits = tl.cdiv(position + num_tokens, SPLIT_SIZE)
    for split_block in range(first_split, num_splits, UNROLL):
        # several splits at once, so that their loads do not wait for the fold
        for i in tl.static_range(UNROLL):
            split = split_block + i
            here = split < num_splits
            m_split = tl.load(ml_ptrs + split * 2, mask=is_row & here, other=float("-inf"))
            l_split = tl.load(ml_ptrs + split * 2 + 1, mask=is_row & here, other=0.0)
            acc_split = tl.load(acc_ptrs + split * HEAD_DIM, mask=mask & here, other=0.0)
            m, l_sum, acc = merge_split(m, l_sum, acc, m_split, l_split, acc_split)

    out_ptrs = out_ptr + base * HEAD_DIM + (token_head * HEAD_DIM)[:, None] + dim[None, :]
    l_sum = tl.where(is_row, l_sum, 1.0)
    tl.store(out_ptrs, (acc / l_sum[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


def attention_merge(
    tiles: torch.Tensor,
    partial_acc: torch.Tensor,
    partial_ml: torch.Tensor,
    out: torch.Tensor,
    num_kv_heads: int,
    tokens_per_tile: int,
    split_size: int,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """out[token, head] = the normalised fold of the splits that the token's tile covers.

    Args:
        tiles: [max_tiles, 4] int32, see `attention_tiles`.
        partial_acc, partial_ml: [T, H, max_splits, D] and [T, H, max_splits, 2] float32.
        out: [T, H, D]; rows of no tile are left alone.

    Returns:
        `out`.
    """
    _, num_heads, head_dim = out.shape
    num_partials, _, max_splits, _ = partial_acc.shape
    check_tensor("tiles", tiles, (None, 4), torch.int32)
    check_tensor("out", out, (None, None, None))
    check_tensor("partial_acc", partial_acc, (None, num_heads, max_splits, head_dim), torch.float32)
    check_tensor("partial_ml", partial_ml, (num_partials, num_heads, max_splits, 2), torch.float32)
    if num_partials < out.shape[0]:
        raise ValueError(f"partial_acc must hold {out.shape[0]} tokens, got {num_partials}")
    if tiles.shape[0] == 0:
        return out
    group = num_heads // num_kv_heads
    _attention_merge_kernel[(tiles.shape[0], num_kv_heads)](
        tiles,
        partial_acc,
        partial_ml,
        out,
        max_splits,
        NUM_HEADS=num_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_M=max(16, triton.next_power_of_2(tokens_per_tile * group)),
        SPLIT_SIZE=split_size,
        WINDOW=sliding_window or 0,
        UNROLL=1 if interpreted() else 4,
    )
    return out


def attention_merge_ref(
    tiles: torch.Tensor,
    partial_acc: torch.Tensor,
    partial_ml: torch.Tensor,
    out: torch.Tensor,
    num_kv_heads: int,
    tokens_per_tile: int,
    split_size: int,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """All splits of a row weighed at once, as a new tensor."""
    merged = out.clone()
    for _, first_row, position, num_tokens in tiles.tolist():
        rows = slice(first_row, first_row + num_tokens)
        first_key = max(0, position - sliding_window + 1) if sliding_window else 0
        splits = slice(first_key // split_size, -(-(position + num_tokens) // split_size))
        m, l_sum = partial_ml[rows, :, splits].unbind(-1)
        weight = torch.exp2(m - m.amax(-1, keepdim=True)) if num_tokens else m
        acc = torch.einsum("ths,thsd->thd", weight, partial_acc[rows, :, splits])
        merged[rows] = (acc / (weight * l_sum).sum(-1)[..., None]).to(out.dtype)
    return merged


def attention_merge_inputs(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    positions: tuple[int, ...] = (0, 63, 64, 300),
    max_num_tokens: int = 6,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    split_size: int = 64,
    sliding_window: int | None = None,
) -> dict:
    """One decode token at each of `positions`; splits that must not be read are NaN."""
    generator = torch.Generator().manual_seed(0)
    max_splits = max(positions) // split_size + 2
    acc = torch.full((max_num_tokens, num_heads, max_splits, head_dim), float("nan"))
    ml = torch.full((max_num_tokens, num_heads, max_splits, 2), float("nan"))
    for row, position in enumerate(positions):
        first_key = max(0, position - sliding_window + 1) if sliding_window else 0
        splits = slice(first_key // split_size, position // split_size + 1)
        acc[row, :, splits] = torch.randn(acc[row, :, splits].shape, generator=generator)
        ml[row, :, splits] = torch.rand(ml[row, :, splits].shape, generator=generator) * 4 + 1
    tiles = [(row, row, position, 1) for row, position in enumerate(positions)]
    tiles += [(-1, 0, 0, 0)] * (max_num_tokens - len(positions))
    return {
        "tiles": torch.tensor(tiles, dtype=torch.int32, device=device),
        "partial_acc": acc.to(device),
        "partial_ml": ml.to(device),
        "out": torch.full(
            (max_num_tokens, num_heads, head_dim), float("nan"), dtype=dtype, device=device
        ),
        "num_kv_heads": num_kv_heads,
        "tokens_per_tile": 16 // (num_heads // num_kv_heads),
        "split_size": split_size,
        "sliding_window": sliding_window,
    }


ATTENTION_MERGE_VARIANTS: tuple[dict, ...] = (
    {"sliding_window": 100},
    {"head_dim": 80, "num_heads": 5, "num_kv_heads": 1},
)
