"""The stages on the host do what the kernels do, bit for bit, over random workloads."""

import pytest
import triton

from paged.eviction.lfu import score as lfu
from paged.eviction.slru import score as slru
from paged.kv.contiguous_max import reserve_len as whole_length
from paged.schedulers.lpm import rank as lpm
from paged.schedulers.priority import rank as by_priority
from paged.schedulers.sjf import rank as sjf
from paged.testing.sides import Side

CASES = {
    "plenty": {},
    "few pages": {"sizes": {"num_pages": 12}},
    "small chunks": {"chunk": 7, "budget": 19},
    "preemptive": {"rank": by_priority, "preemptive": True, "sizes": {"num_pages": 14}},
    "shortest first": {"rank": sjf, "watermark": 2},
    "longest prefix first": {"rank": lpm, "low_water": 8},
    "static batch": {"static_batch": True},
    "whole length": {"reserve": whole_length, "sizes": {"num_pages": 30}},
    "no prefix cache": {"prefix_caching": False},
    "colliding keys": {"num_buckets": 1, "sizes": {"num_pages": 40}},
    "swapping": {"sizes": {"num_pages": 10, "num_host_pages": 9}},
    "swapping for others": {
        "rank": by_priority,
        "preemptive": True,
        "sizes": {"num_pages": 14, "num_host_pages": 20},
    },
    "one slot": {"sizes": {"num_slots": 1, "max_num_seqs": 1}},
    "more slots": {"sizes": {"num_slots": 33, "max_num_seqs": 9, "num_pages": 60, "page_size": 32}},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_bits_of_the_references(build_host, drive, name, seed):
    steps = build_host(**CASES[name])
    drive(steps, seed, requests=16, longest=24, aborts=0.1, nans=0.05)


@pytest.mark.parametrize("seed", range(2))
def test_samples_of_one_prompt(build_host, drive, seed):
    steps = build_host(sizes={"num_slots": 12, "max_num_seqs": 6, "num_pages": 20 + 6 * seed})
    drive(steps, seed, requests=16, longest=20, samples=3, aborts=0.1)
    assert steps.totals["num_copies"] > 0


@pytest.mark.parametrize("score", [lfu, slru], ids=["lfu", "slru"])
def test_bits_of_the_kernels(build_host, drive, score):
    steps = build_host(against=Side, sizes={"num_pages": 14}, score=score, low_water=6)
    drive(steps, 1, requests=6, longest=8)


@triton.jit
def of_many_operations(row, now):
    return triton.language.where(row.running != 0, -row.arrival // 3, row.cached_len % 7) - now.ms


def test_a_policy_that_divides(build_host, drive):
    steps = build_host(against=Side, rank=of_many_operations)
    drive(steps, 2, requests=6, longest=4)
