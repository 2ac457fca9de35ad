"""What a request does to its logits before any filter or score sees them.

Every kernel that reads a block of raw logits to draw from it calls `process_logits` right after the
load, so a change of the logits (a mask, a penalty, a bias) has one place. It must be elementwise:
a token is read by several kernels, in blocks of different shapes.
"""

import triton
import triton.language as tl

from paged.kernels.sampling_rows import column

NUM_STOP_IDS = 8


@triton.jit
def process_logits(raw, ids, slots, too_short, stop_ids_ptr, NUM_STOP_IDS: tl.constexpr):
    """Logits to draw from: raw, with the stop ids of rows that are too short at -inf.

    raw [ROWS, N] float32; ids [ROWS or 1, N] int32; slots [ROWS] int32; too_short [ROWS] bool;
    stop_ids_ptr to [R, NUM_STOP_IDS] int32, -1 for none.
    """
    logits = raw
    if tl.max(too_short.to(tl.int32), axis=0) > 0:
        for i in range(NUM_STOP_IDS):  # rarely run, so not unrolled: other code stays in its cache
            stop_ids = tl.load(stop_ids_ptr + slots * NUM_STOP_IDS + i, mask=too_short, other=-1)
            logits = tl.where(ids == column(stop_ids, raw.shape[0]), float("-inf"), logits)
    return logits
