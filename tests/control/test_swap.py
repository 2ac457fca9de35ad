"""Swapping: kernels against references, and every token the oracle's."""

import pytest

from paged.beams import BeamSearchParams
from paged.schedulers.priority import rank as priority
from paged.schedulers.sjf import rank as sjf

FAMINE = {"num_pages": 5, "max_model_len": 80, "num_host_pages": 8}
EDGE = (15, 16, 31)  # prompts that soon want another page
SWAPPED = ("num_preempted", "num_swapped_out", "num_swapped_in")
# name: (engine, traffic)
CASES = {
    "famine": (
        {"sizes": FAMINE},
        {"seed": 25, "lengths": EDGE, "longest": 20, "requests": 5},
    ),
    "aborts": (
        {"by": "references", "sizes": FAMINE, "rank": sjf, "preemptive": True},
        {"seed": 29, "lengths": EDGE, "longest": 20, "aborts": 0.5},
    ),
    "preemptive": (
        {"rank": priority, "preemptive": True, "sizes": {"num_host_pages": 20, "max_num_seqs": 2}},
        {"seed": 15, "requests": 5},
    ),
    "few_host_pages": (
        {"by": "references", "sizes": FAMINE | {"num_host_pages": 2}},
        {"seed": 25, "lengths": EDGE, "longest": 20},
    ),
    "samples": (
        {"by": "references", "sizes": {"num_pages": 8, "num_host_pages": 12}},
        {"seed": 25, "lengths": (31, 50), "longest": 20, "samples": 3},
    ),
    "drafts": (
        {"by": "references", "sizes": FAMINE | {"num_draft_tokens": 4}},
        {"seed": 25, "lengths": EDGE, "longest": 20},
    ),
    "no_prefix_cache": (
        {"by": "references", "sizes": FAMINE, "prefix_caching": False, "chunk": 7},
        {"seed": 25, "lengths": EDGE, "longest": 20},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_references_and_the_oracle(build, drive, case):
    options, traffic = CASES[case]
    steps = build(**options)
    drive(steps, **traffic)
    for name in SWAPPED:
        assert steps.totals[name] > 0, f"no {name} in this case"


def test_beams(build):
    steps = build(
        rank=priority, preemptive=True,
        sizes={"max_num_seqs": 2, "num_pages": 20, "num_host_pages": 20},
    )  # fmt: skip
    prompt = [(7 * i + i * i) % 64 for i in range(40)]
    steps.submit_beams(prompt, BeamSearchParams(2, 4, length_penalty=1.0))
    for _ in range(3):
        steps.step()
    steps.submit(prompt[5:], 2, priority=-1)
    steps.finish()  # the search has found the oracle's
    assert steps.totals["searches"] == 1
    assert steps.totals["num_swapped_in"] > 0


def test_a_swapped_row_goes_on_where_it_was(build):
    steps = build(
        by="references", rank=priority, preemptive=True,
        sizes={"max_num_seqs": 1, "num_pages": 6, "num_host_pages": 6},
    )  # fmt: skip
    row = steps.submit(list(range(40)), 20, priority=1)
    while len(row.tokens) < 10:
        steps.step()
    urgent = steps.submit([5] * 60, 2, priority=0)  # evicts what the row had published
    while urgent.reason is None:
        steps.step()
    before = steps.totals["num_tokens"]
    steps.finish()
    assert (row.num_preemptions, row.cached[-1]) == (1, 49)
    assert steps.totals["num_swapped_out"] == 49
    assert steps.totals["num_tokens"] - before == 10


def test_pages_that_others_held_are_not_copied(build):
    steps = build(
        by="references", rank=priority, preemptive=True,
        sizes={"max_num_seqs": 2, "num_host_pages": 20},
    )  # fmt: skip
    prompt = list(range(40))
    steps.submit(prompt, 30, priority=0)
    while not steps.totals.get("cached_pages", 0) and steps.num_steps < 3:
        steps.step()
    row = steps.submit(prompt, 20, priority=1)
    while len(row.tokens) < 4:
        steps.step()
    steps.submit([7] * 20, 3, priority=0)
    while not row.num_preemptions:
        steps.step()
    assert steps.totals["num_swapped_out"] == 43 - 32
    steps.finish()
    assert row.cached == [32, 43]
