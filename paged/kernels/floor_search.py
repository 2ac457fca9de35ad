"""The filters of a sampler as one search: which floor keeps the top k tokens, or the top p mass.

A top-k or top-p filter keeps the logits from some floor up, and both what a floor keeps (a count)
and what that weighs (a softmax mass) only grow as it sinks. So the highest floor that keeps enough
is found without a sort, between two brackets on the bits of fp32 (ordered as integers): a pass over
the vocabulary counts and weighs what each of PIVOTS values would keep. The first pass tries
geometric distances under the largest logit, later ones split the bracket evenly; the search ends
when a single token lies between the brackets, or when they meet (equal logits are kept together).

Sums run in a fixed order set by the vocabulary alone, so what a row keeps does not depend on the
batch.
"""

import torch
import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def mask_stops(logits, ids, stop_ids_ptrs, too_short, NUM_STOP_IDS: tl.constexpr):
    """Logits with the stop ids (-1 for none) of rows that are too short at -inf."""
    for i in tl.static_range(NUM_STOP_IDS):
        stop_ids = tl.load(stop_ids_ptrs + i, mask=too_short, other=-1)
        logits = tl.where(ids == stop_ids, float("-inf"), logits)
    return logits


@triton.jit
def _flip(bits):
    """int32 bits of a float to an integer that sorts as the float does, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key(value):
    return _flip(value.to(tl.int32, bitcast=True)).to(tl.int64)


@triton.jit
def raise_floor(
    row_ptrs, vocab_size, stop_ids_ptrs, too_short, temperature, peak, floor, wanted, min_count,
    min_share, NUM_STOP_IDS: tl.constexpr, ROWS: tl.constexpr, BLOCK_V: tl.constexpr,
    PIVOTS: tl.constexpr,
):  # fmt: skip
    """The highest floor that keeps, of the tokens from `floor` up, at least min_count and at least
    min_share of their mass exp((logit - peak) / temperature); `floor` if there are not so many, or
    if the row's floor is not wanted.

    All arguments but vocab_size are [ROWS]; `peak` is the row's largest logit.
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
            ids = start + tl.arange(0, BLOCK_V)[None, :, None]
            inside = ids < vocab_size
            logits = tl.load(row_ptrs[:, None, None] + ids, mask=inside, other=float("-inf"))
            if tl.max(too_short.to(tl.int32), axis=0) > 0:
                logits = mask_stops(
                    logits,
                    ids,
                    stop_ids_ptrs[:, None, None],
                    too_short[:, None, None],
                    NUM_STOP_IDS,
                )
            kept = logits >= pivots
            weights = tl.exp((logits - peak[:, None, None]) / temperature[:, None, None])
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
