"""Compression: kernels against references, and against an oracle that drops pages of a list."""

import pytest

from paged.kernels.control.budget import UNLIMITED, PageBudget
from paged.schedulers.priority import rank as priority
from paged.state import RUNNING
from paged.testing.steps import Steps

HALF = PageBudget(pages=UNLIMITED, share=512, sink_pages=1, recent=20)
THREE = PageBudget(pages=3, share=1024, sink_pages=1, recent=16)
LONG = (33, 50, 80)
PROMPT = [(7 * i + i * i) % 64 for i in range(120)]
# name: (engine, traffic, what must have happened)
CASES = {
    "half": (
        {"page_budget": HALF},
        {"seed": 6, "longest": 14, "lengths": (50, 80), "requests": 3},
        (),
    ),
    "samples_in_chunks": (
        {"page_budget": THREE, "chunk": 20},
        {"seed": 6, "longest": 20, "lengths": LONG, "requests": 3, "samples": 3},
        ("num_copies",),
    ),
    "preemptive": (
        {"page_budget": THREE, "rank": priority, "preemptive": True, "sizes": {"max_num_seqs": 2}},
        {"seed": 3, "longest": 14, "lengths": LONG, "requests": 4},
        ("num_preempted",),
    ),
    "famine": (
        {"by": "references", "page_budget": HALF, "sizes": {"num_pages": 6, "max_model_len": 96}},
        {"seed": 11, "longest": 14, "lengths": (16, *LONG), "requests": 4},
        ("num_preempted", "shortfall"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_references_and_the_oracle(build, drive, case):
    options, traffic, happened = CASES[case]
    steps = build(**options)
    drive(steps, **traffic)
    for name in ("num_dropped", *happened):
        assert steps.totals[name] > 0, f"no {name} in this case"


def num_dropped(steps: Steps) -> int:
    requests = steps.state.requests
    return int(requests.num_dropped[requests.status == RUNNING].sum())


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preempted_row_drops_the_same_pages_again(build, prefix_caching):
    steps = build(
        by="references", page_budget=THREE, rank=priority, preemptive=True,
        prefix_caching=prefix_caching, sizes={"max_num_seqs": 1, "max_model_len": 160},
    )  # fmt: skip
    row = steps.submit(PROMPT[:70], 60, priority=1)
    while len(row.tokens) < 45:
        steps.step()
    before = num_dropped(steps)
    assert before > 70 // 16, "pages of the output have gone too"
    urgent = steps.submit(PROMPT[80:], 2, priority=0)
    while urgent.reason is None:
        steps.step()
    while len(row.tokens) < 46:
        steps.step()
    assert (row.num_preemptions, num_dropped(steps)) == (1, before)
    steps.finish()  # every token was the oracle's


def test_budget_bounds_the_pages_of_any_length(build):
    steps = build(
        by="references", page_budget=THREE, sizes={"max_model_len": 260, "num_pages": 4}
    )  # fmt: skip
    row = steps.submit(PROMPT[:40], 200)
    most = 0
    while row.reason is None:
        steps.step()
        most = max(most, int(steps.state.requests.num_pages.max()))
    assert (row.reason, most) == ("length", 3)


def test_dropped_pages_of_the_prompt_stay_in_the_prefix_cache(build):
    steps = build(by="references", page_budget=THREE)
    row = steps.submit(PROMPT[:100], 3)
    while not row.tokens:
        steps.step()
    assert num_dropped(steps) == 4
    later = steps.submit(PROMPT[:100], 2)
    steps.finish()
    assert later.cached == [96]


def test_rows_with_holes_publish_nothing_more(build):
    steps = build(by="references", page_budget=THREE)
    row = steps.submit(PROMPT[:60], 60)
    steps.finish()
    again = steps.submit(PROMPT[:60] + row.tokens, 2)
    steps.finish()
    assert again.cached == [48], "the prompt's full pages, and none of the output's"


def test_sample_whose_parent_has_dropped_pages_computes_its_prompt(build):
    steps = build(page_budget=THREE, prefix_caching=False, sizes={"max_num_seqs": 1})
    parent, fork = steps.submit_samples(PROMPT[:70], 4, 2)
    while num_dropped(steps) == 0:
        steps.step()
    steps.finish()
    assert (parent.reason, fork.reason, fork.cached) == ("length", "length", [0])


@pytest.mark.parametrize(("uncached", "cached"), [(1, 64), (6, 64), (7, 48), (UNLIMITED, 0)])
def test_asked_tokens_of_a_prompt_are_computed_by_every_row(build, uncached, cached):
    steps = build(page_budget=THREE._replace(uncached=uncached))
    steps.submit(PROMPT[:70], 2)
    steps.finish()
    rows = steps.submit_samples(PROMPT[:70], 2, 2)
    steps.finish()
    assert rows[0].cached == [cached]
    assert rows[1].cached == [69 if uncached == 1 else cached], "a parent's last page is not shared"
