"""The first kernel of sampling: what the others have to know of each block of a row of logits.

Of a block of BLOCK_V tokens: the largest raw logit and its softmax sum; for a row that is drawn by
its best token, that token; for other rows the largest logit to draw from and the sum of
exp((logit - largest) / temperature), and either the same sum of each strand (rows without filters,
plain_draw.py) or the largest logit of each chunk of CHUNK tokens (filtered_draw.py).

Grid [blocks, B / ROWS], a program a block: many small programs on a multiprocessor, so that some
load while others compute. What a thread holds of a block is one strand: it sums its own tokens
before any exchange with other threads.
"""

import triton
import triton.language as tl

from paged.kernels.fast_math import LOG2_E, fast_exp2
from paged.kernels.filtered_draw import load_filters
from paged.kernels.floor_search import LOWEST
from paged.kernels.logit_process import process_logits
from paged.kernels.philox import gumbel_noise
from paged.kernels.plain_draw import strand_masses
from paged.kernels.sampling_rows import column, load_positions, load_rows
from paged.kernels.sampling_tiles import NUM_PARTIALS

# What is left of a block, all float32 (ids by their bits).
RAW_PEAK, RAW_SUM, BEST, BEST_ID, PEAK, MASS = (
    tl.constexpr(field) for field in range(NUM_PARTIALS - 1)
)


@triton.jit(do_not_specialize=["max_rows"])
def _sample_blocks_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
    position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, strands_ptr,
    chunk_peaks_ptr, max_rows, vocab_size,
    score: tl.constexpr, GREEDY: tl.constexpr, BY_STRANDS: tl.constexpr,
    NUM_STOP_IDS: tl.constexpr, NUM_PARTIALS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr, STRAND: tl.constexpr, CHUNK: tl.constexpr,
    NVIDIA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    block, num_blocks = tl.program_id(0), tl.num_programs(0)
    first = tl.program_id(1) * ROWS
    rows, live, slots = load_rows(slots_ptr, num_rows_ptr, max_rows, first, ROWS, True)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    ids = block * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    row_ptr = logits_ptr + column(rows.to(tl.int64), ROWS) * vocab_size
    inside = (ids < vocab_size) & column(live, ROWS)
    raw = tl.load(row_ptr + ids, mask=inside, other=float("-inf"))
    positions = load_positions(position_ptr, offsets_ptr, slots, rows, live, False)
    too_short = positions < tl.load(min_len_ptr + slots)
    random, temperature, count, share, ratio = load_filters(
        slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, GREEDY, False
    )
    filtered = live & ((count > 0) | (share < 1) | (ratio > 0))
    plain = live & random & (filtered == 0)
    by_token = live & (random == 0) if BY_STRANDS else live & (filtered == 0)
    fields = partials_ptr + rows * NUM_PARTIALS * num_blocks + block

    raw_peak = tl.maximum(tl.max(raw, axis=1), LOWEST)  # so that -inf - raw_peak is no NaN
    # NaN or +inf anywhere makes the sum NaN; -inf everywhere leaves it 0.
    weights = fast_exp2((raw - column(raw_peak, ROWS)) * LOG2_E, NVIDIA)
    masses = strand_masses(weights, ROWS, BLOCK_V, STRAND)
    raw_sum = tl.sum(masses, axis=1)
    tl.store(fields + RAW_PEAK * num_blocks, raw_peak, mask=live)
    tl.store(fields + RAW_SUM * num_blocks, raw_sum, mask=live)

    logits = process_logits(raw, ids, slots, too_short, stop_ids_ptr, NUM_STOP_IDS)
    peak = raw_peak
    if tl.max(too_short.to(tl.int32), axis=0) > 0:
        peak = tl.maximum(tl.max(logits, axis=1), LOWEST)
    if not GREEDY and tl.max((live & (by_token == 0)).to(tl.int32), axis=0) > 0:
        mass = raw_sum
        # At temperature 1 the weights of the raw logits are those to draw with.
        if tl.max((too_short | (temperature != 1)).to(tl.int32), axis=0) > 0:
            heat = column(1 / temperature * LOG2_E, ROWS)
            weights = fast_exp2((logits - column(peak, ROWS)) * heat, NVIDIA)
            masses = strand_masses(weights, ROWS, BLOCK_V, STRAND)
            mass = tl.sum(masses, axis=1)
        tl.store(fields + PEAK * num_blocks, peak, mask=live)
        tl.store(fields + MASS * num_blocks, mass, mask=live)
        if BY_STRANDS and tl.max(plain.to(tl.int32), axis=0) > 0:
            strands = parts_of(rows, num_blocks, block, ROWS, BLOCK_V // STRAND)
            tl.store(strands_ptr + strands, masses, mask=column(plain, ROWS))
        if tl.max(filtered.to(tl.int32), axis=0) > 0:
            peaks = tl.max(tl.reshape(logits, [ROWS, BLOCK_V // CHUNK, CHUNK]), axis=2)
            chunks = parts_of(rows, num_blocks, block, ROWS, BLOCK_V // CHUNK)
            tl.store(chunk_peaks_ptr + chunks, peaks, mask=column(filtered, ROWS))
    if tl.max(by_token.to(tl.int32), axis=0) > 0:
        best = peak
        scores = logits
        if not GREEDY and not BY_STRANDS:
            noise = tl.full([ROWS, BLOCK_V], 0.0, tl.float32)
            if tl.max(plain.to(tl.int32), axis=0) > 0:
                groups = block * (BLOCK_V // 4) + tl.arange(0, BLOCK_V // 4)[None, :]
                seeds = tl.load(seed_ptr + slots)
                noise = gumbel_noise(seeds, positions, groups, ROWS, BLOCK_V, NVIDIA)
                noise = tl.where(column(random, ROWS), noise, 0.0)
            scores = score(logits, noise, column(temperature, ROWS))
            possible = (logits >= LOWEST) & (scores > float("-inf"))
            scores = tl.where(possible, scores, float("-inf"))
            best = tl.maximum(tl.max(scores, axis=1), LOWEST)
        is_best = scores == column(best, ROWS)
        best_ids = tl.min(tl.where(is_best, ids, vocab_size), axis=1)
        tl.store(fields + BEST * num_blocks, best, mask=live)
        tl.store(fields + BEST_ID * num_blocks, best_ids.to(tl.float32, bitcast=True), mask=live)


@triton.jit
def parts_of(rows, num_blocks, block, ROWS: tl.constexpr, NUM: tl.constexpr):
    """Offsets [ROWS, NUM] of the NUM parts of a block of each row, in memory by row."""
    return column((rows * num_blocks + block) * NUM, ROWS) + tl.arange(0, NUM)[None, :]


@triton.jit
def load_field(
    partials_ptr, rows, max_rows, num_blocks, FIELD: tl.constexpr, OTHER: tl.constexpr,
    NUM_PARTIALS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A field of the blocks of each row: [ROWS, BLOCKS], OTHER where there is no block."""
    blocks = tl.arange(0, BLOCKS)[None, :]
    there = (blocks < num_blocks) & column(rows < max_rows, ROWS)
    offsets = column((rows * NUM_PARTIALS + FIELD) * num_blocks, ROWS) + blocks
    return tl.load(partials_ptr + offsets, mask=there, other=OTHER)
