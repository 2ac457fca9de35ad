"""Synthetic workloads: moments, arrivals, and what is shared."""

import numpy as np
import pytest

from paged.workloads.arrivals import arrival_times, lengths
from paged.workloads.synthetic import Synthetic


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("mean", "cv"), [(161.31, 2.0), (337.99, 0.8), (19.31, 0.6), (58.45, 1)])
def test_lengths_have_the_published_means(mean, cv):
    drawn = lengths(rng(), 40_000, mean, cv, 2048)
    error = drawn.std() / 200
    assert abs(drawn.mean() - mean) < 4 * error
    assert drawn.min() >= 1
    assert drawn.max() <= 2048
    assert (lengths(rng(), 3, 40.0, 0.0, 2048) == 40).all()


def test_arrivals_are_as_bursty_as_asked():
    def gaps(cv):
        return np.diff(arrival_times(rng(), 20_000, rate=4.0, cv=cv))

    for cv in (0.0, 0.5, 1.0, 3.0):
        drawn = gaps(cv)
        assert drawn.mean() == pytest.approx(0.25, rel=0.1)
        assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.1, abs=1e-9)
    assert (arrival_times(rng(), 5, rate=None) == 0).all()


def test_bursts_come_in_their_windows_and_keep_the_rate():
    times = arrival_times(rng(), 20_000, rate=4.0, bursts=[2.0, 8.0])
    assert (times % 10 <= 2).all()
    assert times[-1] == pytest.approx(5000, rel=0.1)


def test_system_prompts_are_shared_and_skewed():
    trace = Synthetic(num_requests=400, system_prompts=4, system_len=100)
    heads = [tuple(request.prompt_token_ids()[:100]) for request in trace]
    uses = sorted((heads.count(head) for head in set(heads)), reverse=True)
    assert len(uses) == 4
    assert uses[0] > 2 * uses[3]
    tails = {tuple(request.prompt_token_ids()[100:103]) for request in trace}
    assert len(tails) > 350


def test_turns_repeat_their_session():
    trace = Synthetic(num_requests=500, turns=4.0, rate=5.0, think=1.0)
    assert len(trace) == 500
    answers = {request.output: request for request in trace}
    later = [request for request in trace if len(request.spans) > 1]
    assert 250 < len(later) < 450
    for request in later:
        before = answers[request.spans[-2][0]]
        said = np.concatenate([before.prompt_token_ids(), before.output_token_ids()])
        assert (request.prompt_token_ids()[: len(said)] == said).all()
        assert request.arrival > before.arrival


def test_the_rate_changes_no_length():
    def pairs(trace):
        return sorted((request.output, request.prompt_len, request.output_len) for request in trace)

    assert pairs(Synthetic(num_requests=50, rate=1.0)) == pairs(
        Synthetic(num_requests=50, rate=9.0)
    )
    assert pairs(Synthetic(num_requests=50)) != pairs(Synthetic(num_requests=50, seed=1))


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_requests", 0), ("rate", 0.0), ("cv", -1.0), ("bursts", [0.0, 1.0]), ("turns", 0.5),
     ("input_mean", 0.5), ("output_cv", -1.0)],
)  # fmt: skip
def test_keys_out_of_range_are_refused(key, value):
    with pytest.raises(ValueError, match="workload"):
        Synthetic(**{key: value})
