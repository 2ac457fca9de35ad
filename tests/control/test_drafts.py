"""Speculation in the control plane: kernels against references, with proposals of any quality.

The drafts are what the requests must get, with some tokens wrong. Every token is checked against
the oracle as ever, so accepting one too many or losing one fails.
"""

import pytest

from paged.kv.contiguous_max import reserve_len
from paged.schedulers.priority import rank as priority

FAMINE = {"num_pages": 5, "max_model_len": 80}
EDGE = (15, 16, 31)
# name: (engine, traffic, what must have happened beside drafts both right and wrong)
CASES = {
    "plenty": ({}, {"seed": 28, "requests": 5, "longest": 16}, ()),
    "many_drafts": (
        {"sizes": {"num_draft_tokens": 11}},
        {"seed": 5, "requests": 4, "longest": 30},
        (),
    ),
    "famine_and_aborts": (
        {"sizes": FAMINE},
        {"seed": 25, "requests": 6, "lengths": EDGE, "aborts": 0.2, "longest": 20},
        ("num_preempted", "shortfall"),
    ),
    "nan": ({}, {"seed": 9, "nans": 0.5, "requests": 6, "longest": 12}, ("cached_pages",)),
    "budget_below_drafts": (
        {"budget": 9, "chunk": 5},
        {"seed": 33, "requests": 4, "lengths": (1, 16), "longest": 12},
        ("num_waiting",),
    ),
    "reserve_all": (
        {"reserve": reserve_len, "prefix_caching": False},
        {"seed": 29, "requests": 4},
        (),
    ),
    "preemptive": (
        {"rank": priority, "preemptive": True},
        {"seed": 15, "requests": 9, "lengths": EDGE},
        ("num_preempted",),
    ),
    "samples": ({}, {"seed": 4, "requests": 4, "samples": 3}, ("num_copies",)),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_references(build, drive, case):
    options, traffic, happened = CASES[case]
    sizes = {"num_draft_tokens": 3} | options.get("sizes", {})
    steps = build(**options | {"sizes": sizes})
    drive(steps, **traffic)
    drafted, accepted = (steps.totals[f"num_{kind}_tokens"] for kind in ("draft", "accepted"))
    assert 0 < accepted < drafted
    for name in happened:
        assert steps.totals[name] > 0, f"no {name} in this case"
