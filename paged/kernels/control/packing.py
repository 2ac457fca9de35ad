"""What keeps a kernel of one program short: lanes that stay where they are, and few scans.

Each scan or sum of a program is a few of its barriers, so several are done by one. Fields of an
int64 are summed together, and no field overflows into the next: four counts of lanes, which are at
most MAX_LANES, or two sums below 2^31. Every value is 0 or more.
"""

import triton
import triton.language as tl

MAX_LANES = 65535


@triton.jit
def spread_lanes(LANES: tl.constexpr):
    """0 to LANES - 1, neighbours in neighbouring threads.

    Where a kernel reads contiguously, Triton gives several neighbours to a thread; where it
    gathers, one. Every value in between would change places, through shared memory.
    """
    return tl.max_contiguous(tl.arange(0, LANES), 1)


@triton.jit
def pack_flags(a, b, c, d):
    """Four flags of each lane; `count_of` takes their counts out of a sum."""
    low = a.to(tl.int64) | (b.to(tl.int64) << 16)
    high = c.to(tl.int64) | (d.to(tl.int64) << 16)
    return low | (high << 32)


@triton.jit
def count_of(packed, FLAG: tl.constexpr):
    """The count of one of the four, int32."""
    return ((packed >> (FLAG * 16)) & 0xFFFF).to(tl.int32)


@triton.jit
def pack_pair(high, low):
    """Two int32 values of each lane; `high_of` and `low_of` take them out of a sum."""
    return (high.to(tl.int64) << 32) | low.to(tl.int64)


@triton.jit
def high_of(packed):
    return (packed >> 32).to(tl.int32)


@triton.jit
def low_of(packed):
    return (packed & 0x7FFFFFFF).to(tl.int32)
