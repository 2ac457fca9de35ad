"""Which rows of logits a program of the sampler has, and what each of them is of."""

import triton
import triton.language as tl


@triton.jit
def load_rows(slots_ptr, num_rows_ptr, max_rows, first, ROWS: tl.constexpr):
    """(rows, live, slots) of a program; both loads are in flight at once."""
    rows = first + tl.arange(0, ROWS)
    slots = tl.load(slots_ptr + rows, mask=rows < max_rows, other=0)
    live = rows < tl.load(num_rows_ptr)
    return rows, live, tl.where(live, slots, 0)


@triton.jit
def load_positions(position_ptr, offsets_ptr, slots, rows, live):
    """The index, in its sequence, of the token that each row draws; without offsets_ptr the slot's.

    The rows of one slot have different offsets: they stand behind its draft tokens.
    """
    positions = tl.load(position_ptr + slots)
    if offsets_ptr is not None:
        positions += tl.load(offsets_ptr + rows, mask=live, other=0)
    return positions
