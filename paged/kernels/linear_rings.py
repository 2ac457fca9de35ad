"""What `linear_stream` asks TMA for: steps of weights and of x, each to its place in a ring."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


@gluon.jit
def next_step(tile, k, programs, end_k, WIDTH: gl.constexpr):
    """The tile and column of a program's next step."""
    k += WIDTH
    ends = k == end_k
    return tile + gl.where(ends, programs, 0), gl.where(ends, 0, k)


@gluon.jit
def ask_weights(
    desc, ring, full, step, tile_n, k, out_features,
    BOXES: gl.constexpr, UNITS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Weights of one step, UNITS units from column k on, to their place in the ring.

    Where gate rows are followed by up rows, BOXES is 2 and each unit has a box of both.
    """
    slot = step % STAGES
    rows: gl.constexpr = desc.block_shape[0]
    mbarrier.expect(full.index(slot), rows * BOXES * UNITS * 128)
    if BOXES == 1:
        row = tile_n * rows
        tma.async_copy_global_to_shared(desc, [row, k], full.index(slot), ring.index(slot))
    else:
        for unit in gl.static_range(UNITS):
            for box in gl.static_range(BOXES):
                row = box * out_features + tile_n * rows
                place = (slot * UNITS + unit) * BOXES + box
                tma.async_copy_global_to_shared(
                    desc, [row, k + unit * 64], full.index(slot), ring.index(place)
                )


@gluon.jit
def expect_rows(full, ELEMENTS: gl.constexpr, is_half):
    """Announce a step's inputs, 16 bits an element: its rows, or half of them."""
    if is_half:
        mbarrier.expect(full, ELEMENTS)
    else:
        mbarrier.expect(full, 2 * ELEMENTS)


@gluon.jit
def ask_rows(desc, half_desc, units, full, step, k, is_half, STAGES: gl.constexpr):
    """Rows of x for one step, to their place in the ring."""
    slot = step % STAGES
    rows: gl.constexpr = desc.block_shape[0]
    width: gl.constexpr = desc.block_shape[1]
    ring = units._reinterpret(desc.dtype, [STAGES, rows, width], desc.layout)
    halves = units._reinterpret(desc.dtype, [2 * STAGES, rows // 2, width], desc.layout)
    if is_half:
        tma.async_copy_global_to_shared(half_desc, [0, k], full.index(slot), halves.index(slot))
    else:
        tma.async_copy_global_to_shared(desc, [0, k], full.index(slot), ring.index(slot))
