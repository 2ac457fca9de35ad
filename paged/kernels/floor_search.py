"""The filters of a sampler as one search: which floor keeps the top k tokens, or the top p mass.

A top-k or top-p filter keeps the logits from some floor up, and both what a floor keeps (a count)
and what that weighs (a softmax mass) only grow as it sinks. So the highest floor that keeps enough
is found without a sort, between two brackets: `raise_floor` searches among the candidates that a
program holds in registers. Rows whose floor is not among them are drawn without it, in
spread_draw.py.

Sums run in a fixed order set by the vocabulary alone, so what a row keeps does not depend on the
batch.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.sampling_rows import column

LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def raise_floor(values, weights, peak, floor, wanted, needed, ROWS: tl.constexpr):
    """The highest floor such that the values from it up weigh at least `needed`; `floor` itself for
    rows that are not wanted. The values from `floor` up must weigh enough.

    values, weights [ROWS, N]; peak (the largest value), floor, wanted, needed [ROWS].

    A bisection whose lower bracket jumps to the least value it keeps, and whose upper bracket
    knows the largest value under it: equal values cost no rounds.
    """
    low, high, under_high, pivot = floor, peak, peak, peak
    searching = wanted
    while tl.max(searching.to(tl.int32), axis=0) > 0:
        kept = values >= column(pivot, ROWS)
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
def key_of_float(value):
    """The bits of a float32 as an int64 that sorts as the float does."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def float_of_key(key):
    """The float32 of a `key_of_float`."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


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
