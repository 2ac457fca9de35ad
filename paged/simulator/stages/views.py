"""The engine's state as numpy sees it: the same memory as its torch tensors, on the CPU."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from paged.kernels.control.columns import (
    EVICT_LIMIT,
    FINISHED,
    FORKING,
    FREE,
    HEAD,
    NOW_MS,
    NUM_CACHED,
    PREEMPTED,
    RUNNING,
    SHORTFALL,
    STEP,
    TAIL,
    TICKET,
    TOKEN_LIMIT,
    WAITING,
)
from paged.kernels.control.hashing import MULTIPLIER_1, MULTIPLIER_2, MULTIPLIER_TOKEN

# Plain ints: reading `.value` of a constexpr costs as much as an operation of numpy.
IS_FREE, IS_WAITING, IS_RUNNING = FREE.value, WAITING.value, RUNNING.value
IS_FINISHED, IS_PREEMPTED, IS_FORKING = FINISHED.value, PREEMPTED.value, FORKING.value
AT_HEAD, AT_TAIL, AT_CACHED = HEAD.value, TAIL.value, NUM_CACHED.value
AT_TOKENS, AT_EVICTIONS = TOKEN_LIMIT.value, EVICT_LIMIT.value
AT_STEP, AT_NOW_MS, AT_TICKET, AT_SHORTFALL = (
    STEP.value,
    NOW_MS.value,
    TICKET.value,
    SHORTFALL.value,
)


def numpy_views(owner: Any) -> Any:
    """Every tensor of `owner` as a numpy array of the same name and memory.

    Typed Any: the names are those of `RequestTable`, `PagePool` and `StepPlan`.
    """
    tensors = {k: v for k, v in vars(owner).items() if isinstance(v, torch.Tensor)}
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"the state must be on the CPU, got {name} on {tensor.device}")
    return SimpleNamespace(**{name: tensor.numpy() for name, tensor in tensors.items()})


def ranges(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(owner, index) of the elements of consecutive ranges: 2, 3 -> 0 0 1 1 1 and 0 1 0 1 2."""
    if (counts == 1).all():
        return np.arange(len(counts)), np.zeros(len(counts), np.int64)
    ends = counts.cumsum()
    owner = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(owner)) - np.repeat(ends - counts, counts)
    return owner, index


def any_of_ways(flags: np.ndarray) -> np.ndarray:
    """[P] whether one of the 16 flags [P, 16] is set; eight flags at once, as numpy does not."""
    words = flags.view(np.int64)
    return (words[:, 0] | words[:, 1]) != 0


def leading(flags: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Of the flags of consecutive ranges, those before the first False of their range.

    `index` counts within each range, from 0.
    """
    if flags.all():
        return flags
    falls = np.cumsum(~flags)
    starts = np.arange(len(flags)) - index  # where the owner's range begins
    before = np.where(starts > 0, falls[starts - 1], 0)
    return falls == before


def mix(token: np.ndarray, position: np.ndarray) -> np.ndarray:
    """`paged.kernels.control.hashing.mix` on integer arrays; int64, which wraps."""
    x = token.astype(np.int64)
    x += 1
    x *= MULTIPLIER_TOKEN.value
    x += position.astype(np.int64) << 32
    x ^= (x >> 30) & 0x3FFFFFFFF
    x *= MULTIPLIER_1.value
    x ^= (x >> 27) & 0x1FFFFFFFFF
    x *= MULTIPLIER_2.value
    x ^= (x >> 31) & 0x1FFFFFFFF
    return x


def bucket_of(key: np.ndarray, num_buckets: int) -> np.ndarray:
    """Bucket of the prefix table of each key, as `paged.kernels.control.prefix.bucket_of`."""
    return (key ^ (key >> 32)) & (num_buckets - 1)
