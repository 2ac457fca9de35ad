"""Triton policies on numpy lanes give what the interpreter gives, and say so when they cannot."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from paged.eviction.lfu import score as lfu
from paged.eviction.slru import score as slru
from paged.kernels.control.order import order
from paged.kernels.launch import interpreted
from paged.schedulers.sjf import rank as sjf
from paged.simulator.lanes import as_int32, lanes, on_lanes
from paged.simulator.stages.host import HostStages
from paged.state import RUNNING, WAITING, PagePool, RequestTable, Sizes, StepPlan

WEIGHT = tl.constexpr(3)
SIZES = Sizes(
    num_slots=9, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, page_size=16,
    num_pages=8,
)  # fmt: skip


@triton.jit
def half(x):
    return x // 2


@triton.jit
def of_integers(row, now):
    late = tl.where(row.arrival_ms - now.ms < 0, row.arrival % 3, half(-row.arrival))
    return late * WEIGHT - tl.minimum(row.prompt_len, 7)


@triton.jit
def of_floats(row, now):
    waited = (now.ms - row.arrival_ms) / (row.prompt_len + 1)
    return (tl.log(tl.abs(waited) + 1.5) * 1000 * tl.where(row.running != 0, 0.5, 1.25)).to(
        tl.int32
    )


@triton.jit
def with_an_argument(row, now, factor):
    return row.priority * factor - row.arrival


@triton.jit
def of_updates(row, now):
    key = row.arrival
    key += row.prompt_len
    key //= 3
    late = now.ms - row.arrival_ms
    late *= 2
    key -= tl.where(late > 0, late, 0)
    return key


@triton.jit
def of_a_reduction(row, now):
    return row.arrival - tl.sum(row.prompt_len, axis=0)


def table(seed: int) -> tuple[RequestTable, PagePool, StepPlan]:
    draw = torch.Generator().manual_seed(seed)
    requests, pool = RequestTable(SIZES, "cpu"), PagePool(SIZES, "cpu")
    requests.columns.random_(-1000, 1000, generator=draw)
    requests.prompt_len.abs_()
    requests.arrival.copy_(torch.randperm(SIZES.num_slots, generator=draw) * 7 + 1)
    choices = torch.tensor([WAITING, RUNNING, 0])
    requests.status.copy_(choices[torch.randint(3, (SIZES.num_slots,), generator=draw)])
    pool.counters[3:5] = torch.tensor([12, 345])
    return requests, pool, StepPlan(SIZES, "cpu")


@pytest.mark.skipif(not interpreted(), reason="compares with the interpreter")
@pytest.mark.parametrize("preemptive", [False, True])
@pytest.mark.parametrize(
    ("rank", "args"),
    [(sjf, ()), (of_integers, ()), (of_floats, ()), (with_an_argument, (-3,)),
     (of_updates, ()), (of_a_reduction, ())],
)  # fmt: skip
def test_keys_and_order_are_the_interpreters(rank, args, preemptive):
    for seed in range(4):
        want, mine = table(seed), table(seed)
        order(*want, rank, args, preemptive)
        stages = HostStages(*mine)
        order(*mine, rank, args, preemptive)
        assert torch.equal(mine[2].key, want[2].key)
        assert torch.equal(mine[0].columns, want[0].columns)
        assert torch.equal(mine[2].order, want[2].order)
        assert torch.equal(mine[2].num_active, want[2].num_active)
        assert (rank in stages.needs_triton) == (rank is of_a_reduction)


def test_scores_have_no_loss():
    page = type("Page", (), {})()
    page.hits, page.last_used = lanes(np.int32([0, 40000, 3])), lanes(np.int32([7, 9, 5]))
    now = type("Now", (), {"step": lanes(np.int32(70010))})()
    assert on_lanes(lfu)(page, now).tolist() == [-65535, 32767 * 65536 - 65535, 3 * 65536 - 65535]
    assert on_lanes(slru)(page, now).tolist() == [7 - 1073741824, 9, 5]


def test_a_policy_must_return_integers():
    with pytest.raises(TypeError, match="one int32 a lane, got float32"):
        as_int32(np.float32([1, 2]), 2)
    assert as_int32(np.int32([4]), 3).tolist() == [4, 4, 4]
