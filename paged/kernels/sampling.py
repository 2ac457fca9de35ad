"""Draw one token for each row of logits, without a sort and without a host decision.

Row i is drawn with the parameters of slot slots[i], in vLLM's order:

    raw     = logits[i]
    logit   = raw, with the slot's stop ids at -inf while position < min_len
    kept    = {id : p(id) >= min_p * max p}                    p = softmax(logit / temperature)
    kept    = the top_k largest of kept
    kept    = the smallest set of the most probable ids of kept that holds top_p of its mass
    token   = argmax over kept of score(logit, gumbel noise, temperature), the lowest id on a tie
    logprob = log_softmax(raw)[token]

A temperature under 1e-5 is greedy: no filter, no noise, score's temperature is 1. Filters keep or
drop equal logits together, so ties at a threshold are all kept. The noise is keyed by
(seed, position, token): a draw depends neither on the batch nor on the row it happens to be in.
Rows without filters are drawn by chunks under `gumbel_score`: plain_draw.py, same distribution.
A row with NaN or +inf, or with nothing but -inf left, gets token -1 and logprob 0.

Three kernels. The first takes blocks of the vocabulary of all rows (sampling_blocks.py). The second
has a program a row, grid [B / ROWS]: it folds the blocks and draws (plain_draw.py,
filtered_draw.py).
The third draws what filters leave too spread for that, all programs together (spread_draw.py).
ROWS is 1 on a GPU. How a row is cut follows the vocabulary alone, so its bits do not depend on the
batch. Rows from num_rows on are left alone. Everything contiguous.

Gumbel, "Statistical theory of extreme values" (1954); Maddison et al., "A* sampling" (2014).
Holtzman et al., "The curious case of neural text degeneration" (2020), for top-p.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.filtered_draw import draw_from_candidates, load_filters
from paged.kernels.floor_search import LOWEST
from paged.kernels.launch import check_tensor, interpreted, on_nvidia, pdl
from paged.kernels.linear_persistent import multiprocessors
from paged.kernels.logit_process import NUM_STOP_IDS
from paged.kernels.plain_draw import draw_plain
from paged.kernels.sampling_blocks import (
    BEST,
    BEST_ID,
    FILTERED,
    MASS,
    PEAK,
    RAW_PEAK,
    RAW_SUM,
    _sample_blocks_kernel,
)  # fmt: skip
from paged.kernels.sampling_rows import load_positions, load_rows
from paged.kernels.sampling_tiles import (
    NUM_COUNTERS,
    NUM_PARTIALS,
    NUM_STATES,
    SampleWorkspace,
    choose_tiles,
)  # fmt: skip
from paged.kernels.spread_draw import PROGRAMS, _sample_spread_kernel, leave_row, spread_options


@triton.jit
def gumbel_score(logit, gumbel, temperature):
    """Draws from softmax(logit / temperature) over the kept tokens."""
    return logit * (1 / temperature) + gumbel


@triton.jit
def greedy_score(logit, gumbel, temperature):
    """Takes the largest logit; the launcher then skips filters and noise."""
    return logit


@triton.jit(do_not_specialize=["max_rows"])
def _sample_rows_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
    position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, strands_ptr,
    chunk_peaks_ptr, picked_ptr, states_ptr, counters_ptr, out_tokens_ptr, out_logprobs_ptr,
    max_rows, vocab_size, num_blocks,
    score: tl.constexpr, GREEDY: tl.constexpr, BY_STRANDS: tl.constexpr,
    NUM_STOP_IDS: tl.constexpr, NUM_PARTIALS: tl.constexpr, NUM_STATES: tl.constexpr,
    NUM_COUNTERS: tl.constexpr, ROWS: tl.constexpr, BLOCK_V: tl.constexpr, STRAND: tl.constexpr,
    CHUNK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, PICKED: tl.constexpr,
    NVIDIA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if not GREEDY and tl.program_id(0) == 0:
        counters = tl.arange(0, NUM_COUNTERS)
        tl.store(counters_ptr + counters, 0 * counters)
    first = tl.program_id(0) * ROWS
    rows, live, slots = load_rows(slots_ptr, num_rows_ptr, max_rows, first, ROWS)
    blocks = tl.arange(0, BLOCKS)[None, :]
    fields = partials_ptr + rows[:, None] * NUM_PARTIALS * num_blocks + blocks
    there = (blocks < num_blocks) & (rows < max_rows)[:, None]
    raw_peaks = tl.load(fields + RAW_PEAK * num_blocks, mask=there, other=LOWEST)
    raw_sums = tl.load(fields + RAW_SUM * num_blocks, mask=there, other=0.0)
    bests = tl.load(fields + BEST * num_blocks, mask=there, other=float("-inf"))
    best_ids = tl.load(fields + BEST_ID * num_blocks, mask=there, other=0.0)
    flags = tl.load(fields + FILTERED * num_blocks, mask=there & (blocks == 0), other=0.0)
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    if not GREEDY:  # on their way while the blocks are folded
        random, temperature, count, share, ratio = load_filters(
            slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, GREEDY
        )
        positions = load_positions(position_ptr, offsets_ptr, slots, rows, live)
        too_short = positions < tl.load(min_len_ptr + slots)
        seeds = tl.load(seed_ptr + slots)
    raw_peak = tl.max(raw_peaks, axis=1)
    raw_sum = tl.sum(raw_sums * tl.exp(raw_peaks - raw_peak[:, None]), axis=1)
    live_sum = live & (raw_sum > 0)
    best = tl.max(bests, axis=1)
    is_best = (bests == best[:, None]) & (best > float("-inf"))[:, None]
    best_ids = best_ids.to(tl.int32, bitcast=True)
    tokens = tl.min(tl.where(is_best, best_ids, vocab_size), axis=1)
    # The best score of a greedy row is its logit. Other logits are read again if not kept.
    chosen = best
    have_chosen = live & GREEDY
    # A row that is not live reads row 0; only its stores are masked.
    row_ptrs = logits_ptr + tl.where(live, rows, 0).to(tl.int64) * vocab_size

    if not GREEDY:
        have_chosen = live & (random == 0) & BY_STRANDS
        filtered = live_sum & (tl.max(flags.to(tl.int32, bitcast=True), axis=1) > 0)
        num_chunks = num_blocks * (BLOCK_V // CHUNK)
        plain = live_sum & random & (filtered == 0)
        there = there & (filtered | plain)[:, None]
        peaks = tl.load(fields + PEAK * num_blocks, mask=there, other=LOWEST)
        masses = tl.load(fields + MASS * num_blocks, mask=there, other=0.0)
        peak = tl.max(peaks, axis=1)
        masses = masses * tl.exp((peaks - peak[:, None]) * (1 / temperature)[:, None])
        if BY_STRANDS and tl.max(plain.to(tl.int32), axis=0) > 0:
            drawn, drawn_logits = draw_plain(
                row_ptrs, vocab_size, slots, too_short, stop_ids_ptr, masses,
                strands_ptr + rows * num_blocks * (BLOCK_V // STRAND), temperature, seeds,
                positions, plain,
                score, NUM_STOP_IDS, ROWS, BLOCK_V, BLOCKS, STRAND, NVIDIA,
            )  # fmt: skip
            tokens = tl.where(plain, drawn, tokens)
            chosen = tl.where(plain, drawn_logits, chosen)
            have_chosen = have_chosen | plain
        spread = filtered & False
        if tl.max(filtered.to(tl.int32), axis=0) > 0:
            drawn, known = draw_from_candidates(
                row_ptrs, vocab_size, slots, too_short, stop_ids_ptr,
                chunk_peaks_ptr + rows * num_chunks, num_chunks, picked_ptr + rows * PICKED,
                temperature, count, share, ratio, peak, tl.sum(masses, axis=1),
                seeds, positions, filtered,
                score, NUM_STOP_IDS, ROWS, CHUNK, CHUNKS, PICKED, NVIDIA,
            )  # fmt: skip
            tokens = tl.where(filtered, drawn, tokens)
            spread = filtered & (known == 0)
        whole = tl.sum(masses, axis=1)
        leave_row(
            states_ptr + rows * NUM_STATES, spread, live, count, share, ratio, temperature, peak,
            whole, raw_peak + tl.log(tl.where(spread, raw_sum, 1.0)),
        )  # fmt: skip
        live = live & (spread == 0)

    valid = live_sum & (tokens < vocab_size)
    again = tl.load(row_ptrs + tokens, mask=valid & (have_chosen == 0), other=0.0)
    chosen = tl.where(have_chosen, chosen, again)
    tl.store(out_tokens_ptr + rows, tl.where(valid, tokens, -1), mask=live)
    logprobs = tl.where(valid, chosen - raw_peak - tl.log(tl.where(valid, raw_sum, 1.0)), 0.0)
    tl.store(out_logprobs_ptr + rows, logprobs, mask=live)


def sample(
    logits: torch.Tensor,
    slots: torch.Tensor,
    num_rows: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    stop_ids: torch.Tensor,
    min_len: torch.Tensor,
    out_tokens: torch.Tensor,
    out_logprobs: torch.Tensor,
    workspace: SampleWorkspace,
    score=gumbel_score,
    offsets: torch.Tensor | None = None,
) -> None:
    """Write a token and its log-probability for the first num_rows rows of logits [B, V] fp32.

    slots [B] int32 names the row of every parameter column that a row of logits belongs to;
    num_rows [1] int32. Columns, R slots each: temperature fp32; top_k int32, off at <= 0 or >= V;
    top_p fp32, off at 1; min_p fp32, off at 0; seed int64; position int32, the index of the token
    being drawn; stop_ids [R, 8] int32, -1 for none; min_len int32. out_tokens [B] int32 and
    out_logprobs [B] fp32. workspace: `sample_workspace` of at least B rows and of V. `score` is a
    @triton.jit function of (logit, gumbel, temperature). offsets [B] int32 is added to the position
    of each row; None adds nothing.
    ValueError if a shape, a dtype or contiguity is not as said.
    """
    check_tensor("logits", logits, (None, None), torch.float32)
    check_tensor("temperature", temperature, (None,), torch.float32)
    rows, vocab_size = logits.shape
    num_slots = temperature.shape[0]
    check_tensor("slots", slots, (rows,), torch.int32)
    check_tensor("num_rows", num_rows, (1,), torch.int32)
    for name, column, dtype in (
        ("top_k", top_k, torch.int32), ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32), ("seed", seed, torch.int64),
        ("position", position, torch.int32), ("min_len", min_len, torch.int32),
    ):  # fmt: skip
        check_tensor(name, column, (num_slots,), dtype)
    check_tensor("stop_ids", stop_ids, (num_slots, NUM_STOP_IDS), torch.int32)
    if offsets is not None:
        check_tensor("offsets", offsets, (rows,), torch.int32)
    check_tensor("out_tokens", out_tokens, (rows,), torch.int32)
    check_tensor("out_logprobs", out_logprobs, (rows,), torch.float32)
    tiles = choose_tiles(rows, vocab_size)
    blocks = triton.cdiv(vocab_size, tiles.block_v)
    chunks = blocks * (tiles.block_v // tiles.chunk)
    strands = blocks * (tiles.block_v // tiles.strand)
    partials, strand_sums, chunk_peaks, picked, states, counters = workspace
    check_tensor("workspace.partials", partials, (None, NUM_PARTIALS, blocks), torch.float32)
    check_tensor("workspace.strands", strand_sums, (None, strands), torch.float32)
    check_tensor("workspace.chunk_peaks", chunk_peaks, (None, chunks), torch.float32)
    check_tensor("workspace.picked", picked, (None, tiles.picked), torch.int32)
    check_tensor("workspace.states", states, (None, NUM_STATES), torch.float32)
    check_tensor("workspace.counters", counters, (NUM_COUNTERS,), torch.int32)
    if min(part.shape[0] for part in workspace[:-1]) < rows:
        raise ValueError(f"workspace must be for {rows} rows or more, got {partials.shape[0]}")
    if rows == 0:
        return
    columns = (
        logits, slots, num_rows, temperature, top_k, top_p, min_p, seed, position, offsets,
        stop_ids, min_len, partials,
    )  # fmt: skip
    greedy = score is greedy_score
    shared = {
        "score": score, "NUM_STOP_IDS": NUM_STOP_IDS, "NUM_PARTIALS": NUM_PARTIALS,
        "BLOCK_V": tiles.block_v, "NVIDIA": on_nvidia(), **pdl(),
    }  # fmt: skip
    cut = {
        "GREEDY": greedy, "BY_STRANDS": score is gumbel_score, "ROWS": tiles.rows,
        "STRAND": tiles.strand, "CHUNK": tiles.chunk,
    }  # fmt: skip
    groups = triton.cdiv(rows, tiles.rows)
    processors = multiprocessors(logits.device)
    _sample_blocks_kernel[(min(groups * blocks, tiles.programs * processors),)](
        *columns, strand_sums, chunk_peaks, rows, vocab_size, blocks, AHEAD=tiles.ahead,
        num_warps=tiles.block_warps, **cut, **shared,
    )  # fmt: skip
    pow2_blocks = max(4, triton.next_power_of_2(blocks))
    pow2_chunks = triton.next_power_of_2(chunks)
    _sample_rows_kernel[(groups,)](
        *columns, strand_sums, chunk_peaks, picked, states, counters, out_tokens, out_logprobs,
        rows, vocab_size, blocks, BLOCKS=pow2_blocks, CHUNKS=pow2_chunks,
        PICKED=min(tiles.picked, pow2_chunks), NUM_STATES=NUM_STATES, NUM_COUNTERS=NUM_COUNTERS,
        num_warps=1 if greedy else tiles.row_warps, **cut, **shared,
    )  # fmt: skip
    if not greedy:
        _sample_spread_kernel[(1 if interpreted() else PROGRAMS * processors,)](
            *columns, states, counters, out_tokens, out_logprobs, rows, vocab_size, blocks,
            NUM_STATES=NUM_STATES, BLOCKS=pow2_blocks, CAPACITY=triton.next_power_of_2(rows),
            **spread_options(), **shared,
        )  # fmt: skip
