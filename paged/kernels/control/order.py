"""rank: the service order of all rows, by a policy's key.

    class_i = 2 if the row is not active, else 1 if it waits behind running rows, else 0
    position_i = |{j : (class_j, key_j, arrival_j) < (class_i, key_i, arrival_i)}|

Counting smaller keys needs R^2 comparisons and no sort: one pass, any number of programs, and it
costs milliseconds in the interpreter where `tl.sort` costs seconds. Arrival tickets are unique, so
the order is total and every run and every rank finds the same one.

The policy is `rank(row, now, *args) -> int32`, smallest first: a Triton function inlined here, or
keys computed beforehand by torch or on the host. The beams of a group have the class and the key of
its first, so that they stand together, by their tickets.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    ARRIVAL,
    BEAM_WIDTH,
    COLUMN_NAMES,
    NOW_MS,
    PARENT,
    RUNNING,
    STATUS,
    STEP,
    WAITING,
    Now,
    Row,
    load_now,
    load_row,
)  # fmt: skip
from paged.kernels.control.stage import stage
from paged.kernels.launch import interpreted, pdl


@triton.jit
def _sort_key(
    columns, key, counters, slot, args, RANK, R: tl.constexpr, PREEMPTIVE: tl.constexpr,
    BEAMS: tl.constexpr,
):  # fmt: skip
    live = slot < R
    status = tl.load(columns + STATUS * R + slot, mask=live, other=0)
    arrival = tl.load(columns + ARRIVAL * R + slot, mask=live, other=0)
    active = (status == RUNNING) | (status == WAITING)
    first = slot
    if BEAMS:
        parent = tl.load(columns + PARENT * R + slot, mask=live, other=0)
        beam = tl.load(columns + BEAM_WIDTH * R + slot, mask=live, other=0) > 0
        first = tl.where(beam & (parent > 0), parent - 1, slot)
    waiting = tl.load(columns + STATUS * R + first, mask=live, other=0) == WAITING
    if RANK is None:
        rank = tl.load(key + first, mask=live, other=0)
    else:
        row = load_row(columns, first, live, R)
        rank = RANK(row, load_now(counters), *args) + tl.zeros_like(slot)
    group = tl.where(active, 0 if PREEMPTIVE else waiting.to(tl.int32), 2)
    rank = tl.where(active, rank.to(tl.int32), 0)
    # Rows that are not active come last, by slot; lanes past R come after those.
    tie = tl.where(active, arrival, slot)
    group = tl.where(live, group, 3)
    return (group.to(tl.int64) << 32) + rank.to(tl.int64) + 2147483648, tie, rank, active & live


@triton.jit
def _order_kernel(
    columns, key, order, num_active, counters, args,
    RANK: tl.constexpr, R: tl.constexpr, PREEMPTIVE: tl.constexpr, BEAMS: tl.constexpr,
    LANES: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mine, my_tie, rank, _is_active = _sort_key(
        columns, key, counters, slot, args, RANK, R, PREEMPTIVE, BEAMS
    )
    position = tl.zeros([LANES], dtype=tl.int32)
    active_rows = tl.zeros((), dtype=tl.int32)
    for first in range(0, R, CHUNK):
        other = first + tl.arange(0, CHUNK)
        theirs, tie, _rank, active = _sort_key(
            columns, key, counters, other, args, RANK, R, PREEMPTIVE, BEAMS
        )
        before = (theirs[None, :] < mine[:, None]) | (
            (theirs[None, :] == mine[:, None]) & (tie[None, :] < my_tie[:, None])
        )
        position += tl.sum(before.to(tl.int32), axis=1)
        active_rows += tl.sum(active.to(tl.int32), axis=0)
    if RANK is not None:
        tl.store(key + slot, rank, mask=slot < R)
    tl.store(order + position, slot, mask=slot < R)
    if tl.program_id(0) == 0:
        tl.store(num_active, active_rows)


@stage
def order(requests, pool, plan, rank=None, args: tuple = (), preemptive: bool = False) -> None:
    """Write `plan.order` [R], slots in service order, and `plan.num_active`.

    `rank` is a Triton function, or None to use the keys in `plan.key` [R]; with a function, the
    keys it gave are stored there.
    """
    slots = requests.sizes.num_slots
    width = triton.next_power_of_2(slots)
    lanes = width if interpreted() else min(8, width)
    chunk = min(256 if interpreted() else 1024, width)
    _order_kernel[(triton.cdiv(slots, lanes),)](
        requests.columns, plan.key, plan.order, plan.num_active, pool.counters, args,
        RANK=rank, R=slots, PREEMPTIVE=preemptive, BEAMS=plan.beams, LANES=lanes, CHUNK=chunk,
        **pdl(),
    )  # fmt: skip


def row_view(requests) -> Row:
    """The request table as `rank` sees it, for policies written in torch; every field [R] int32."""
    fields = {name: getattr(requests, name) for name in Row._fields if name in COLUMN_NAMES}
    running = (requests.status == RUNNING.value).to(torch.int32)
    return Row(running=running, **fields)


def now_view(pool) -> Now:
    """The clock for policies written in torch; int64 scalars on the device."""
    return Now(step=pool.counters[STEP.value], ms=pool.counters[NOW_MS.value])


def order_ref(requests, pool, plan, preemptive: bool = False) -> None:
    """The same from the keys in `plan.key`, by sorting."""
    del pool
    slots = requests.sizes.num_slots
    status = requests.status.tolist()
    running, waiting = RUNNING.value, WAITING.value
    active = [s in (running, waiting) for s in status]
    first = [*range(slots)]
    for slot in requests.beam_width.nonzero().flatten().tolist() if plan.beams else ():
        if int(requests.parent[slot]):
            first[slot] = int(requests.parent[slot]) - 1
    plan.key.copy_(plan.key[first] * torch.tensor(active))

    def sort_key(slot: int) -> tuple[int, int, int]:
        if not active[slot]:
            return 2, 0, slot
        group = int(status[first[slot]] == waiting and not preemptive)
        return group, int(plan.key[slot]), int(requests.arrival[slot])

    ranked = sorted(range(slots), key=sort_key)
    plan.order.copy_(torch.tensor(ranked, dtype=torch.int32))
    plan.num_active.fill_(sum(active))
