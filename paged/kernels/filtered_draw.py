"""Draw a token of one row through its filters, from a few candidates.

The vocabulary is cut into chunks of CHUNK tokens. The candidates are the tokens from some logit up,
chosen so that at most PICKED chunks hold them all: only those chunks are read. Every filter keeps
the tokens from some floor up, so when that floor is a candidate, the candidates hold all that is
kept and the rest of the row need not be looked at. That the floor is a candidate is known for
certain: the count of the candidates reaches top_k, or their mass top_p of the whole, or min_p lies
above the lowest of them. The few rows where it is not (a flat distribution with a large top_p) are
left to spread_draw.py.

In these functions rows are [ROWS], and a row with `wanted` false costs nothing but its lanes.
"""

import triton
import triton.language as tl

from paged.kernels.floor_search import LOWEST, raise_floor
from paged.kernels.logit_process import process_logits
from paged.kernels.philox import gumbel_noise
from paged.kernels.sampling_rows import column

GREEDY_BELOW = tl.constexpr(1e-5)


@triton.jit
def load_filters(
    slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, GREEDY: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """(random, temperature, count, share, ratio) of each slot; AHEAD of `gdc_wait` past L1.

    `random` is false for greedy rows, whose temperature is then 1 and whose filters are off. A
    filter that is off has count 0, share 1 or ratio 0.
    """
    temperature = tl.full(slots.shape, 1.0, tl.float32)
    random = temperature < 0
    count = tl.full(slots.shape, 0, tl.int32)
    share, ratio = temperature, temperature * 0
    if not GREEDY:
        CACHE: tl.constexpr = ".cg" if AHEAD else ""
        given = tl.load(temperature_ptr + slots, cache_modifier=CACHE)
        top_k = tl.load(top_k_ptr + slots, cache_modifier=CACHE)
        top_p = tl.load(top_p_ptr + slots, cache_modifier=CACHE)
        min_p = tl.load(min_p_ptr + slots, cache_modifier=CACHE)
        random = given >= GREEDY_BELOW
        temperature = tl.where(random, given, 1.0)
        count = tl.where(random & (top_k > 0) & (top_k < vocab_size), top_k, 0)
        share = tl.where(random & (top_p < 1), top_p, 1.0)
        ratio = tl.where(random & (min_p > 0), min_p, 0.0)
    return random, temperature, count, share, ratio


@triton.jit
def _candidate_floor(chunk_peaks, peak, wanted, ROWS: tl.constexpr, PICKED: tl.constexpr):
    """The logit from which tokens are candidates, with the largest logit of each chunk [ROWS, C].

    At most PICKED chunks reach it, and if it can be more than half of that. LOWEST if all fit, +inf
    if too many chunks share the largest logit.
    """
    finite = chunk_peaks >= LOWEST
    all_fit = tl.sum(finite.to(tl.int32), axis=1) <= PICKED
    low = tl.min(tl.where(finite, chunk_peaks, float("inf")), axis=1)  # too many reach it
    high = peak
    at_high = tl.sum((chunk_peaks >= column(high, ROWS)).to(tl.int32), axis=1)
    fits = at_high <= PICKED
    searching = wanted & fits & (all_fit == 0) & (2 * at_high <= PICKED)
    while tl.max(searching.to(tl.int32), axis=0) > 0:
        middle = low * 0.5 + high * 0.5
        between = (low < middle) & (middle < high)
        reached = tl.sum((chunk_peaks >= column(middle, ROWS)).to(tl.int32), axis=1)
        searching = searching & between
        low = tl.where(searching & (reached > PICKED), middle, low)
        high = tl.where(searching & (reached <= PICKED), middle, high)
        at_high = tl.where(searching & (reached <= PICKED), reached, at_high)
        searching = searching & (2 * at_high <= PICKED)
    return tl.where(all_fit, LOWEST, tl.where(fits, high, float("inf")))


@triton.jit
def draw_from_candidates(
    logits_ptr, rows, vocab_size, slots, too_short, stop_ids_ptr, chunk_peaks_ptr, num_chunks,
    picked_ptr, temperature, count, share, ratio, peak, whole, seeds, positions, wanted,
    score: tl.constexpr, NUM_STOP_IDS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr, PICKED: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """(tokens, known): the draw of each row, where it is known to be that of the whole row.

    chunk_peaks_ptr and picked_ptr point to num_chunks float32 and PICKED int32 of scratch for each
    row of logits; peak is the row's largest logit and `whole` the sum of its
    exp((logit - peak) / temperature).
    """
    lanes = tl.arange(0, PICKED)[None, :]
    if CHUNKS <= PICKED:
        lowest = tl.full([ROWS], LOWEST, tl.float32)
        picked = tl.zeros([ROWS, PICKED], tl.int32) + lanes
    else:
        chunks = tl.arange(0, CHUNKS)[None, :]
        chunk_peaks = tl.load(
            chunk_peaks_ptr + column(rows * num_chunks, ROWS) + chunks,
            mask=(chunks < num_chunks) & column(wanted, ROWS),
            other=float("-inf"),
        )
        lowest = _candidate_floor(chunk_peaks, peak, wanted, ROWS, PICKED)
        reaching = (chunk_peaks >= column(lowest, ROWS)).to(tl.int32)
        places = tl.cumsum(reaching, axis=1) - 1
        picked_ptr += column(rows * PICKED, ROWS)
        tl.store(picked_ptr + places, chunks + 0 * reaching, mask=reaching > 0)
        tl.debug_barrier()  # other threads read what these wrote
        num_picked = column(tl.sum(reaching, axis=1), ROWS)
        picked = tl.load(picked_ptr + lanes, mask=lanes < num_picked, other=num_chunks)

    inner = tl.arange(0, CHUNK)[None, None, :]
    ids = tl.reshape(picked[:, :, None] * CHUNK + inner, [ROWS, PICKED * CHUNK])
    raw = tl.load(
        logits_ptr + column(rows.to(tl.int64), ROWS) * vocab_size + ids,
        mask=(ids < vocab_size) & column(wanted, ROWS),
        other=float("-inf"),
    )
    logits = process_logits(raw, ids, slots, too_short, stop_ids_ptr, NUM_STOP_IDS)
    logits = tl.where(logits >= column(lowest, ROWS), logits, float("-inf"))
    weights = tl.exp((logits - column(peak, ROWS)) * column(1 / temperature, ROWS))

    by_ratio, by_count, by_share = ratio > 0, count > 0, share < 1
    floor = tl.where(by_ratio, peak + temperature * tl.log(tl.where(by_ratio, ratio, 1.0)), lowest)
    complete = (lowest == LOWEST) | (by_ratio & (floor >= lowest))
    floor = tl.maximum(floor, lowest)
    ones = tl.where(logits >= column(floor, ROWS), 1.0, 0.0)
    enough = by_count & (tl.sum(ones, axis=1) >= count)
    floor = raise_floor(logits, ones, peak, floor, wanted & enough, count.to(tl.float32), ROWS)
    complete = complete | enough
    weights = tl.where(logits >= column(floor, ROWS), weights, 0.0)
    mass = tl.sum(weights, axis=1)
    needed = share * tl.where(complete, mass, whole)
    # Where only top-p filters, the whole row is kept before it, and its mass is known.
    known = complete | (by_share & (mass >= needed) & (by_count == 0) & (by_ratio == 0))
    floor = raise_floor(logits, weights, peak, floor, wanted & known & by_share, needed, ROWS)

    four = tl.arange(0, CHUNK // 4)[None, None, :]
    groups = tl.reshape(picked[:, :, None] * (CHUNK // 4) + four, [ROWS, PICKED * CHUNK // 4])
    noise = gumbel_noise(seeds, positions, groups, ROWS, PICKED * CHUNK, NVIDIA)
    scores = score(logits, noise, column(temperature, ROWS))
    kept = (logits >= column(floor, ROWS)) & (scores > float("-inf"))
    scores = tl.where(kept, scores, float("-inf"))
    best = column(tl.max(scores, axis=1), ROWS)
    is_best = (scores == best) & (best > float("-inf"))
    return tl.min(tl.where(is_best, ids, vocab_size), axis=1), known
