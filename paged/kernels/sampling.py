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
Rows without filters are drawn without noise under `gumbel_score`: plain_draw.py, same distribution.
A row with NaN or +inf, or with nothing but -inf left, gets token -1 and logprob 0.

Three kernels. The first has a program for each block of the vocabulary of a row
(sampling_blocks.py). The second has one warp a row, grid [B / ROWS]: it folds the blocks of rows
without filters and draws (plain_draw.py). The third draws rows with filters (sampling_filtered.py).
ROWS is 1 on a GPU. How a row is cut follows the vocabulary alone, so its bits do not depend on the
batch. Rows from num_rows on are left alone. Everything contiguous.

Gumbel, "Statistical theory of extreme values" (1954); Maddison et al., "A* sampling" (2014).
Holtzman et al., "The curious case of neural text degeneration" (2020), for top-p.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.filtered_draw import load_filters
from paged.kernels.floor_search import LOWEST
from paged.kernels.launch import check_tensor, interpreted, on_nvidia, pdl
from paged.kernels.linear_persistent import multiprocessors
from paged.kernels.logit_process import NUM_STOP_IDS
from paged.kernels.plain_draw import draw_plain
from paged.kernels.sampling_blocks import (
    BEST,
    BEST_ID,
    MASS,
    PEAK,
    RAW_PEAK,
    RAW_SUM,
    _sample_blocks_kernel,
    load_field,
)  # fmt: skip
from paged.kernels.sampling_filtered import (
    PROGRAMS,
    _sample_filtered_kernel,
    filtered_options,
    fold_raw,
)  # fmt: skip
from paged.kernels.sampling_rows import column, load_positions, load_rows
from paged.kernels.sampling_tiles import (
    NUM_COUNTERS,
    NUM_PARTIALS,
    NUM_STATES,
    SampleWorkspace,
    choose_tiles,
)  # fmt: skip


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
    position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, strands_ptr, counters_ptr,
    out_tokens_ptr, out_logprobs_ptr, max_rows, vocab_size, num_blocks,
    GREEDY: tl.constexpr, BY_STRANDS: tl.constexpr, NUM_STOP_IDS: tl.constexpr,
    NUM_PARTIALS: tl.constexpr, NUM_COUNTERS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr, STRAND: tl.constexpr, BLOCKS: tl.constexpr,
    NVIDIA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # The first kernel lets this one start when the step's plan is complete: it is read ahead.
    first = tl.program_id(0) * ROWS
    rows, live, slots = load_rows(slots_ptr, num_rows_ptr, max_rows, first, ROWS, True)
    random, temperature, count, share, ratio = load_filters(
        slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, GREEDY, True
    )
    live = live & (count <= 0) & (share >= 1) & (ratio <= 0)
    plain = live & random & BY_STRANDS
    if BY_STRANDS:
        positions = load_positions(position_ptr, offsets_ptr, slots, rows, live, True)
        too_short = positions < tl.load(min_len_ptr + slots, cache_modifier=".cg")
        seeds = tl.load(seed_ptr + slots, cache_modifier=".cg")
    if PDL:
        tl.extra.cuda.gdc_wait()
    if not GREEDY and tl.program_id(0) == 0:
        counters = tl.arange(0, NUM_COUNTERS)
        tl.store(counters_ptr + counters, 0 * counters)
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    raw_peaks = load_field(
        partials_ptr, rows, max_rows, num_blocks, RAW_PEAK, LOWEST, NUM_PARTIALS, ROWS, BLOCKS
    )
    raw_sums = load_field(
        partials_ptr, rows, max_rows, num_blocks, RAW_SUM, 0.0, NUM_PARTIALS, ROWS, BLOCKS
    )
    if BY_STRANDS and tl.max(plain.to(tl.int32), axis=0) > 0:
        peaks = load_field(
            partials_ptr, rows, max_rows, num_blocks, PEAK, LOWEST, NUM_PARTIALS, ROWS, BLOCKS
        )
        masses = load_field(
            partials_ptr, rows, max_rows, num_blocks, MASS, 0.0, NUM_PARTIALS, ROWS, BLOCKS
        )
        raw_peak, log_sum, valid = fold_raw(raw_peaks, raw_sums, ROWS)
        tokens, chosen = draw_plain(
            logits_ptr, rows, vocab_size, slots, too_short, stop_ids_ptr, masses, peaks,
            strands_ptr, num_blocks, temperature, seeds, positions, plain,
            NUM_STOP_IDS, ROWS, BLOCK_V, BLOCKS, STRAND, NVIDIA,
        )  # fmt: skip
    else:
        raw_peak, log_sum, valid = fold_raw(raw_peaks, raw_sums, ROWS)
        tokens = rows * 0
        chosen = temperature * 0
    by_token = live & (plain == 0)
    if tl.max(by_token.to(tl.int32), axis=0) > 0:
        bests = load_field(
            partials_ptr, rows, max_rows, num_blocks, BEST, LOWEST, NUM_PARTIALS, ROWS, BLOCKS
        )
        best_ids = load_field(
            partials_ptr, rows, max_rows, num_blocks, BEST_ID, 0.0, NUM_PARTIALS, ROWS, BLOCKS
        ).to(tl.int32, bitcast=True)
        best = tl.max(bests, axis=1)
        there = tl.arange(0, BLOCKS)[None, :] < num_blocks
        is_best = (bests == column(best, ROWS)) & there
        best_ids = tl.min(tl.where(is_best, best_ids, vocab_size), axis=1)
        tokens = tl.where(by_token, best_ids, tokens)
        # The best score of a greedy row is its logit. The logit of another is read again.
        is_logit = (random == 0) & (BY_STRANDS or GREEDY)
        again = by_token & (is_logit == 0) & (tokens < vocab_size)
        token_ptrs = logits_ptr + tl.where(live, rows, 0).to(tl.int64) * vocab_size + tokens
        chosen = tl.where(by_token, best, chosen)
        chosen = tl.where(again, tl.load(token_ptrs, mask=again, other=0.0), chosen)
    valid = valid & (tokens < vocab_size)
    tl.store(out_tokens_ptr + rows, tl.where(valid, tokens, -1), mask=live)
    logprobs = tl.where(valid, chosen - raw_peak - log_sum, 0.0)
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
    for name, values, dtype in (
        ("top_k", top_k, torch.int32), ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32), ("seed", seed, torch.int64),
        ("position", position, torch.int32), ("min_len", min_len, torch.int32),
    ):  # fmt: skip
        check_tensor(name, values, (num_slots,), dtype)
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
        "NUM_STOP_IDS": NUM_STOP_IDS, "NUM_PARTIALS": NUM_PARTIALS, "ROWS": tiles.rows,
        "BLOCK_V": tiles.block_v, "NVIDIA": on_nvidia(), **pdl(),
    }  # fmt: skip
    ways = {"GREEDY": greedy, "BY_STRANDS": score is gumbel_score, "STRAND": tiles.strand}
    limited = on_nvidia() and tiles.block_registers > 0
    groups = triton.cdiv(rows, tiles.rows)
    _sample_blocks_kernel[(blocks, groups)](
        *columns, strand_sums, chunk_peaks, rows, vocab_size, score=score, CHUNK=tiles.chunk,
        num_warps=tiles.block_warps, **({"maxnreg": tiles.block_registers} if limited else {}),
        **ways, **shared,
    )  # fmt: skip
    pow2_blocks = max(4, triton.next_power_of_2(blocks))
    _sample_rows_kernel[(groups,)](
        *columns, strand_sums, counters, out_tokens, out_logprobs, rows, vocab_size, blocks,
        BLOCKS=pow2_blocks, NUM_COUNTERS=NUM_COUNTERS, num_warps=1, **ways, **shared,
    )  # fmt: skip
    if not greedy:
        pow2_chunks = triton.next_power_of_2(chunks)
        programs = 1 if interpreted() else PROGRAMS * multiprocessors(logits.device)
        _sample_filtered_kernel[(programs,)](
            *columns, chunk_peaks, picked, states, counters, out_tokens, out_logprobs, rows,
            vocab_size, blocks, score=score, CHUNK=tiles.chunk, BLOCKS=pow2_blocks,
            SPREAD_V=tiles.spread_v, CHUNKS=pow2_chunks, PICKED=min(tiles.picked, pow2_chunks),
            NUM_STATES=NUM_STATES, CAPACITY=triton.next_power_of_2(rows), **filtered_options(),
            **shared,
        )  # fmt: skip
