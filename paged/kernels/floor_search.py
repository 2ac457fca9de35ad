"""The filters of a sampler as one search: which floor keeps the top k tokens, or the top p mass.

A top-k or top-p filter keeps the logits from some floor up, and both what a floor keeps (a count)
and what that weighs (a softmax mass) only grow as it sinks. So the highest floor that keeps enough
is found without a sort, between two brackets. `raise_floor` searches among the candidates that a
program holds in registers; `walk_floor` is for rows whose floor is not among them, and reads the
whole vocabulary once a round.

Sums run in a fixed order set by the vocabulary alone, so what a row keeps does not depend on the
batch.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.logit_process import process_logits

LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def raise_floor(values, weights, peak, floor, wanted, needed):
    """The highest floor such that the values from it up weigh at least `needed`; `floor` itself for
    rows that are not wanted. The values from `floor` up must weigh enough.

    values, weights [ROWS, N]; peak (the largest value), floor, wanted, needed [ROWS].

    A bisection whose lower bracket jumps to the least value it keeps, and whose upper bracket
    knows the largest value under it: equal values cost no rounds.
    """
    low, high, under_high, pivot = floor, peak, peak, peak
    searching = wanted
    while tl.max(searching.to(tl.int32), axis=0) > 0:
        kept = values >= pivot[:, None]
        mass = tl.sum(tl.where(kept, weights, 0.0), axis=1)
        least_kept = tl.min(tl.where(kept, values, float("inf")), axis=1)
        most_dropped = tl.max(tl.where(kept, float("-inf"), values), axis=1)
        enough = searching & (mass >= needed)
        lacking = searching & (enough == 0)
        low = tl.where(enough, least_kept, low)
        high = tl.where(lacking, pivot, high)
        under_high = tl.where(lacking, most_dropped, under_high)
        searching = searching & (under_high > low)
        # Half first: the difference of two large logits may overflow.
        middle = low * 0.5 + high * 0.5
        pivot = tl.where(middle > low, tl.minimum(middle, under_high), under_high)
    return tl.where(wanted, low, floor)


@triton.jit
def _flip(bits):
    """int32 bits of a float to an integer that sorts as the float does, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key(value):
    return _flip(value.to(tl.int32, bitcast=True)).to(tl.int64)


@triton.jit
def walk_floor(
    row_ptrs, vocab_size, slots, too_short, stop_ids_ptr, temperature, peak, floor, wanted,
    min_count, min_share, NUM_STOP_IDS: tl.constexpr, ROWS: tl.constexpr, BLOCK_V: tl.constexpr,
    PIVOTS: tl.constexpr,
):  # fmt: skip
    """The highest floor that keeps, of the tokens from `floor` up, at least min_count and at least
    min_share of their mass exp((logit - peak) / temperature); `floor` if there are not so many, or
    if the row's floor is not wanted.

    All arguments but vocab_size are [ROWS]; `peak` is the row's largest logit. Brackets are bits of
    fp32, ordered as integers; a round tries PIVOTS values between them: at first geometric
    distances under the peak, later even steps. It ends when one token lies between the brackets, or
    when they meet (equal logits are kept together).
    """
    low = _key(floor)  # keeps enough
    high = _key(peak) + 1  # keeps nothing
    at_low = tl.full([ROWS], 0, tl.int32) + vocab_size
    at_high = tl.full([ROWS], 0, tl.int32)
    whole = tl.full([ROWS], 0.0, tl.float32)
    lane = tl.arange(0, PIVOTS)[None, :]
    # What is 64 temperatures under the peak weighs nothing in fp32, so the first pass sees it all.
    distance = temperature[:, None] * tl.exp2(6.0 - lane * (6.0 / PIVOTS))
    keys = tl.maximum(_key(peak[:, None] - distance), low[:, None])  # [ROWS, PIVOTS]
    searching = tl.max(wanted.to(tl.int32), axis=0)
    while searching > 0:
        pivots = _flip(keys.to(tl.int32)).to(tl.float32, bitcast=True)[:, None, :]
        counts = tl.full([ROWS, BLOCK_V, PIVOTS], 0, tl.int32)
        masses = tl.full([ROWS, BLOCK_V, PIVOTS], 0.0, tl.float32)
        for start in range(0, vocab_size, BLOCK_V):
            ids = start + tl.arange(0, BLOCK_V)[None, :]
            raw = tl.load(row_ptrs[:, None] + ids, mask=ids < vocab_size, other=float("-inf"))
            logits = process_logits(raw, ids, slots, too_short, stop_ids_ptr, NUM_STOP_IDS)
            weights = tl.exp((logits - peak[:, None]) * (1 / temperature)[:, None])[:, :, None]
            kept = logits[:, :, None] >= pivots
            counts += kept.to(tl.int32)
            masses += tl.where(kept, weights, 0.0)
        counts = tl.sum(counts, axis=1)
        masses = tl.sum(masses, axis=1)
        whole = tl.maximum(whole, tl.max(masses, axis=1))
        enough = (counts >= min_count[:, None]) & (masses >= (min_share * whole)[:, None])
        at_low = tl.min(tl.where(enough, counts, at_low[:, None]), axis=1)
        at_high = tl.max(tl.where(enough, at_high[:, None], counts), axis=1)
        low = tl.max(tl.where(enough, keys, low[:, None]), axis=1)
        high = tl.min(tl.where(enough, high[:, None], keys), axis=1)
        searched = wanted & (high - low > 1) & (at_low - at_high > 1)
        searching = tl.max(searched.to(tl.int32), axis=0)
        step = (high - low + PIVOTS - 1) // PIVOTS
        keys = tl.minimum(low[:, None] + step[:, None] * lane, high[:, None])
    return tl.where(wanted, _flip(low.to(tl.int32)).to(tl.float32, bitcast=True), floor)


def keep_ref(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float):
    """Which tokens of one row [V] min-p, then top-k, then top-p keep, by sorting: bool [V]."""
    probs = torch.softmax(logits.double() / temperature, dim=0)
    probs = probs.where(probs >= min_p * probs.max(), 0)
    if 0 < top_k < logits.shape[0]:
        probs = probs.where(logits >= logits.topk(top_k).values[-1], 0)
    if top_p < 1:
        ordered, order = probs.sort(descending=True, stable=True)
        mass = (ordered / ordered.sum()).cumsum(0)
        last = order[int((mass < top_p).sum().clamp_max(logits.shape[0] - 1))]
        probs = probs.where(logits >= logits[last], 0)
    return probs > 0
