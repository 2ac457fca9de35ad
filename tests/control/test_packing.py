"""Sums that share one scan: no field disturbs another, up to the largest each may hold."""

import pytest
import torch
import triton
import triton.language as tl

from paged.kernels.control.packing import (
    count_of,
    high_of,
    low_of,
    pack_flags,
    pack_pair,
    spread_lanes,
)

LARGEST = 2**31 - 1


@triton.jit
def _count_kernel(flags, before, in_all, N: tl.constexpr, LANES: tl.constexpr):
    lane = spread_lanes(LANES)
    live = lane < N
    a = tl.load(flags + lane, mask=live, other=0) != 0
    b = tl.load(flags + N + lane, mask=live, other=0) != 0
    c = tl.load(flags + 2 * N + lane, mask=live, other=0) != 0
    d = tl.load(flags + 3 * N + lane, mask=live, other=0) != 0
    packed = pack_flags(a, b, c, d)
    ahead = tl.cumsum(packed, axis=0) - packed
    total = tl.sum(packed, axis=0)
    for flag in tl.static_range(4):
        tl.store(before + flag * N + lane, count_of(ahead, flag), mask=live)
        tl.store(in_all + flag, count_of(total, flag))


@triton.jit
def _sum_kernel(values, out, N: tl.constexpr):
    lane = tl.arange(0, N)
    packed = pack_pair(tl.load(values + lane), tl.load(values + N + lane))
    upto = tl.cumsum(packed, axis=0)
    tl.store(out + lane, high_of(upto))
    tl.store(out + N + lane, low_of(upto))


@pytest.mark.parametrize(("lanes", "share"), [(1000, 0.5), (65535, 1.0), (5, 0.0)])
def test_four_flags_are_counted_by_one_scan(device, lanes, share):
    generator = torch.Generator().manual_seed(lanes)
    flags = (torch.rand(4, lanes, generator=generator) < share).int().to(device)
    before = torch.full_like(flags, -1)
    in_all = torch.full((4,), -1, dtype=torch.int32, device=device)
    width = triton.next_power_of_2(lanes)
    _count_kernel[(1,)](flags, before, in_all, N=lanes, LANES=width, num_warps=32)
    assert torch.equal(in_all, flags.sum(1, dtype=torch.int32))
    assert torch.equal(before, flags.cumsum(1, dtype=torch.int32) - flags)


@pytest.mark.parametrize("values", [[(LARGEST, 0), (0, LARGEST)], [(LARGEST - 7, 7), (3, 4)]])
def test_two_sums_reach_their_largest_value(device, values):
    pairs = torch.tensor(values, dtype=torch.int32, device=device)
    out = torch.full_like(pairs, -1)
    _sum_kernel[(1,)](pairs, out, N=2)
    assert torch.equal(out, pairs.cumsum(1, dtype=torch.int32))
