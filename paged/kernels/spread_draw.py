"""The draw of rows whose kept tokens spread over too many chunks to be candidates (a flat
distribution under a large top-p, a top-k of thousands), by all programs of a launch together.

The draw is the best score of the kept tokens, so the best of all is the draw if it is kept. A token
is kept where the tokens above it are fewer than top_k and weigh less than top_p of the whole: one
sum over the row, and no floor has to be found. A round of an unsettled row, over tokens above LOW:

    best     of each block, the best score, its token and its logit
    weigh    of each block, what lies above two pivots: the best token's logit, and the middle
             between LOW and HIGH
    settle   the best token is kept: it is drawn. If not, LOW rises to its logit, and the other
             pivot halves what lies between LOW (not kept) and HIGH (kept), so rounds are few

The first token is kept with probability top_p, and each that is not takes a random part of the rest
with it. A row with both top-k and top-p first needs the mass that top-k keeps: its first rounds
narrow LOW and HIGH around top-k's floor, with two pivots between them.

All programs are on the device at once (sampling_filtered.py): the phases are separated by a barrier
over the grid. Items are blocks of rows, larger than those of sampling_blocks.py, whose partials are
no longer needed; sums are folded in the order of blocks, whoever made them. Without such rows there
is nothing but the first barrier.

Rejection of tokens under a moving floor as in FlashInfer's sampling kernels (Ye et al. 2025), but
of the one token that the noise names, so the draw is that of a search for the floor.
"""

import triton
import triton.language as tl

from paged.kernels.fast_math import LOG2_E, fast_exp2
from paged.kernels.floor_search import LOWEST, float_of_key, key_of_float
from paged.kernels.grid_barrier import grid_barrier
from paged.kernels.logit_process import process_logits
from paged.kernels.philox import gumbel_noise
from paged.kernels.sampling_rows import column, load_positions
from paged.kernels.sampling_tiles import NUM_COUNTERS, NUM_STATES

# The state of a row, float32 (modes and keys by their bits). Keys are floats as ordered integers.
MODE, LOW, HIGH, WHOLE, PEAK, LOG_SUM = (tl.constexpr(field) for field in range(NUM_STATES))
SETTLED, MEASURE, COUNT_FLOOR, DRAW = (tl.constexpr(mode) for mode in range(4))
# What phases leave of a block, in the fields that the first kernel used.
BEST_SCORE, BEST_ID, BEST_LOGIT, COUNT_A, MASS_A, COUNT_B, MASS_B = (
    tl.constexpr(field) for field in range(7)
)
ARRIVED, DONE = (tl.constexpr(counter) for counter in range(NUM_COUNTERS))
# Each round at least halves a range of 2^32 keys, for top-k's floor and again for the draw.
MOST_ROUNDS = tl.constexpr(70)


@triton.jit
def leave_row(state_ptrs, spread, live, count, share, ratio, temperature, peak, whole, log_sum):
    """Leave the `spread` rows to `draw_spread_rows`: state_ptrs [ROWS] to NUM_STATES float32."""
    by_ratio = ratio > 0
    floor = tl.where(by_ratio, peak + temperature * tl.log(tl.where(by_ratio, ratio, 1.0)), LOWEST)
    measure = (share < 1) & ((count > 0) | by_ratio)
    mode = tl.where(spread, tl.where(measure, MEASURE, DRAW), SETTLED)
    low = key_of_float(floor) - 1
    high = key_of_float(peak)
    tl.store(state_ptrs + MODE, mode.to(tl.int32).to(tl.float32, bitcast=True), mask=live)
    tl.store(state_ptrs + LOW, low.to(tl.int32).to(tl.float32, bitcast=True), mask=spread)
    tl.store(state_ptrs + HIGH, high.to(tl.int32).to(tl.float32, bitcast=True), mask=spread)
    tl.store(state_ptrs + WHOLE, whole, mask=spread)
    tl.store(state_ptrs + PEAK, peak, mask=spread)
    tl.store(state_ptrs + LOG_SUM, log_sum, mask=spread)


@triton.jit
def _load_bounds(state_ptr):
    """(mode, low, high) of a row: keys as int64."""
    mode = tl.load(state_ptr + MODE).to(tl.int32, bitcast=True)
    low = tl.load(state_ptr + LOW).to(tl.int32, bitcast=True).to(tl.int64)
    high = tl.load(state_ptr + HIGH).to(tl.int32, bitcast=True).to(tl.int64)
    return mode, low, high


@triton.jit
def _fold_best(fields_ptr, num_blocks, vocab_size, BLOCKS: tl.constexpr):
    """(token, logit) of the best score of a row; (vocab_size, -inf) if nothing has one."""
    blocks = tl.arange(0, BLOCKS)
    there = blocks < num_blocks
    fields_ptr += blocks
    scores = tl.load(fields_ptr + BEST_SCORE * num_blocks, mask=there, other=float("-inf"))
    ids = tl.load(fields_ptr + BEST_ID * num_blocks, mask=there, other=0.0)
    logits = tl.load(fields_ptr + BEST_LOGIT * num_blocks, mask=there, other=float("-inf"))
    best = tl.max(scores, axis=0)
    is_best = (scores == best) & (best > float("-inf"))
    ids = ids.to(tl.int32, bitcast=True)
    token = tl.min(tl.where(is_best, ids, vocab_size), axis=0)
    return token, tl.max(tl.where(is_best & (ids == token), logits, float("-inf")), axis=0)


@triton.jit
def _pivots(mode, low, high, best_logit):
    """What a round weighs: a float, and the key of another."""
    third = (high - low) // 3
    first = tl.where(mode == MEASURE, low, low + tl.maximum(third, 1))
    second = low + tl.where(mode == COUNT_FLOOR, high - low - third, (high - low) // 2)
    return tl.where(mode == DRAW, best_logit, float_of_key(first)), second


@triton.jit
def _best_of_block(
    fields_ptr, logits, ids, seeds, positions, temperature, low, block, num_blocks,
    score: tl.constexpr, BLOCK_V: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """Store the best score of the block's tokens above `low`, its token and its logit."""
    possible = logits > float_of_key(low)
    best = tl.full([1], float("-inf"), tl.float32)
    token = tl.full([1], 0, tl.int32)
    logit = best
    if tl.max(tl.max(possible.to(tl.int32), axis=1), axis=0) > 0:
        groups = block * (BLOCK_V // 4) + tl.arange(0, BLOCK_V // 4)[None, :]
        noise = gumbel_noise(seeds, positions, groups, 1, BLOCK_V, NVIDIA)
        scores = score(logits, noise, column(temperature, 1))
        scores = tl.where(possible & (scores > float("-inf")), scores, float("-inf"))
        best, at = tl.max(scores, axis=1, return_indices=True)
        token = (block * BLOCK_V + at).to(tl.int32)
        logit = tl.max(tl.where(ids == column(token, 1), logits, float("-inf")), axis=1)
    lane = tl.arange(0, 1)
    tl.store(fields_ptr + BEST_SCORE * num_blocks + lane, best)
    tl.store(fields_ptr + BEST_ID * num_blocks + lane, token.to(tl.float32, bitcast=True))
    tl.store(fields_ptr + BEST_LOGIT * num_blocks + lane, logit)


@triton.jit
def _weigh_block(
    fields_ptr, logits, peak, temperature, first, second, num_blocks, NVIDIA: tl.constexpr
):
    """Store how many of the block's logits lie above each of two pivots, and their mass."""
    weights = fast_exp2((logits - peak) * column(1 / temperature * LOG2_E, 1), NVIDIA)
    above_first, above_second = logits > first, logits > second
    lane = tl.arange(0, 1)
    count = tl.sum(above_first.to(tl.int32), axis=1)
    tl.store(fields_ptr + COUNT_A * num_blocks + lane, count.to(tl.float32, bitcast=True))
    mass = tl.sum(tl.where(above_first, weights, 0.0), axis=1)
    tl.store(fields_ptr + MASS_A * num_blocks + lane, mass)
    count = tl.sum(above_second.to(tl.int32), axis=1)
    tl.store(fields_ptr + COUNT_B * num_blocks + lane, count.to(tl.float32, bitcast=True))
    mass = tl.sum(tl.where(above_second, weights, 0.0), axis=1)
    tl.store(fields_ptr + MASS_B * num_blocks + lane, mass)


@triton.jit
def _fold_sums(
    fields_ptr, num_blocks, COUNT: tl.constexpr, MASS: tl.constexpr, BLOCKS: tl.constexpr
):
    """(count, mass) of a row above one pivot."""
    blocks = tl.arange(0, BLOCKS)
    there = blocks < num_blocks
    counts = tl.load(fields_ptr + COUNT * num_blocks + blocks, mask=there, other=0.0)
    masses = tl.load(fields_ptr + MASS * num_blocks + blocks, mask=there, other=0.0)
    return tl.sum(counts.to(tl.int32, bitcast=True), axis=0), tl.sum(masses, axis=0)


@triton.jit
def _settle(
    state_ptr, fields_ptr, counters_ptr, token_ptr, logprob_ptr, logits_ptr, count, share,
    num_blocks, vocab_size, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Draw the row's best token if it is kept, or move the row's bounds."""
    mode, low, high = _load_bounds(state_ptr)
    whole = tl.load(state_ptr + WHOLE)
    count_a, mass_a = _fold_sums(fields_ptr, num_blocks, COUNT_A, MASS_A, BLOCKS)
    count_b, mass_b = _fold_sums(fields_ptr, num_blocks, COUNT_B, MASS_B, BLOCKS)
    token, logit = _fold_best(fields_ptr, num_blocks, vocab_size, BLOCKS)
    first, key_b = _pivots(mode, low, high, logit)
    key_a = key_of_float(first)
    if mode == DRAW:
        # The count of a row with top-p is already in LOW.
        fewer_a = (count == 0) | (share < 1) | (count_a < count)
        fewer_b = (count == 0) | (share < 1) | (count_b < count)
        kept_a = fewer_a & ((share >= 1) | (mass_a < share * whole))
        kept_b = fewer_b & ((share >= 1) | (mass_b < share * whole))
        drawn = kept_a | (key_a >= high) | (token >= vocab_size)
        if drawn:
            valid = token < vocab_size
            chosen = tl.load(logits_ptr + token, mask=valid, other=0.0)
            logprob = chosen - tl.load(state_ptr + LOG_SUM)
            tl.store(token_ptr, tl.where(valid, token, -1))
            tl.store(logprob_ptr, tl.where(valid, logprob, 0.0))
            tl.atomic_add(counters_ptr + DONE, 1)
        mode = tl.where(drawn, SETTLED, mode)
        low = tl.where(kept_b, tl.maximum(low, key_a), tl.maximum(key_a, key_b))
        high = tl.where(kept_b, tl.maximum(key_b, low + 1), high)
    elif mode == MEASURE:
        whole = mass_a
        mode = tl.where((count > 0) & (count_a > count), COUNT_FLOOR, DRAW)
    else:
        enough_a, enough_b = count_a >= count, count_b >= count
        whole = tl.where(enough_b, mass_b, tl.where(enough_a, mass_a, whole))
        found = (enough_b & (count_b == count)) | (enough_a & (count_a == count))
        high = tl.where(enough_b, high, tl.where(enough_a, key_b, key_a))
        low = tl.where(enough_b, key_b, tl.where(enough_a, key_a, low))
        found = found | (high - low <= 1)
        mode = tl.where(found, DRAW, mode)
        high = tl.where(found, key_of_float(tl.load(state_ptr + PEAK)), high)
    tl.store(state_ptr + MODE, mode.to(tl.int32).to(tl.float32, bitcast=True))
    tl.store(state_ptr + LOW, low.to(tl.int32).to(tl.float32, bitcast=True))
    tl.store(state_ptr + HIGH, high.to(tl.int32).to(tl.float32, bitcast=True))
    tl.store(state_ptr + WHOLE, whole)


@triton.jit
def draw_spread_rows(
    logits_ptr, slots_ptr, temperature_ptr, top_k_ptr, top_p_ptr, seed_ptr, position_ptr,
    offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, state_ptr, counters_ptr,
    out_tokens_ptr, out_logprobs_ptr, filtered, vocab_size, num_blocks,
    score: tl.constexpr, NUM_STOP_IDS: tl.constexpr, NUM_PARTIALS: tl.constexpr,
    NUM_STATES: tl.constexpr, BLOCK_V: tl.constexpr, BLOCKS: tl.constexpr, CAPACITY: tl.constexpr,
    NVIDIA: tl.constexpr,
):  # fmt: skip
    """Draw the rows that `leave_row` left, of those that are `filtered` [CAPACITY]; called by all
    programs of a launch."""
    grid_barrier(counters_ptr + ARRIVED)
    program, programs = tl.program_id(0), tl.num_programs(0)
    lanes = tl.arange(0, CAPACITY)
    modes = tl.load(state_ptr + lanes * NUM_STATES + MODE, mask=filtered, other=0.0)
    spread = (modes.to(tl.int32, bitcast=True) != SETTLED).to(tl.int32)
    num_spread = tl.sum(spread, axis=0)
    # Row lanes[i] is number places[i] of the rows to settle.
    places = tl.where(spread > 0, tl.cumsum(spread, axis=0) - 1, CAPACITY)
    done = num_spread * 0
    rounds = done
    while (done < num_spread) & (rounds < MOST_ROUNDS):
        for phase in range(2):
            for item in range(program, num_spread * num_blocks, programs):
                row = tl.sum(tl.where(places == item // num_blocks, lanes, 0), axis=0)
                block = item % num_blocks
                row_state_ptr = state_ptr + row * NUM_STATES
                mode, low, high = _load_bounds(row_state_ptr)
                if (mode != SETTLED) & ((phase == 1) | (mode == DRAW)):
                    one = row + tl.arange(0, 1)
                    slot = tl.load(slots_ptr + one)
                    ids = block * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
                    raw = tl.load(
                        logits_ptr + row.to(tl.int64) * vocab_size + ids, mask=ids < vocab_size,
                        other=float("-inf"),
                    )  # fmt: skip
                    positions = load_positions(
                        position_ptr, offsets_ptr, slot, one, one >= 0, False
                    )
                    too_short = positions < tl.load(min_len_ptr + slot)
                    temperature = tl.load(temperature_ptr + slot)
                    logits = process_logits(raw, ids, slot, too_short, stop_ids_ptr, NUM_STOP_IDS)
                    fields_ptr = partials_ptr + row * NUM_PARTIALS * num_blocks
                    if phase == 0:
                        _best_of_block(
                            fields_ptr + block, logits, ids, tl.load(seed_ptr + slot), positions,
                            temperature, low, block, num_blocks, score, BLOCK_V, NVIDIA,
                        )  # fmt: skip
                    else:
                        _token, logit = _fold_best(fields_ptr, num_blocks, vocab_size, BLOCKS)
                        first, second = _pivots(mode, low, high, logit)
                        _weigh_block(
                            fields_ptr + block, logits, tl.load(row_state_ptr + PEAK), temperature,
                            first, float_of_key(second), num_blocks, NVIDIA,
                        )  # fmt: skip
            grid_barrier(counters_ptr + ARRIVED)
        for place in range(program, num_spread, programs):
            row = tl.sum(tl.where(places == place, lanes, 0), axis=0)
            row_state_ptr = state_ptr + row * NUM_STATES
            if tl.load(row_state_ptr + MODE).to(tl.int32, bitcast=True) != SETTLED:
                slot = tl.load(slots_ptr + row)
                top_k = tl.load(top_k_ptr + slot)
                count = tl.where((top_k > 0) & (top_k < vocab_size), top_k, 0)
                _settle(
                    row_state_ptr, partials_ptr + row * NUM_PARTIALS * num_blocks, counters_ptr,
                    out_tokens_ptr + row, out_logprobs_ptr + row,
                    logits_ptr + row.to(tl.int64) * vocab_size, count, tl.load(top_p_ptr + slot),
                    num_blocks, vocab_size, BLOCKS,
                )  # fmt: skip
        grid_barrier(counters_ptr + ARRIVED)
        done = tl.load(counters_ptr + DONE)
        rounds += 1
