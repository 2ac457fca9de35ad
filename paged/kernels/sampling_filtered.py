"""The third kernel of sampling: rows with filters, each from a few candidates (filtered_draw.py),
or by all programs together where these are not enough (spread_draw.py).

Grid [programs], PROGRAMS a multiprocessor, all on the device at once, as the barriers between them
need it: what runs beside this kernel ends without it. Program p takes rows p * ROWS and on, then
those `programs` further. A launch without such rows returns at once. Everything contiguous.
"""

import triton
import triton.language as tl

from paged.kernels.filtered_draw import draw_from_candidates, load_filters
from paged.kernels.floor_search import LOWEST
from paged.kernels.launch import on_nvidia
from paged.kernels.sampling_blocks import MASS, PEAK, RAW_PEAK, RAW_SUM, load_field
from paged.kernels.sampling_rows import column, load_positions, load_rows
from paged.kernels.spread_draw import draw_spread_rows, leave_row

PROGRAMS = 1  # a multiprocessor


def filtered_options() -> dict[str, int]:
    """Launch options: 512 threads of 112 registers. The second kernel's programs then fit beside
    them, so that this kernel may be waiting before that one ends."""
    return {"num_warps": 16, **({"maxnreg": 112} if on_nvidia() else {})}


@triton.jit
def _draw_group(
    logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
    position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, chunk_peaks_ptr, picked_ptr,
    states_ptr, out_tokens_ptr, out_logprobs_ptr, first, max_rows, vocab_size, num_blocks,
    score: tl.constexpr, NUM_STOP_IDS: tl.constexpr, NUM_PARTIALS: tl.constexpr,
    NUM_STATES: tl.constexpr, ROWS: tl.constexpr, BLOCK_V: tl.constexpr, CHUNK: tl.constexpr,
    BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, PICKED: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """Draw those of ROWS rows that have filters, or leave them for all programs."""
    rows, live, slots = load_rows(slots_ptr, num_rows_ptr, max_rows, first, ROWS, False)
    _random, temperature, count, share, ratio = load_filters(
        slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, False, False
    )
    filtered = live & ((count > 0) | (share < 1) | (ratio > 0))
    if tl.max(filtered.to(tl.int32), axis=0) > 0:
        positions = load_positions(position_ptr, offsets_ptr, slots, rows, live, False)
        too_short = positions < tl.load(min_len_ptr + slots)
        seeds = tl.load(seed_ptr + slots)
        raw_peaks = load_field(
            partials_ptr, rows, max_rows, num_blocks, RAW_PEAK, LOWEST, NUM_PARTIALS, ROWS, BLOCKS
        )
        raw_sums = load_field(
            partials_ptr, rows, max_rows, num_blocks, RAW_SUM, 0.0, NUM_PARTIALS, ROWS, BLOCKS
        )
        peaks = load_field(
            partials_ptr, rows, max_rows, num_blocks, PEAK, LOWEST, NUM_PARTIALS, ROWS, BLOCKS
        )
        masses = load_field(
            partials_ptr, rows, max_rows, num_blocks, MASS, 0.0, NUM_PARTIALS, ROWS, BLOCKS
        )
        raw_peak, log_sum, has_sum = fold_raw(raw_peaks, raw_sums, ROWS)
        peak = tl.max(peaks, axis=1)
        heat = column(1 / temperature, ROWS)
        whole = tl.sum(masses * tl.exp((peaks - column(peak, ROWS)) * heat), axis=1)
        wanted = filtered & has_sum
        tokens, known = draw_from_candidates(
            logits_ptr, tl.where(live, rows, 0), vocab_size, slots, too_short, stop_ids_ptr,
            chunk_peaks_ptr, num_blocks * (BLOCK_V // CHUNK), picked_ptr, temperature, count, share,
            ratio, peak, whole, seeds, positions, wanted,
            score, NUM_STOP_IDS, ROWS, CHUNK, CHUNKS, PICKED, NVIDIA,
        )  # fmt: skip
        spread = wanted & (known == 0)
        leave_row(
            states_ptr + rows * NUM_STATES, spread, filtered, count, share, ratio, temperature,
            peak, whole, raw_peak + log_sum,
        )  # fmt: skip
        valid = wanted & (tokens < vocab_size)
        chosen = tl.load(
            logits_ptr + rows.to(tl.int64) * vocab_size + tokens, mask=valid, other=0.0
        )
        drawn = filtered & (spread == 0)
        tl.store(out_tokens_ptr + rows, tl.where(valid, tokens, -1), mask=drawn)
        logprobs = tl.where(valid, chosen - raw_peak - log_sum, 0.0)
        tl.store(out_logprobs_ptr + rows, logprobs, mask=drawn)


@triton.jit
def fold_raw(peaks, sums, ROWS: tl.constexpr):
    """(peak, log of the softmax sum about it, whether there is one) of rows, each [ROWS], of the
    largest raw logits and softmax sums [ROWS, BLOCKS] of their blocks."""
    peak = tl.max(peaks, axis=1)
    whole = tl.sum(sums * tl.exp(peaks - column(peak, ROWS)), axis=1)
    valid = whole > 0  # false of NaN
    return peak, tl.log(tl.where(valid, whole, 1.0)), valid


@triton.jit(do_not_specialize=["max_rows"])
def _sample_filtered_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
    position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, chunk_peaks_ptr, picked_ptr,
    states_ptr, counters_ptr, out_tokens_ptr, out_logprobs_ptr, max_rows, vocab_size, num_blocks,
    score: tl.constexpr, NUM_STOP_IDS: tl.constexpr, NUM_PARTIALS: tl.constexpr,
    NUM_STATES: tl.constexpr, ROWS: tl.constexpr, BLOCK_V: tl.constexpr, CHUNK: tl.constexpr,
    BLOCKS: tl.constexpr, SPREAD_V: tl.constexpr, CHUNKS: tl.constexpr, PICKED: tl.constexpr,
    CAPACITY: tl.constexpr, NVIDIA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    _, live, slots = load_rows(slots_ptr, num_rows_ptr, max_rows, 0, CAPACITY, True)
    _, _, count, share, ratio = load_filters(
        slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, False, True
    )
    filtered = live & ((count > 0) | (share < 1) | (ratio > 0))
    if PDL:
        tl.extra.cuda.gdc_wait()
    if tl.max(filtered.to(tl.int32), axis=0) == 0:
        return
    num_rows = tl.sum(live.to(tl.int32), axis=0)
    for group in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        _draw_group(
            logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
            seed_ptr, position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr,
            chunk_peaks_ptr, picked_ptr, states_ptr, out_tokens_ptr, out_logprobs_ptr, group * ROWS,
            max_rows, vocab_size, num_blocks,
            score, NUM_STOP_IDS, NUM_PARTIALS, NUM_STATES, ROWS, BLOCK_V, CHUNK, BLOCKS, CHUNKS,
            PICKED, NVIDIA,
        )  # fmt: skip
    draw_spread_rows(
        logits_ptr, slots_ptr, temperature_ptr, top_k_ptr, top_p_ptr, seed_ptr, position_ptr,
        offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, states_ptr, counters_ptr,
        out_tokens_ptr, out_logprobs_ptr, filtered, vocab_size, tl.cdiv(vocab_size, SPREAD_V),
        score, NUM_STOP_IDS, NUM_PARTIALS, NUM_STATES, SPREAD_V, BLOCKS, CAPACITY, NVIDIA,
    )  # fmt: skip
