"""Swapping: kernels against references, and every token the oracle's."""

import pytest

from paged.schedulers.priority import rank as priority
from paged.schedulers.sjf import rank as sjf

FAMINE = {"num_pages": 5, "max_model_len": 80, "num_host_pages": 8}
EDGE = (15, 16, 31)  # prompts that soon want another page
SWAPPED = ("num_preempted", "num_swapped_out", "num_swapped_in")
# name: (engine, traffic)
CASES = {
    "famine": ({"sizes": FAMINE}, {"seed": 25, "lengths": EDGE, "longest": 20}),
    "aborts": (
        {"sizes": FAMINE, "rank": sjf, "preemptive": True},
        {"seed": 29, "lengths": EDGE, "longest": 20, "aborts": 0.5},
    ),
    "preemptive": (
        {"rank": priority, "preemptive": True, "sizes": {"num_host_pages": 20}},
        {"seed": 15, "requests": 12},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_references_and_the_oracle(build, drive, case):
    options, traffic = CASES[case]
    steps = build(**options)
    drive(steps, **traffic)
    for name in SWAPPED:
        assert steps.totals[name] > 0, f"no {name} in this case"
