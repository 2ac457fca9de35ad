"""Cut the ragged queries of a step into tiles of one sequence each, on the device.

Sequence i, with q_i = cu_seqlens_q[i + 1] - cu_seqlens_q[i] query tokens, gets
cdiv(q_i, tokens_per_tile) consecutive tiles; an inclusive prefix sum of these counts tells tile t
its sequence: the number of sums that are <= t. Attention then needs one record of four numbers
a tile, whether the tile belongs to a decode, a chunk or a whole prefill.

Grid: one program per BLOCK_TILES records; every program repeats the prefix sum over all sequences.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted


@triton.jit
def _attention_tiles_kernel(
    cu_seqlens_q_ptr,
    seq_lens_ptr,
    num_seqs_ptr,
    out_ptr,
    max_tiles,
    TOKENS_PER_TILE: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    seq = tl.arange(0, BLOCK_SEQS)
    is_seq = seq < tl.load(num_seqs_ptr)
    q_start = tl.load(cu_seqlens_q_ptr + seq, mask=is_seq, other=0)
    q_end = tl.load(cu_seqlens_q_ptr + seq + 1, mask=is_seq, other=0)
    tiles_end = tl.cumsum((q_end - q_start + TOKENS_PER_TILE - 1) // TOKENS_PER_TILE, axis=0)

    tile = tl.program_id(0) * BLOCK_TILES + tl.arange(0, BLOCK_TILES)
    is_before = tiles_end[None, :] <= tile[:, None]  # [BLOCK_TILES, BLOCK_SEQS]
    tile_seq = tl.sum(is_before.to(tl.int32), axis=1)
    first_tile = tl.max(tl.where(is_before, tiles_end[None, :], 0), axis=1)
    is_live = tile < tl.max(tiles_end, axis=0)

    q_start = tl.load(cu_seqlens_q_ptr + tile_seq, mask=is_live, other=0)
    q_end = tl.load(cu_seqlens_q_ptr + tile_seq + 1, mask=is_live, other=0)
    seq_len = tl.load(seq_lens_ptr + tile_seq, mask=is_live, other=0)
    first_row = q_start + (tile - first_tile) * TOKENS_PER_TILE
    num_rows = tl.minimum(q_end - first_row, TOKENS_PER_TILE)

    record = out_ptr + tile * 4
    in_range = tile < max_tiles
    tl.store(record, tl.where(is_live, tile_seq, -1), mask=in_range)
    tl.store(record + 1, tl.where(is_live, first_row, 0), mask=in_range)
    tl.store(record + 2, tl.where(is_live, seq_len - q_end + first_row, 0), mask=in_range)
    tl.store(record + 3, tl.where(is_live, num_rows, 0), mask=in_range)


def choose_tokens_per_tile(
    max_num_tokens: int, group: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Query tokens of a tile for a step of this capacity: few for decode, many for prefill."""
    if interpreted() or max_num_tokens <= 256:
        rows = 16
    elif dtype == torch.float32:
        rows = 32 if head_dim <= 128 else 16
    else:
        rows = 128 if head_dim <= 128 else 64
    return max(1, rows // group)


def choose_key_block(dtype: torch.dtype) -> int:
    """BLOCK_N, which is part of a token's bits: it follows nothing but the dtype."""
    return 32 if dtype == torch.float32 and not interpreted() else 64


def max_attention_tiles(max_num_tokens: int, max_num_seqs: int, tokens_per_tile: int) -> int:
    """The most tiles a step of these capacities can need."""
    return min(max_num_tokens, max_num_tokens // tokens_per_tile + max_num_seqs)


def attention_tiles(
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    out: torch.Tensor,
    tokens_per_tile: int,
) -> torch.Tensor:
    """Write one record (sequence, first row of q, its position, number of tokens) a tile.

    Args:
        cu_seqlens_q: [S + 1] int32, packed query starts; read up to num_seqs.
        seq_lens: [S] int32, keys of each sequence, the new ones included.
        num_seqs: [1] int32, live sequences.
        out: [max_tiles, 4] int32; tiles that are not needed become (-1, 0, 0, 0). What does not
            fit is lost: size it with `max_attention_tiles`.
        tokens_per_tile: query tokens a tile holds at most.

    Returns:
        `out`.
    """
    max_num_seqs = seq_lens.shape[0]
    check_tensor("seq_lens", seq_lens, (None,), torch.int32)
    check_tensor("cu_seqlens_q", cu_seqlens_q, (max_num_seqs + 1,), torch.int32)
    check_tensor("num_seqs", num_seqs, (1,), torch.int32)
    check_tensor("out", out, (None, 4), torch.int32)
    if tokens_per_tile < 1:
        raise ValueError(f"tokens_per_tile must be at least 1, got {tokens_per_tile}")
    max_tiles = out.shape[0]
    if max_tiles == 0:
        return out
    block_tiles = triton.next_power_of_2(max_tiles) if interpreted() else 16
    _attention_tiles_kernel[(triton.cdiv(max_tiles, block_tiles),)](
        cu_seqlens_q,
        seq_lens,
        num_seqs,
        out,
        max_tiles,
        TOKENS_PER_TILE=tokens_per_tile,
        BLOCK_SEQS=triton.next_power_of_2(max_num_seqs),
        BLOCK_TILES=block_tiles,
    )
    return out


def attention_tiles_ref(
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    out: torch.Tensor,
    tokens_per_tile: int,
) -> torch.Tensor:
    """The same records, as a new tensor."""
    starts, lens = cu_seqlens_q.tolist(), seq_lens.tolist()
    records = [
        (seq, row, lens[seq] - starts[seq + 1] + row, min(tokens_per_tile, starts[seq + 1] - row))
        for seq in range(num_seqs.item())
        for row in range(starts[seq], starts[seq + 1], tokens_per_tile)
    ]
    unused = [(-1, 0, 0, 0)] * (out.shape[0] - len(records))
    return torch.tensor(records + unused, dtype=torch.int32, device=out.device).reshape(-1, 4)


def attention_tiles_inputs(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    lens: tuple[tuple[int, int], ...] = ((1, 17), (5, 5), (33, 129), (1, 1)),
    max_num_tokens: int = 64,
    max_num_seqs: int = 8,
    tokens_per_tile: int = 4,
) -> dict:
    """Arguments for sequences of `lens` = ((query tokens, keys), ...); dtype is not used."""
    unused = max_num_seqs - len(lens)
    q_lens = torch.tensor([q_len for q_len, _ in lens], dtype=torch.int32)
    poison = torch.iinfo(torch.int32).max
    cu_seqlens_q = [0, *q_lens.cumsum(0).tolist()] + [poison] * unused
    seq_lens = [seq_len for _, seq_len in lens] + [poison] * unused
    max_tiles = max_attention_tiles(max_num_tokens, max_num_seqs, tokens_per_tile)
    return {
        "cu_seqlens_q": torch.tensor(cu_seqlens_q, dtype=torch.int32, device=device),
        "seq_lens": torch.tensor(seq_lens, dtype=torch.int32, device=device),
        "num_seqs": torch.tensor([len(lens)], dtype=torch.int32, device=device),
        "out": torch.full((max_tiles, 4), poison, dtype=torch.int32, device=device),
        "tokens_per_tile": tokens_per_tile,
    }
