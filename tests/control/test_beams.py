"""Beam search through the control plane: one selection for a group, pages re-pointed, gang draws.

Lockstep runs as in test_lockstep.py: all state of kernels and references is equal after each stage
and the invariants hold after each step. Each search must find the sequences and scores of an
oracle that works on whole lists, exactly, whatever shares the engine with it.
"""

import random

import pytest

from paged.beams import BeamSearchParams
from paged.schedulers.sjf import rank as sjf
from paged.state import RUNNING

PROMPT = [(7 * i * i + 3) % 64 for i in range(80)]
STOPS = (7, 21, 40)
FAMINE = {"num_pages": 9, "max_model_len": 64, "num_slots": 10, "max_num_seqs": 7}
CASES = {
    "plenty": ({}, ()),
    "famine": ({"sizes": FAMINE}, ("num_preempted", "shortfall")),
    "no_prefix_cache": ({"sizes": FAMINE, "prefix_caching": False}, ("num_preempted",)),
    "chunk_5": ({"sizes": FAMINE, "chunk": 5}, ("num_preempted",)),
    "budget_9": ({"sizes": FAMINE, "budget": 9}, ()),
    "watermark": ({"sizes": FAMINE, "watermark": 3}, ("num_waiting",)),
    "static_batch": ({"sizes": FAMINE, "static_batch": True}, ("num_waiting",)),
    "preemptive_famine": (
        {"sizes": FAMINE, "rank": sjf, "preemptive": True},
        ("num_preempted",),
    ),
}


def drive(steps, seed, *, requests=6, aborts=0.0, nans=0.0):
    """Searches of several shapes between samples of other requests, then run to the end."""
    rng = random.Random(seed)
    stems = [[rng.randrange(64) for _ in range(40)] for _ in range(2)]
    submitted = []
    while len(submitted) < requests:
        prompt = rng.choice(stems)[: rng.choice((15, 16, 17, 28))]
        tokens = rng.randrange(1, 21)
        stop_ids = rng.choice(((), STOPS))
        if rng.random() < 0.6:
            params = BeamSearchParams(
                rng.choice((2, 3)),
                tokens,
                early_stopping=rng.random() < 0.5,
                length_penalty=rng.choice((0.0, 0.5, 1.0, 2.0)),
            )
            beams = steps.submit_beams(prompt, params, stop_ids)
            for beam in beams if rng.random() < nans else ():
                beam.nan_at = len(prompt) - 1 + rng.randrange(3)
            submitted.append(beams[0])
        else:
            fields = {"stop_ids": stop_ids, "predicted_len": len(prompt) + tokens}
            submitted += steps.submit_samples(prompt, tokens, rng.randrange(1, 3), **fields)
        if rng.random() < aborts:
            steps.abort(rng.choice(submitted))
        for _ in range(rng.randrange(1, 4)):
            steps.step()
    steps.finish()


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_references(build, case):
    options, happened = CASES[case]
    steps = build(**options)
    drive(steps, seed=8, requests=7)
    for name in ("searches", "num_beam_copies", *happened):
        assert steps.totals[name] > 0, f"no {name} in this case"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [3, 4])
def test_any_traffic_finds_the_best(build, case, seed):
    steps = build(by="references", **CASES[case][0])
    drive(steps, seed, requests=12, aborts=0.2 * (seed % 2), nans=0.2 * (seed % 2))
    assert steps.totals["searches"] > 2


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("length", "early_stopping", "penalty"), [
    (1, True, 1.0), (2, False, 0.5), (16, True, 0.0), (33, False, 2.0), (40, False, 1.0)
])  # fmt: skip
def test_widths_lengths_and_penalties(build, width, length, early_stopping, penalty):
    sizes = {"num_slots": 16, "max_num_seqs": 16, "num_pages": 80}
    steps = build(by="references", sizes=sizes)
    params = BeamSearchParams(width, 20, early_stopping=early_stopping, length_penalty=penalty)
    steps.submit_beams(PROMPT[:length], params, STOPS[: length % 4])
    steps.finish()
    assert steps.totals["searches"] == 1


def test_beams_draw_together_and_share_full_pages(build):
    steps = build(sizes={"num_slots": 4})
    beams = steps.submit_beams(PROMPT[:40], BeamSearchParams(3, 30))
    requests, pool = steps.state.requests, steps.state.pool
    slots, shared = None, []
    while beams[0].reason is None:
        steps.step()
        slots = [beam.slot for beam in beams]
        lengths = requests.total_len[slots].tolist()
        assert len(set(lengths)) == 1, "all beams have drawn as many tokens"
        if requests.status[slots].tolist() == [RUNNING] * 3:
            held = requests.block_table[slots][:, : int(requests.num_pages[slots[0]])]
            shared.append(held.numel() - len(held.unique()))
            assert int((pool.ref_count > 0).sum()) == len(held.unique())
    assert min(shared) >= 4, "two full pages of the prompt, each held by two more beams"
    assert max(shared) > 4, "and pages of the output that beams have in common"
    steps.finish()


def test_only_the_prompt_is_published(build):
    steps = build()
    steps.submit_beams(PROMPT[:32], BeamSearchParams(3, 40))
    steps.finish()
    assert int((steps.state.pool.serial > 0).sum()) == 2


def test_an_abort_or_nan_ends_the_whole_group(build):
    steps = build()
    aborted = steps.submit_beams(PROMPT[:20], BeamSearchParams(2, 30))
    sick = steps.submit_beams(PROMPT[20:40], BeamSearchParams(2, 30))
    sick[1].nan_at = 30
    for _ in range(5):
        steps.step()
    steps.abort(aborted[1])
    steps.finish()
    assert [beam.reason for beam in (*aborted, *sick)] == ["abort"] * 2 + ["error"] * 2
