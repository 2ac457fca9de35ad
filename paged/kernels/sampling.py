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
A row with NaN or +inf, or with nothing but -inf left, gets token -1 and logprob 0.

Every filter keeps the logits from some floor up, so filtering is a search for that floor: see
floor_search.py. Rows without filters skip it, and greedy rows draw no noise either.

Grid [B / ROWS], on a GPU one program a row; rows from num_rows on are left alone. Everything
contiguous.

Gumbel, "Statistical theory of extreme values" (1954); Maddison et al., "A* sampling" (2014).
Holtzman et al., "The curious case of neural text degeneration" (2020), for top-p.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.floor_search import LOWEST, keep_ref, mask_stops, raise_floor
from paged.kernels.launch import check_tensor, interpreted
from paged.kernels.philox import gumbel_noise, gumbel_noise_ref

NUM_STOP_IDS = 8
GREEDY_BELOW = tl.constexpr(1e-5)


@triton.jit
def gumbel_score(logit, gumbel, temperature):
    """Draws from softmax(logit / temperature) over the kept tokens."""
    return logit / temperature + gumbel


@triton.jit
def greedy_score(logit, gumbel, temperature):
    """Takes the largest logit; the launcher then skips filters and noise."""
    return logit


@triton.jit
def _sample_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr,
    position_ptr, stop_ids_ptr, min_len_ptr, out_tokens_ptr, out_logprobs_ptr, vocab_size,
    score: tl.constexpr, GREEDY: tl.constexpr, NUM_STOP_IDS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    num_rows = tl.load(num_rows_ptr)
    if first >= num_rows:
        return
    rows = first + tl.arange(0, ROWS)
    live = rows < num_rows
    slots = tl.load(slots_ptr + rows, mask=live, other=0)
    # A row that is not live reads the last live one again; only its stores are masked.
    row_ptrs = logits_ptr + tl.minimum(rows, num_rows - 1).to(tl.int64) * vocab_size
    stop_ids_ptrs = stop_ids_ptr + slots * NUM_STOP_IDS
    positions = tl.load(position_ptr + slots)
    too_short = positions < tl.load(min_len_ptr + slots)
    any_too_short = tl.max(too_short.to(tl.int32), axis=0) > 0

    temperature = tl.full([ROWS], 1.0, tl.float32)
    floor = tl.full([ROWS], LOWEST, tl.float32)
    if not GREEDY:
        temperature = tl.load(temperature_ptr + slots)
        random = live & (temperature >= GREEDY_BELOW)
        any_random = tl.max(random.to(tl.int32), axis=0) > 0
        temperature = tl.where(random, temperature, 1.0)
        top_k = tl.load(top_k_ptr + slots)
        top_p = tl.load(top_p_ptr + slots)
        min_p = tl.load(min_p_ptr + slots)
        limits_count = random & (top_k > 0) & (top_k < vocab_size)
        limits_mass = random & (top_p < 1)
        limits_ratio = random & (min_p > 0)
        if tl.max((limits_count | limits_mass | limits_ratio).to(tl.int32), axis=0) > 0:
            peaks = tl.full([ROWS, BLOCK_V], LOWEST, tl.float32)
            for start in range(0, vocab_size, BLOCK_V):
                ids = start + tl.arange(0, BLOCK_V)[None, :]
                inside = ids < vocab_size
                logits = tl.load(row_ptrs[:, None] + ids, mask=inside, other=float("-inf"))
                if any_too_short:
                    logits = mask_stops(
                        logits, ids, stop_ids_ptrs[:, None], too_short[:, None], NUM_STOP_IDS
                    )
                peaks = tl.maximum(peaks, logits)
            peak = tl.max(peaks, axis=1)
            lowest_kept = peak + temperature * tl.log(tl.where(limits_ratio, min_p, 1.0))
            floor = tl.where(limits_ratio, tl.maximum(floor, lowest_kept), floor)
            floor = raise_floor(
                row_ptrs, vocab_size, stop_ids_ptrs, too_short, temperature, peak, floor,
                limits_count, top_k, tl.full([ROWS], 0.0, tl.float32),
                NUM_STOP_IDS, ROWS, BLOCK_V, PIVOTS,
            )  # fmt: skip
            floor = raise_floor(
                row_ptrs, vocab_size, stop_ids_ptrs, too_short, temperature, peak, floor,
                limits_mass, tl.full([ROWS], 1, tl.int32), top_p,
                NUM_STOP_IDS, ROWS, BLOCK_V, PIVOTS,
            )  # fmt: skip

    # Each lane keeps the best token and the softmax sum of its own ids; lanes meet at the end.
    best = tl.full([ROWS, BLOCK_V], float("-inf"), tl.float32)
    best_ids = tl.full([ROWS, BLOCK_V], 0, tl.int32) + vocab_size
    peaks = tl.full([ROWS, BLOCK_V], LOWEST, tl.float32)
    sums = tl.full([ROWS, BLOCK_V], 0.0, tl.float32)
    for start in range(0, vocab_size, BLOCK_V):
        ids = start + tl.arange(0, BLOCK_V)[None, :]
        raw = tl.load(row_ptrs[:, None] + ids, mask=ids < vocab_size, other=float("-inf"))
        higher = tl.maximum(peaks, raw)
        sums = sums * tl.exp(peaks - higher) + tl.exp(raw - higher)
        peaks = higher
        logits = raw
        if any_too_short:
            logits = mask_stops(
                logits, ids, stop_ids_ptrs[:, None], too_short[:, None], NUM_STOP_IDS
            )
        noise = tl.full([ROWS, BLOCK_V], 0.0, tl.float32)
        if not GREEDY:
            seeds = tl.load(seed_ptr + slots)
            if any_random:
                noise = gumbel_noise(seeds[:, None], positions[:, None], start, ROWS, BLOCK_V)
                noise = tl.where(random[:, None], noise, 0.0)
        scores = score(logits, noise, temperature[:, None])
        better = (logits >= floor[:, None]) & (scores > best)
        best = tl.where(better, scores, best)
        best_ids = tl.where(better, ids, best_ids)

    is_best = best == tl.max(best, axis=1)[:, None]
    tokens = tl.min(tl.where(is_best, best_ids, vocab_size), axis=1)
    peak = tl.max(peaks, axis=1)
    # NaN or +inf anywhere makes the sum NaN; -inf everywhere leaves it 0.
    total = tl.sum(sums * tl.exp(peaks - peak[:, None]), axis=1)
    valid = live & (total > 0) & (tokens < vocab_size)
    chosen = tl.load(row_ptrs + tokens, mask=valid, other=0.0)
    tl.store(out_tokens_ptr + rows, tl.where(valid, tokens, -1), mask=live)
    logprobs = tl.where(valid, chosen - peak - tl.log(total), 0.0)
    tl.store(out_logprobs_ptr + rows, logprobs, mask=live)


def tiles(rows: int, vocab_size: int) -> dict[str, int]:
    """Tile sizes. BLOCK_V follows the vocabulary alone: it orders the sums of a row."""
    if interpreted():
        block = min(max(16, triton.next_power_of_2(vocab_size)), 16384)
        together = min(triton.next_power_of_2(max(rows, 1)), 65536 // block)
        return {"ROWS": together, "BLOCK_V": block, "PIVOTS": 8}
    block = min(max(256, triton.next_power_of_2(vocab_size)), 4096)
    return {"ROWS": 1, "BLOCK_V": block, "PIVOTS": 4, "num_warps": block // 256}


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
    score=gumbel_score,
) -> None:
    """Write a token and its log-probability for the first num_rows rows of logits [B, V] fp32.

    slots [B] int32 names the row of every parameter column that a row of logits belongs to;
    num_rows [1] int32. Columns, R slots each: temperature fp32; top_k int32, off at <= 0 or >= V;
    top_p fp32, off at 1; min_p fp32, off at 0; seed int64; position int32, the index of the token
    being drawn; stop_ids [R, 8] int32, -1 for none; min_len int32. out_tokens [B] int32 and
    out_logprobs [B] fp32. `score` is a @triton.jit function of (logit, gumbel, temperature).
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
    check_tensor("out_tokens", out_tokens, (rows,), torch.int32)
    check_tensor("out_logprobs", out_logprobs, (rows,), torch.float32)
    tile = tiles(rows, vocab_size)
    _sample_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        logits, slots, num_rows, temperature, top_k, top_p, min_p, seed, position, stop_ids,
        min_len, out_tokens, out_logprobs, vocab_size,
        score=score, GREEDY=score is greedy_score, NUM_STOP_IDS=NUM_STOP_IDS, **tile,
    )  # fmt: skip


def sample_ref(
    logits, slots, num_rows, temperature, top_k, top_p, min_p, seed, position, stop_ids, min_len,
    out_tokens, out_logprobs, score=gumbel_score,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(tokens [B], logprobs [B]) row by row, for the scores greedy_score and gumbel_score."""
    tokens, logprobs = out_tokens.clone(), out_logprobs.clone()
    for row in range(int(num_rows)):
        slot = int(slots[row])
        masked = logits[row].clone()
        if position[slot] < min_len[slot]:
            masked[stop_ids[slot][stop_ids[slot] >= 0].long()] = float("-inf")
        tokens[row], logprobs[row] = -1, 0
        if not logits[row].logsumexp(0).isfinite() or masked.max() == float("-inf"):
            continue
        heat = float(temperature[slot])
        scores = masked
        if score is not greedy_score and heat >= GREEDY_BELOW.value:
            filters = (int(top_k[slot]), float(top_p[slot]), float(min_p[slot]))
            noise = gumbel_noise_ref(int(seed[slot]), int(position[slot]), masked.shape[0])
            scores = masked / heat + noise.to(masked.device)
            scores = scores.where(keep_ref(masked, heat, *filters), float("-inf"))
        tokens[row] = int((scores == scores.max()).nonzero()[0])
        logprobs[row] = logits[row].log_softmax(0)[tokens[row]]
    return tokens, logprobs


def sample_inputs(device="cpu", dtype=torch.float32, rows=6, vocab_size=300, score=gumbel_score):
    """Rows that cycle through greedy, plain, top-k, top-p, min-p and all filters at once.

    The logits are fp32 but rounded to `dtype`, as from a head in that dtype, so bf16 has ties.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, vocab_size, generator=generator)
    kinds = torch.arange(rows) % 6

    def column(*values):
        return torch.tensor(values)[kinds].to(device)

    return {
        "logits": logits.to(dtype).float().to(device),
        "slots": torch.arange(rows, dtype=torch.int32, device=device).flip(0),
        "num_rows": torch.tensor([rows], dtype=torch.int32, device=device),
        "temperature": column(0.0, 1.0, 0.7, 1.3, 1.0, 0.9),
        "top_k": column(5, 0, 7, -1, vocab_size, 40).int(),
        "top_p": column(0.5, 1.0, 1.0, 0.8, 1.0, 0.95),
        "min_p": column(0.5, 0.0, 0.0, 0.0, 0.1, 0.02),
        "seed": torch.arange(rows, device=device) * 0x123456789AB - 7,
        "position": torch.arange(rows, dtype=torch.int32, device=device) + 5,
        "stop_ids": torch.full((rows, NUM_STOP_IDS), -1, dtype=torch.int32, device=device),
        "min_len": torch.zeros(rows, dtype=torch.int32, device=device),
        "out_tokens": torch.full((rows,), -7, dtype=torch.int32, device=device),
        "out_logprobs": torch.full((rows,), float("nan"), device=device),
        "score": score,
    }


SAMPLE_VARIANTS = ({"score": greedy_score}, {"vocab_size": 5000})
