"""Cut the ragged queries of a step into tiles, and long tiles into items, on the device.

Sequence i, with q_i = cu_seqlens_q[i + 1] - cu_seqlens_q[i] query tokens, gets
cdiv(q_i, tokens_per_tile) consecutive tiles. The keys of a tile are cut at multiples of split_size;
its splits go to cdiv(splits, per_item) items, in order and evenly. per_item is all splits of the
step over `spread`, rounded up: with few sequences each split has an item of its own, with many a
whole sequence has, and a context much longer than the others does not hold them up.
Inclusive prefix sums over sequences tell item i its sequence: the number of sums that are <= i.

Grid: one program per BLOCK_ITEMS records; every program repeats the prefix sums.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted, pdl

ITEM_FIELDS = 8  # sequence, first row, its position, tokens | first split, end split, items, row


@triton.jit(do_not_specialize=["max_items", "num_rows", "spread", "least_tokens", "most_tokens"])
def _attention_items_kernel(
    cu_seqlens_q_ptr,
    seq_lens_ptr,
    num_seqs_ptr,
    out_ptr,
    max_items,
    num_rows,
    spread,
    least_tokens,
    most_tokens,
    FIELDS: tl.constexpr,
    TOKENS_PER_TILE: tl.constexpr,
    SPLIT_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    PARALLEL: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    seq = tl.arange(0, BLOCK_SEQS)
    is_seq = seq < tl.load(num_seqs_ptr, cache_modifier=".cg")
    q_start = tl.load(cu_seqlens_q_ptr + seq, mask=is_seq, other=0, cache_modifier=".cg")
    q_end = tl.load(cu_seqlens_q_ptr + seq + 1, mask=is_seq, other=0, cache_modifier=".cg")
    tokens = q_end - q_start
    is_ours = (tokens >= least_tokens) & (tokens <= most_tokens)
    tiles = tl.where(is_ours, (tokens + TOKENS_PER_TILE - 1) // TOKENS_PER_TILE, 0)
    items = tl.full([BLOCK_SEQS], 1, tl.int32)
    first_slot = tl.full([BLOCK_SEQS], 0, tl.int32)
    splits = tl.full([BLOCK_SEQS], 1, tl.int32)
    if PARALLEL:
        seq_len = tl.load(seq_lens_ptr + seq, mask=is_seq, other=0, cache_modifier=".cg")
        first_key = tl.maximum(seq_len - tokens - WINDOW + 1, 0) if WINDOW > 0 else 0
        splits = (seq_len + SPLIT_SIZE - 1) // SPLIT_SIZE - first_key // SPLIT_SIZE
        splits = tl.maximum(splits, 1)
        per_item = tl.maximum((tl.sum(tiles * splits, axis=0) + spread - 1) // spread, 1)
        items = (splits + per_item - 1) // per_item
        slots = tl.where(is_ours & (items > 1), tokens * splits, 0).to(tl.int64)
        slots_end = tl.cumsum(slots, axis=0)
        items = tl.where(slots_end <= num_rows, items, 1)
        first_slot = tl.minimum(slots_end - slots, num_rows).to(tl.int32)
    items_end = tl.cumsum(tiles * items, axis=0)

    item = tl.program_id(0) * BLOCK_ITEMS + tl.arange(0, BLOCK_ITEMS)
    is_before = items_end[None, :] <= item[:, None]  # [BLOCK_ITEMS, BLOCK_SEQS]
    item_seq = tl.sum(is_before.to(tl.int32), axis=1)
    first_item = tl.max(tl.where(is_before, items_end[None, :], 0), axis=1)
    is_live = item < tl.max(items_end, axis=0)
    is_mine = seq[None, :] == item_seq[:, None]
    per_tile = tl.maximum(tl.sum(tl.where(is_mine, items[None, :], 0), axis=1), 1)
    slot = tl.sum(tl.where(is_mine, first_slot[None, :], 0), axis=1)
    seq_splits = tl.sum(tl.where(is_mine, splits[None, :], 0), axis=1)

    q_start = tl.load(cu_seqlens_q_ptr + item_seq, mask=is_live, other=0, cache_modifier=".cg")
    q_end = tl.load(cu_seqlens_q_ptr + item_seq + 1, mask=is_live, other=0, cache_modifier=".cg")
    seq_len = tl.load(seq_lens_ptr + item_seq, mask=is_live, other=0, cache_modifier=".cg")
    tile = (item - first_item) // per_tile
    part = (item - first_item) % per_tile
    first_row = q_start + tile * TOKENS_PER_TILE
    num_tokens = tl.minimum(q_end - first_row, TOKENS_PER_TILE)
    position = seq_len - q_end + first_row
    first_key = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else position * 0
    first_split = first_key // SPLIT_SIZE
    num_splits = (position + num_tokens + SPLIT_SIZE - 1) // SPLIT_SIZE - first_split

    if PDL:
        tl.extra.cuda.gdc_wait()  # all that was read is the plan, so this kernel's time is hidden
    record = out_ptr + item * FIELDS
    in_range = item < max_items
    tl.store(record, tl.where(is_live, item_seq, -1), mask=in_range)
    tl.store(record + 1, tl.where(is_live, first_row, 0), mask=in_range)
    tl.store(record + 2, tl.where(is_live, position, 0), mask=in_range)
    tl.store(record + 3, tl.where(is_live, num_tokens, 0), mask=in_range)
    begin = first_split + part * num_splits // per_tile
    end = first_split + (part + 1) * num_splits // per_tile
    tl.store(record + 4, tl.where(is_live, begin, 0), mask=in_range)
    tl.store(record + 5, tl.where(is_live, end, 0), mask=in_range)
    tl.store(record + 6, tl.where(is_live, per_tile, 0), mask=in_range)
    slot += tile * TOKENS_PER_TILE * seq_splits
    tl.store(record + 7, tl.where(is_live & (per_tile > 1), slot, 0), mask=in_range)


def max_attention_tiles(max_num_tokens: int, max_num_seqs: int, tokens_per_tile: int) -> int:
    """The most tiles a step of these capacities can need."""
    return min(max_num_tokens, max_num_tokens // tokens_per_tile + max_num_seqs)


def attention_items(
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    out: torch.Tensor,
    tokens_per_tile: int,
    split_size: int,
    sliding_window: int | None = None,
    num_rows: int = 0,
    spread: int = 1,
    least_tokens: int = 1,
    most_tokens: int = 2**31 - 1,
) -> torch.Tensor:
    """Write the records of the step's items.

    A record is (sequence, first row of q, its position, number of tokens; first split, end split,
    items of the tile, first row of its partials).

    Args:
        cu_seqlens_q: [S + 1] int32, packed query starts; read up to num_seqs.
        seq_lens: [S] int32, keys of each sequence, the new ones included.
        num_seqs: [1] int32, live sequences.
        out: [max_items, 8] int32; items that are not needed become (-1, 0, 0, 0, 0, 0, 0, 0). Items
            that do not fit are lost: at least `max_attention_tiles` records, and `spread` more
            with `num_rows`.
        tokens_per_tile: query tokens a tile holds at most.
        split_size: keys a split.
        sliding_window: a query sees this many keys, its own included.
        num_rows: rows of the workspace, one a (token, split) of a tile in several items; a
            sequence that does not fit keeps one item a tile. 0: so do all.
        spread: items that the splits of a step should fill, with `num_rows`.
        least_tokens, most_tokens: sequences with fewer or more query tokens get no item.

    Returns:
        `out`.
    """
    max_num_seqs = seq_lens.shape[0]
    check_tensor("seq_lens", seq_lens, (None,), torch.int32)
    check_tensor("cu_seqlens_q", cu_seqlens_q, (max_num_seqs + 1,), torch.int32)
    check_tensor("num_seqs", num_seqs, (1,), torch.int32)
    check_tensor("out", out, (None, ITEM_FIELDS), torch.int32)
    if tokens_per_tile < 1:
        raise ValueError(f"tokens_per_tile must be at least 1, got {tokens_per_tile}")
    max_items = out.shape[0]
    if max_items == 0:
        return out
    block_items = triton.next_power_of_2(max_items) if interpreted() else 16
    _attention_items_kernel[(triton.cdiv(max_items, block_items),)](
        cu_seqlens_q,
        seq_lens,
        num_seqs,
        out,
        max_items,
        num_rows,
        spread,
        least_tokens,
        most_tokens,
        FIELDS=ITEM_FIELDS,
        TOKENS_PER_TILE=tokens_per_tile,
        SPLIT_SIZE=split_size,
        WINDOW=sliding_window or 0,
        PARALLEL=num_rows > 0,
        BLOCK_SEQS=triton.next_power_of_2(max_num_seqs),
        BLOCK_ITEMS=block_items,
        **pdl(),
    )
    return out


def attention_items_ref(
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    out: torch.Tensor,
    tokens_per_tile: int,
    split_size: int,
    sliding_window: int | None = None,
    num_rows: int = 0,
    spread: int = 1,
    least_tokens: int = 1,
    most_tokens: int = 2**31 - 1,
) -> torch.Tensor:
    """The same records, as a new tensor."""
    starts, lens = cu_seqlens_q.tolist(), seq_lens.tolist()

    def splits_of(position: int, tokens: int) -> tuple[int, int]:
        first_key = max(0, position - sliding_window + 1) if sliding_window else 0
        return first_key // split_size, -(-(position + tokens) // split_size)

    ours = []
    for seq in range(num_seqs.item()):
        tokens = starts[seq + 1] - starts[seq]
        if least_tokens <= tokens <= most_tokens:
            first, end = splits_of(lens[seq] - tokens, tokens)
            tiles = range(starts[seq], starts[seq + 1], tokens_per_tile)
            ours.append((seq, tokens, tiles, max(1, end - first)))
    per_item = max(1, -(-sum(len(tiles) * splits for *_, tiles, splits in ours) // spread))
    records, used = [], 0
    for seq, tokens, tiles, splits in ours:
        items = -(-splits // per_item) if num_rows else 1
        slot = used
        used += tokens * splits if items > 1 else 0
        if used > num_rows:
            items = 1
        for row in tiles:
            position = lens[seq] - starts[seq + 1] + row
            num_tokens = min(tokens_per_tile, starts[seq + 1] - row)
            first, end = splits_of(position, num_tokens)
            for part in range(items):
                begin = first + part * (end - first) // items
                to = first + (part + 1) * (end - first) // items
                place = slot + (row - starts[seq]) * splits if items > 1 else 0
                records.append((seq, row, position, num_tokens, begin, to, items, place))
    unused = [(-1, *[0] * 7)] * (out.shape[0] - len(records))
    return torch.tensor(records + unused, dtype=torch.int32, device=out.device).reshape(-1, 8)


def attention_items_inputs(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    lens: tuple[tuple[int, int], ...] = ((1, 17), (5, 5), (33, 329), (1, 1)),
    max_items: int = 24,
    max_num_seqs: int = 8,
    tokens_per_tile: int = 4,
    split_size: int = 128,
    **passed_on: int | None,
) -> dict:
    """Arguments for sequences of `lens` = ((query tokens, keys), ...); dtype is not used."""
    unused = max_num_seqs - len(lens)
    q_lens = torch.tensor([q_len for q_len, _ in lens], dtype=torch.int32)
    poison = torch.iinfo(torch.int32).max
    cu_seqlens_q = [0, *q_lens.cumsum(0).tolist()] + [poison] * unused
    seq_lens = [seq_len for _, seq_len in lens] + [poison] * unused
    return {
        "cu_seqlens_q": torch.tensor(cu_seqlens_q, dtype=torch.int32, device=device),
        "seq_lens": torch.tensor(seq_lens, dtype=torch.int32, device=device),
        "num_seqs": torch.tensor([len(lens)], dtype=torch.int32, device=device),
        "out": torch.full((max_items, ITEM_FIELDS), poison, dtype=torch.int32, device=device),
        "tokens_per_tile": tokens_per_tile,
        "split_size": split_size,
        **passed_on,
    }


ATTENTION_ITEMS_VARIANTS: tuple[dict, ...] = (
    {"num_rows": 256, "spread": 8, "sliding_window": 200},
)
