"""Which rows of logits a program of the sampler has, and what each of them is of."""

import triton
import triton.language as tl


@triton.jit
def column(values, ROWS: tl.constexpr):
    """values [ROWS] to combine with a [ROWS, N]: as [ROWS, 1], but of a single row as a scalar.

    The compiler may spread a [1, 1] over [1, N] with all N numbers in every thread, and then take
    them through shared memory to where they are needed. It spreads a scalar for nothing.
    """
    if ROWS > 1:
        return values[:, None]
    elif values.dtype == tl.int1:
        return tl.max(values.to(tl.int32), axis=0) > 0
    else:
        return tl.sum(values, axis=0)


@triton.jit
def load_rows(slots_ptr, num_rows_ptr, max_rows, first, ROWS: tl.constexpr, AHEAD: tl.constexpr):
    """(rows, live, slots) of a program; both loads are in flight at once. AHEAD of `gdc_wait` they
    bypass L1."""
    CACHE: tl.constexpr = ".cg" if AHEAD else ""
    rows = first + tl.arange(0, ROWS)
    slots = tl.load(slots_ptr + rows, mask=rows < max_rows, other=0, cache_modifier=CACHE)
    live = rows < tl.load(num_rows_ptr, cache_modifier=CACHE)
    return rows, live, tl.where(live, slots, 0)


@triton.jit
def load_positions(position_ptr, offsets_ptr, slots, rows, live, AHEAD: tl.constexpr):
    """The index, in its sequence, of the token that each row draws; without offsets_ptr the slot's.

    The rows of one slot have different offsets: they stand behind its draft tokens.
    """
    CACHE: tl.constexpr = ".cg" if AHEAD else ""
    positions = tl.load(position_ptr + slots, cache_modifier=CACHE)
    if offsets_ptr is not None:
        positions += tl.load(offsets_ptr + rows, mask=live, other=0, cache_modifier=CACHE)
    return positions
