"""Every control kernel against its reference, over whole runs; see paged.testing.steps.

After each stage of each step all state of the two sides is equal bit for bit, after each step the
invariants hold, and each request got the tokens of the oracle. A case says what must have happened
in it, so that none passes by being idle.
"""

import pytest
import triton

from paged.kernels.control import lookup, publish
from paged.kv.contiguous_max import reserve_len
from paged.schedulers.priority import rank as priority
from paged.schedulers.sjf import rank as sjf


@triton.jit
def roots_first(page, now):
    return page.depth


FAMINE = {"num_pages": 5, "max_model_len": 80}
EDGE = (15, 16, 31)  # prompts that soon want another page
# name: (engine, traffic, what must have happened)
CASES = {
    "plenty": ({}, {"seed": 28}, ("cached_pages",)),
    "famine": (
        {"sizes": FAMINE},
        {"seed": 25, "lengths": EDGE, "longest": 20},
        ("num_preempted", "shortfall"),
    ),
    "roots_evicted_first": (
        {"score": roots_first, "sizes": {"num_pages": 9}},
        {"seed": 29},
        ("shortfall",),
    ),
    "aborts": (
        {"sizes": FAMINE},
        {"seed": 29, "lengths": EDGE, "aborts": 0.7},
        ("num_preempted", "shortfall"),
    ),
    "nan": ({}, {"seed": 9, "nans": 0.5}, ("cached_pages",)),
    "one_bucket": ({"num_buckets": 1}, {"seed": 28}, ("num_published_rows",)),
    "chunk_7": ({"chunk": 7}, {"seed": 14, "requests": 5, "longest": 3}, ("cached_pages",)),
    "chunk_1": (
        {"chunk": 1},
        {"seed": 0, "requests": 3, "longest": 2, "lengths": (17,)},
        ("cached_pages",),
    ),
    "budget_below_rows": (
        {"budget": 3},
        {"seed": 33, "requests": 5, "longest": 3, "lengths": (1, 16)},
        ("num_waiting",),
    ),
    "watermark": ({"watermark": 3, "sizes": {"num_pages": 9}}, {"seed": 33}, ("num_waiting",)),
    "static_batch": ({"static_batch": True}, {"seed": 29, "longest": 5}, ("num_waiting",)),
    "reserve_all": (
        {"reserve": reserve_len, "prefix_caching": False},
        {"seed": 29, "longest": 5},
        ("num_waiting",),
    ),
    "preemptive": (
        {"rank": priority, "preemptive": True},
        {"seed": 15, "requests": 12},
        ("num_preempted",),
    ),
    "preemptive_famine": (
        {"rank": sjf, "preemptive": True, "sizes": FAMINE},
        {"seed": 25, "lengths": EDGE, "longest": 20},
        ("num_preempted", "shortfall"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_references(build, drive, case):
    options, traffic, happened = CASES[case]
    steps = build(**options)
    drive(steps, **traffic)
    for name in happened:
        assert steps.totals[name] > 0, f"no {name} in this case"


def test_ring_wraps_many_times(build, drive):
    steps = build(sizes={"num_pages": 7, "max_model_len": 112}, prefix_caching=False)
    drive(steps, seed=18, requests=14, longest=3)
    assert int(steps.state.pool.counters[0]) > 4 * steps.state.pool.free_ring.shape[0]


def test_tiles_smaller_than_a_sequence(build, drive, monkeypatch):
    for module in (lookup, publish):
        monkeypatch.setattr(module, "tile_pages", lambda page_size: 2)
    steps = build(num_buckets=256)
    drive(steps, seed=29, longest=5)
    assert steps.totals["num_published_rows"] > 0
