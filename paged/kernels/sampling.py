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

Two kernels. The first has a program for each block of the vocabulary of a row, grid
[blocks, B / ROWS]: it writes the block's softmax sum, and its best token or, for a row that is
drawn by chunks or has filters, a number for each chunk of CHUNK tokens. The second has a program a
row, grid [B / ROWS]: it folds the blocks and draws (for filters see filtered_draw.py). ROWS is 1 on
a GPU. How a row is cut follows the vocabulary alone, so its bits do not depend on the batch. Rows
from num_rows on are left alone. Everything contiguous.

Gumbel, "Statistical theory of extreme values" (1954); Maddison et al., "A* sampling" (2014).
Holtzman et al., "The curious case of neural text degeneration" (2020), for top-p.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.filtered_draw import draw_from_candidates, draw_from_row, load_filters
from paged.kernels.floor_search import LOWEST
from paged.kernels.launch import check_tensor, on_nvidia, pdl
from paged.kernels.logit_process import NUM_STOP_IDS, process_logits
from paged.kernels.philox import TOKENS_LEVEL, gumbel_noise
from paged.kernels.plain_draw import chunk_logits, draw_by_chunks
from paged.kernels.sampling_rows import load_positions, load_rows
from paged.kernels.sampling_tiles import NUM_PARTIALS, SampleWorkspace, choose_tiles

# What the first kernel leaves of a block, all float32 (ids and flags by their bits).
RAW_PEAK, RAW_SUM, BEST, BEST_ID, PEAK, MASS, FILTERED = (
    tl.constexpr(field) for field in range(NUM_PARTIALS)
)


@triton.jit
def gumbel_score(logit, gumbel, temperature):
    """Draws from softmax(logit / temperature) over the kept tokens."""
    return logit * (1 / temperature) + gumbel


@triton.jit
def greedy_score(logit, gumbel, temperature):
    """Takes the largest logit; the launcher then skips filters and noise."""
    return logit


@triton.jit(do_not_specialize=["max_rows"])
def _sample_blocks_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
    position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, chunk_peaks_ptr, max_rows,
    vocab_size, score: tl.constexpr, GREEDY: tl.constexpr, BY_CHUNKS: tl.constexpr,
    NUM_STOP_IDS: tl.constexpr, NUM_PARTIALS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr, CHUNK: tl.constexpr, NVIDIA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    block, num_blocks = tl.program_id(0), tl.num_programs(0)
    rows, live, slots = load_rows(slots_ptr, num_rows_ptr, max_rows, tl.program_id(1) * ROWS, ROWS)
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    ids = block * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    row_ptrs = logits_ptr + rows.to(tl.int64) * vocab_size
    inside = (ids < vocab_size) & live[:, None]
    raw = tl.load(row_ptrs[:, None] + ids, mask=inside, other=float("-inf"))
    positions = load_positions(position_ptr, offsets_ptr, slots, rows, live)
    too_short = positions < tl.load(min_len_ptr + slots)
    random, temperature, count, share, ratio = load_filters(
        slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, GREEDY
    )
    filtered = (count > 0) | (share < 1) | (ratio > 0)
    fields = partials_ptr + rows * NUM_PARTIALS * num_blocks + block

    raw_peak = tl.maximum(tl.max(raw, axis=1), LOWEST)  # so that -inf - raw_peak is no NaN
    # NaN or +inf anywhere makes the sum NaN; -inf everywhere leaves it 0.
    raw_sum = tl.sum(tl.exp(raw - raw_peak[:, None]), axis=1)
    tl.store(fields + RAW_PEAK * num_blocks, raw_peak, mask=live)
    tl.store(fields + RAW_SUM * num_blocks, raw_sum, mask=live)
    flags = filtered.to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(fields + FILTERED * num_blocks, flags, mask=live)

    logits = process_logits(raw, ids, slots, too_short, stop_ids_ptr, NUM_STOP_IDS)
    plain = random & live & (filtered == 0)
    chunks = block * (BLOCK_V // CHUNK) + tl.arange(0, BLOCK_V // CHUNK)[None, :]
    chunk_ptrs = chunk_peaks_ptr + rows[:, None] * num_blocks * (BLOCK_V // CHUNK) + chunks
    if tl.max(filtered.to(tl.int32), axis=0) > 0:
        chunk_peaks = tl.max(tl.reshape(logits, [ROWS, BLOCK_V // CHUNK, CHUNK]), axis=2)
        peak = tl.maximum(tl.max(chunk_peaks, axis=1), LOWEST)
        mass = tl.sum(tl.exp((logits - peak[:, None]) * (1 / temperature)[:, None]), axis=1)
        tl.store(fields + PEAK * num_blocks, peak, mask=live)
        tl.store(fields + MASS * num_blocks, mass, mask=live)
        tl.store(chunk_ptrs, chunk_peaks, mask=(live & filtered)[:, None])
    if BY_CHUNKS and tl.max(plain.to(tl.int32), axis=0) > 0:
        of_chunks = chunk_logits(logits, temperature, ROWS, BLOCK_V, CHUNK)
        tl.store(chunk_ptrs, of_chunks, mask=plain[:, None])
    by_token = (filtered == 0) & ((random == 0) | (not BY_CHUNKS))
    if tl.max(by_token.to(tl.int32), axis=0) > 0:
        noise = tl.full([ROWS, BLOCK_V], 0.0, tl.float32)
        if not GREEDY and not BY_CHUNKS and tl.max(plain.to(tl.int32), axis=0) > 0:
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
        tl.store(fields + BEST_ID * num_blocks, best_ids.to(tl.float32, bitcast=True), mask=live)


@triton.jit(do_not_specialize=["max_rows"])
def _sample_rows_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
    position_ptr, offsets_ptr, stop_ids_ptr, min_len_ptr, partials_ptr, chunk_peaks_ptr, picked_ptr,
    out_tokens_ptr, out_logprobs_ptr, max_rows, vocab_size, num_blocks,
    score: tl.constexpr, GREEDY: tl.constexpr, BY_CHUNKS: tl.constexpr,
    NUM_STOP_IDS: tl.constexpr, NUM_PARTIALS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr, CHUNK: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr,
    PICKED: tl.constexpr, WALK: tl.constexpr, PIVOTS: tl.constexpr, NVIDIA: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
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
    raw_peak = tl.max(raw_peaks, axis=1)
    raw_sum = tl.sum(raw_sums * tl.exp(raw_peaks - raw_peak[:, None]), axis=1)
    best = tl.max(bests, axis=1)[:, None]
    is_best = (bests == best) & (best > float("-inf"))
    best_ids = best_ids.to(tl.int32, bitcast=True)
    tokens = tl.min(tl.where(is_best, best_ids, vocab_size), axis=1)
    # A row that is not live reads row 0; only its stores are masked.
    row_ptrs = logits_ptr + tl.where(live, rows, 0).to(tl.int64) * vocab_size
    live_sum = live & (raw_sum > 0)

    if not GREEDY:
        random, temperature, count, share, ratio = load_filters(
            slots, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab_size, GREEDY
        )
        positions = load_positions(position_ptr, offsets_ptr, slots, rows, live)
        too_short = positions < tl.load(min_len_ptr + slots)
        seeds = tl.load(seed_ptr + slots)
        filtered = live_sum & (tl.max(flags.to(tl.int32, bitcast=True), axis=1) > 0)
        num_chunks = num_blocks * (BLOCK_V // CHUNK)
        plain = live_sum & random & (filtered == 0)
        if BY_CHUNKS and tl.max(plain.to(tl.int32), axis=0) > 0:
            drawn = draw_by_chunks(
                row_ptrs, vocab_size, slots, too_short, stop_ids_ptr,
                chunk_peaks_ptr + rows * num_chunks, num_chunks, temperature, seeds, positions,
                plain, score, NUM_STOP_IDS, ROWS, CHUNK, CHUNKS, NVIDIA,
            )  # fmt: skip
            tokens = tl.where(plain, drawn, tokens)
        if tl.max(filtered.to(tl.int32), axis=0) > 0:
            there = there & filtered[:, None]
            peaks = tl.load(fields + PEAK * num_blocks, mask=there, other=LOWEST)
            masses = tl.load(fields + MASS * num_blocks, mask=there, other=0.0)
            peak = tl.max(peaks, axis=1)
            scale = tl.exp((peaks - peak[:, None]) * (1 / temperature)[:, None])
            drawn, known = draw_from_candidates(
                row_ptrs, vocab_size, slots, too_short, stop_ids_ptr,
                chunk_peaks_ptr + rows * num_chunks, num_chunks, picked_ptr + rows * PICKED,
                temperature, count, share, ratio, peak, tl.sum(masses * scale, axis=1),
                seeds, positions, filtered,
                score, NUM_STOP_IDS, ROWS, CHUNK, CHUNKS, PICKED, NVIDIA,
            )  # fmt: skip
            tokens = tl.where(filtered, drawn, tokens)
            unknown = filtered & (known == 0)
            if tl.max(unknown.to(tl.int32), axis=0) > 0:
                drawn = draw_from_row(
                    row_ptrs, vocab_size, slots, too_short, stop_ids_ptr, temperature, count, share,
                    ratio, peak, seeds, positions, unknown,
                    score, NUM_STOP_IDS, ROWS, WALK, PIVOTS, NVIDIA,
                )  # fmt: skip
                tokens = tl.where(unknown, drawn, tokens)

    valid = live_sum & (tokens < vocab_size)
    chosen = tl.load(row_ptrs + tokens, mask=valid, other=0.0)
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
    partials, chunk_peaks, picked = workspace
    check_tensor("workspace.partials", partials, (None, NUM_PARTIALS, blocks), torch.float32)
    check_tensor("workspace.chunk_peaks", chunk_peaks, (None, chunks), torch.float32)
    check_tensor("workspace.picked", picked, (None, tiles.picked), torch.int32)
    if min(part.shape[0] for part in workspace) < rows:
        raise ValueError(f"workspace must be for {rows} rows or more, got {partials.shape[0]}")
    if rows == 0:
        return
    columns = (
        logits, slots, num_rows, temperature, top_k, top_p, min_p, seed, position, offsets,
        stop_ids, min_len, partials, chunk_peaks,
    )  # fmt: skip
    greedy = score is greedy_score
    shared = {
        "score": score, "GREEDY": greedy, "BY_CHUNKS": score is gumbel_score,
        "NUM_STOP_IDS": NUM_STOP_IDS, "NUM_PARTIALS": NUM_PARTIALS, "ROWS": tiles.rows,
        "BLOCK_V": tiles.block_v, "CHUNK": tiles.chunk, "NVIDIA": on_nvidia(), **pdl(),
    }  # fmt: skip
    groups = triton.cdiv(rows, tiles.rows)
    _sample_blocks_kernel[(blocks, groups)](
        *columns, rows, vocab_size, num_warps=tiles.block_warps, **shared
    )
    pow2_chunks = triton.next_power_of_2(chunks)
    _sample_rows_kernel[(groups,)](
        *columns, picked, out_tokens, out_logprobs, rows, vocab_size, blocks,
        BLOCKS=triton.next_power_of_2(blocks), CHUNKS=pow2_chunks,
        PICKED=min(tiles.picked, pow2_chunks), WALK=tiles.walk, PIVOTS=tiles.pivots,
        num_warps=1 if greedy else tiles.row_warps, **shared,
    )  # fmt: skip
