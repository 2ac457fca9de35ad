"""Samples of one request: one prefill, shared pages, a copy of the page that is partly filled.

Lockstep runs as in test_lockstep.py: all state of kernels and references is equal after each stage,
the invariants hold after each step, and each sample draws the tokens of its own oracle.
"""

import pytest

from paged.kv.contiguous_max import reserve_len
from paged.schedulers.sjf import rank as sjf
from paged.state import FORKING, RUNNING, WAITING

PROMPT = [(7 * i * i + 3) % 64 for i in range(80)]
FAMINE = {"num_pages": 7, "max_model_len": 80}
EDGE = (15, 16, 31, 33)
CASES = {
    "plenty": ({}, {"seed": 28, "requests": 10}, ()),
    "famine": (
        {"sizes": FAMINE},
        {"seed": 25, "lengths": EDGE, "longest": 20},
        ("num_preempted", "shortfall"),
    ),
    "no_prefix_cache": (
        {"sizes": FAMINE, "prefix_caching": False},
        {"seed": 25, "lengths": EDGE, "longest": 20},
        ("num_preempted",),
    ),
    "aborts": ({}, {"seed": 29, "lengths": EDGE, "aborts": 0.7}, ()),
    "nan": ({}, {"seed": 11, "requests": 12, "nans": 0.4}, ()),
    "chunk_7": ({"chunk": 7}, {"seed": 14, "requests": 5, "longest": 3}, ()),
    "few_seats": ({"sizes": {"max_num_seqs": 2}}, {"seed": 14, "longest": 3}, ("num_waiting",)),
    "static_batch": ({"static_batch": True}, {"seed": 29, "longest": 5}, ("num_waiting",)),
    "reserve_all": ({"reserve": reserve_len}, {"seed": 29, "longest": 5}, ("num_waiting",)),
    "preemptive_famine": (
        {"rank": sjf, "preemptive": True, "sizes": FAMINE},
        {"seed": 25, "lengths": EDGE, "longest": 20},
        ("num_preempted",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_references(build, drive, case):
    options, traffic, happened = CASES[case]
    steps = build(**options)
    drive(steps, samples=3, **traffic)
    for name in ("num_copies", *happened):
        assert steps.totals[name] > 0, f"no {name} in this case"


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 12])
@pytest.mark.parametrize("length", [1, 2, 16, 17, 50])
def test_the_prompt_is_computed_once(build, length, max_tokens, prefix_caching):
    steps = build(by="references", prefix_caching=prefix_caching)
    samples = steps.submit_samples(PROMPT[:length], max_tokens, 4)
    steps.finish()
    assert [sample.cached for sample in samples] == [[0], *[[length - 1]] * 3]
    # All but the last token of the prompt once; that one and every drawn token but the last by each
    assert steps.totals["num_tokens"] == length - 1 + 4 * max_tokens
    assert steps.totals["num_copies"] == 3 * ((length - 1) % 16 > 0)


def test_full_pages_are_shared_and_published_once(build):
    steps = build()
    samples = steps.submit_samples(PROMPT[:40], 12, 3)
    while not all(sample.tokens for sample in samples):
        steps.step()
    requests, pool = steps.state.requests, steps.state.pool
    tables = [requests.block_table[sample.slot].tolist() for sample in samples]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert len({table[2] for table in tables}) == 3
    assert pool.ref_count[tables[0][:3]].tolist() == [3, 3, 1]
    assert int((pool.serial > 0).sum()) == 2, "the full pages of the prompt"
    steps.finish()
    assert int((pool.serial > 0).sum()) == 2 + 3, "and one that each sample has filled"


def test_a_shared_page_that_nobody_could_publish_yet_is_published_by_one(build):
    steps = build(num_buckets=1, sizes={"num_pages": 60, "max_model_len": 320})
    samples = steps.submit_samples([*PROMPT, *PROMPT[::-1], *PROMPT][:200], 30, 3)
    steps.finish()
    published = int((steps.state.pool.serial > 0).sum())
    assert published == 16, "all ways of the bucket, one page a step"
    assert all(sample.reason == "length" for sample in samples)


def test_samples_wait_unseen_for_their_prompt(build):
    steps = build(by="references", chunk=16)
    parent, *forks = steps.submit_samples(PROMPT[:50], 3, 3)
    status = steps.state.requests.status
    for computed in (16, 32, 48, 49):
        steps.step()
        assert int(steps.state.requests.num_computed_tokens[parent.slot]) == computed
        assert [int(status[fork.slot]) for fork in forks] == [FORKING] * 2
        assert steps.header["num_waiting"] == 0
    steps.step()
    assert [int(status[sample.slot]) for sample in (parent, *forks)] == [RUNNING] * 3
    assert [len(sample.tokens) for sample in (parent, *forks)] == [1, 1, 1]
    steps.finish()


def test_an_aborted_parent_leaves_ordinary_rows(build):
    steps = build(chunk=16)
    parent, *forks = steps.submit_samples(PROMPT[:50], 4, 3)
    steps.step()
    steps.abort(parent)
    other = steps.submit(PROMPT[20:60], 4)  # takes the parent's slot soon
    steps.finish()
    assert (parent.reason, parent.tokens) == ("abort", [])
    assert [request.reason for request in (*forks, other)] == ["length"] * 3
    assert forks[0].cached == [0]


def test_a_forking_row_can_be_aborted(build):
    steps = build(chunk=16)
    parent, fork, other = steps.submit_samples(PROMPT[:50], 4, 3)
    steps.step()
    assert int(steps.state.requests.status[fork.slot]) == FORKING
    steps.abort(fork)
    steps.finish()
    assert [sample.reason for sample in (parent, fork, other)] == ["length", "abort", "length"]


def test_a_parent_that_was_preempted_after_its_first_token_is_not_waited_for(build):
    steps = build(sizes={"max_num_seqs": 1, "num_slots": 3}, preemptive=True, rank=sjf)
    parent, fork = steps.submit_samples(PROMPT[:20], 40, 2, predicted_len=90)
    for _ in range(3):
        steps.step()
    assert parent.tokens
    urgent = steps.submit(PROMPT[30:60], 6, predicted_len=36)
    for _ in range(2):
        steps.step()
    assert parent.num_preemptions == 1
    assert int(steps.state.requests.status[fork.slot]) == WAITING
    steps.finish()
    assert [request.reason for request in (parent, fork, urgent)] == ["length"] * 3
