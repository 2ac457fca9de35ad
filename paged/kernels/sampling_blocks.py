"""The first kernel of sampling: what the second has to know of each block of a row of logits.

Of a block of BLOCK_V tokens: the largest raw logit and its softmax sum; for a row that is drawn by
its best token, that token; for other rows the largest logit to draw from and the sum of
exp((logit - largest) / temperature), and either the same sum of each strand (rows without filters,
plain_draw.py) or the largest logit of each chunk of CHUNK tokens (filtered_draw.py).

Item i of num_rows / ROWS * blocks is block i % blocks of rows i // blocks * ROWS and on. Grid
[programs]: program p takes items p, p + programs, ..., with the logits of its next item on their
way while it works on one, so that memory is never idle. What an item leaves does not depend on who
takes it.
"""

import triton
import triton.language as tl

from paged.kernels.fast_math import LOG2_E, fast_exp2
from paged.kernels.filtered_draw import load_filters
from paged.kernels.floor_search import LOWEST
from paged.kernels.logit_process import process_logits
from paged.kernels.philox import TOKENS_LEVEL, gumbel_noise
from paged.kernels.plain_draw import strand_masses
from paged.kernels.sampling_rows import load_positions
from paged.kernels.sampling_tiles import NUM_PARTIALS

# What is left of a block, all float32 (ids and flags by their bits).
RAW_PEAK, RAW_SUM, BEST, BEST_ID, PEAK, MASS, FILTERED = (
    tl.constexpr(field) for field in range(NUM_PARTIALS)
)


@triton.jit
def _load_item(
    logits_ptr, item, num_rows, num_blocks, vocab_size, ROWS: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Raw logits [ROWS, BLOCK_V], -inf outside."""
    rows = (item // num_blocks) * ROWS + tl.arange(0, ROWS)
    ids = (item % num_blocks) * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    inside = (ids < vocab_size) & (rows < num_rows)[:, None]
    row_ptrs = logits_ptr + rows.to(tl.int64) * vocab_size
    return tl.load(row_ptrs[:, None] + ids, mask=inside, other=float("-inf"))


@triton.jit(do_not_specialize=["max_rows"])
def _sample_blocks_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
    position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, strands_ptr,
    chunk_peaks_ptr, max_rows, vocab_size, num_blocks,
    score: tl.constexpr, GREEDY: tl.constexpr, BY_STRANDS: tl.constexpr,
    NUM_STOP_IDS: tl.constexpr, NUM_PARTIALS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr, STRAND: tl.constexpr, CHUNK: tl.constexpr, AHEAD: tl.constexpr,
    NVIDIA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    num_rows = tl.minimum(tl.load(num_rows_ptr), max_rows)
    num_items = tl.cdiv(num_rows, ROWS) * num_blocks
    first = tl.program_id(0)
    if AHEAD:
        ahead = _load_item(logits_ptr, first, num_rows, num_blocks, vocab_size, ROWS, BLOCK_V)
    for item in range(first, num_items, tl.num_programs(0)):
        if AHEAD:
            raw = ahead
            next_item = item + tl.num_programs(0)
            ahead = _load_item(
                logits_ptr, next_item, num_rows, num_blocks, vocab_size, ROWS, BLOCK_V
            )
        else:
            raw = _load_item(logits_ptr, item, num_rows, num_blocks, vocab_size, ROWS, BLOCK_V)
        block = item % num_blocks
        rows = (item // num_blocks) * ROWS + tl.arange(0, ROWS)
        live = rows < num_rows
        slots = tl.load(slots_ptr + rows, mask=live, other=0)
        positions = load_positions(position_ptr, offsets_ptr, slots, rows, live)
        too_short = positions < tl.load(min_len_ptr + slots)
        random, temperature, count, share, ratio = load_filters(
            slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, GREEDY
        )
        filtered = live & ((count > 0) | (share < 1) | (ratio > 0))
        plain = live & random & (filtered == 0)
        by_token = live & (random == 0) if BY_STRANDS else live & (filtered == 0)
        fields = partials_ptr + rows * NUM_PARTIALS * num_blocks + block

        raw_peak = tl.maximum(tl.max(raw, axis=1), LOWEST)  # so that -inf - raw_peak is no NaN
        # NaN or +inf anywhere makes the sum NaN; -inf everywhere leaves it 0.
        raw_sum = tl.sum(fast_exp2((raw - raw_peak[:, None]) * LOG2_E, NVIDIA), axis=1)
        tl.store(fields + RAW_PEAK * num_blocks, raw_peak, mask=live)
        tl.store(fields + RAW_SUM * num_blocks, raw_sum, mask=live)
        flags = filtered.to(tl.int32).to(tl.float32, bitcast=True)
        tl.store(fields + FILTERED * num_blocks, flags, mask=live)

        logits = process_logits(raw, ids_of(block, BLOCK_V), slots, too_short, stop_ids_ptr,
                                NUM_STOP_IDS)  # fmt: skip
        if not GREEDY and tl.max((by_token == 0).to(tl.int32), axis=0) > 0:
            peak = raw_peak
            if tl.max(too_short.to(tl.int32), axis=0) > 0:
                peak = tl.maximum(tl.max(logits, axis=1), LOWEST)
            heat = (1 / temperature * LOG2_E)[:, None]
            weights = fast_exp2((logits - peak[:, None]) * heat, NVIDIA)
            masses = strand_masses(weights, ROWS, BLOCK_V, STRAND)
            tl.store(fields + PEAK * num_blocks, peak, mask=live)
            tl.store(fields + MASS * num_blocks, tl.sum(masses, axis=1), mask=live)
            if BY_STRANDS and tl.max(plain.to(tl.int32), axis=0) > 0:
                strands = item_parts(rows, num_blocks, block, BLOCK_V // STRAND)
                tl.store(strands_ptr + strands, masses, mask=plain[:, None])
            if tl.max(filtered.to(tl.int32), axis=0) > 0:
                peaks = tl.max(tl.reshape(logits, [ROWS, BLOCK_V // CHUNK, CHUNK]), axis=2)
                chunks = item_parts(rows, num_blocks, block, BLOCK_V // CHUNK)
                tl.store(chunk_peaks_ptr + chunks, peaks, mask=filtered[:, None])
        if tl.max(by_token.to(tl.int32), axis=0) > 0:
            noise = tl.full([ROWS, BLOCK_V], 0.0, tl.float32)
            if not GREEDY and not BY_STRANDS and tl.max(plain.to(tl.int32), axis=0) > 0:
                groups = block * (BLOCK_V // 4) + tl.arange(0, BLOCK_V // 4)[None, :]
                seeds = tl.load(seed_ptr + slots)
                noise = gumbel_noise(seeds, positions, groups, TOKENS_LEVEL, ROWS, BLOCK_V, NVIDIA)
                noise = tl.where(random[:, None], noise, 0.0)
            scores = score(logits, noise, temperature[:, None])
            possible = (logits >= LOWEST) & (scores > float("-inf"))
            best, best_at = tl.max(
                tl.where(possible, scores, float("-inf")), axis=1, return_indices=True
            )
            best_ids = (block * BLOCK_V + best_at).to(tl.int32)
            tl.store(fields + BEST * num_blocks, best, mask=live)
            best_bits = best_ids.to(tl.float32, bitcast=True)
            tl.store(fields + BEST_ID * num_blocks, best_bits, mask=live)


@triton.jit
def ids_of(block, BLOCK_V: tl.constexpr):
    """Token ids [1, BLOCK_V] of a block."""
    return block * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]


@triton.jit
def item_parts(rows, num_blocks, block, NUM: tl.constexpr):
    """Offsets [ROWS, NUM] of the NUM parts of a block of each row, in memory by row."""
    return (rows[:, None] * num_blocks + block) * NUM + tl.arange(0, NUM)[None, :]
