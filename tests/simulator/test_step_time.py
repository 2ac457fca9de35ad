"""The model of step times: what it recovers, refuses and keeps."""

import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from paged.simulator.fitting import MeasuredStep, fit, steps_of_run
from paged.simulator.step_time import TIMES, Regime, StepTime, load_step_time


def measured(truth: StepTime, noise: float = 0.0) -> list[MeasuredStep]:
    rng = random.Random(0)
    steps = []
    for _ in range(300):
        seqs = rng.randint(1, 256)
        tokens = seqs + rng.choice((0, 0, 100, 3000))
        keys = seqs * rng.randint(10, 4000)
        beyond = max(0, tokens - truth.free_tokens)
        exact = truth.constant + truth.token * beyond + truth.sequence * seqs + truth.key * keys
        steps.append(MeasuredStep(tokens, seqs, keys, exact * (1 + noise * rng.uniform(-1, 1))))
    return steps


STEPPED = StepTime(
    0.006, token=1.5e-6, sequence=1e-6, key=28e-9,
    regimes=(
        Regime(16, 0.001, 4e-6, 2e-6, 20e-9), Regime(64, 0.0012, 3e-6, 2e-6, 27e-9),
        Regime(256, 0.0019, 4e-6, 2e-6, 28e-9), Regime(512, 0.0025, 5e-6, 1e-6, 28e-9),
        Regime(1024, 0.0035, 3e-6, 1e-6, 30e-9),
    ),
)  # fmt: skip


def in_graphs(
    capacities, truth: StepTime = STEPPED, noise: float = 0.0, seed: int = 1
) -> list[MeasuredStep]:
    """Decodes and steps with prompts; some in a graph that is larger than they need."""
    rng, steps = random.Random(seed), []
    for capacity in capacities:
        for _ in range(200):
            tokens = rng.randint(1, capacity)
            seqs = min(tokens, 256) if rng.random() < 0.6 else rng.randint(1, min(tokens, 64))
            keys = seqs * rng.randint(10, 1000)
            seconds = truth.seconds(tokens, seqs, keys, capacity)
            seconds *= 1 + noise * rng.uniform(-1, 1)
            steps.append(MeasuredStep(tokens, seqs, keys, seconds, capacity))
    return steps


GRAPHS = (16, 64, 256, 512, 1024, 8192)


def test_a_fit_recovers_the_coefficients():
    truth = StepTime(0.004, token=3e-5, sequence=1e-6, key=2e-8, free_tokens=128)
    found = fit(measured(truth), model="m")
    assert (found.free_tokens, found.num_steps, found.model) == (128, 300, "m")
    for name in ("constant", "token", "sequence", "key"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-6)
    assert found.largest_error < 1e-9
    noisy = fit(measured(truth, noise=0.1))
    assert 0.01 < noisy.mean_error < 0.1
    assert noisy.constant == pytest.approx(0.004, rel=0.1)


def test_steps_seen_too_early_hardly_move_the_fit():
    steps = measured(StepTime(0.004, token=3e-5, key=2e-8))
    early = [one._replace(seconds=one.seconds / 10) if at % 100 == 7 else one
             for at, one in enumerate(steps)]  # fmt: skip
    found = fit(early)
    assert found.constant == pytest.approx(0.004, rel=0.05)
    assert found.token == pytest.approx(3e-5, rel=0.05)


@pytest.mark.parametrize("known", [True, False], ids=["graphs", "one line"])
def test_steps_seen_late_hardly_move_the_fit(known):
    truth = STEPPED if known else replace(STEPPED, regimes=())
    steps = [step._replace(capacity=step.capacity * known) for step in in_graphs(GRAPHS, truth)]
    late = [one._replace(seconds=one.seconds + 0.05) if at % 50 == 7 else one
            for at, one in enumerate(steps)]  # fmt: skip
    found = fit(late)
    errors = [
        abs(found.seconds(*step[:3], step.capacity) / step.seconds - 1)
        for step in in_graphs(GRAPHS, truth, seed=2)
    ]
    assert sum(errors) / len(errors) < 0.02
    assert found.mean_error > sum(errors) / len(errors)  # the late ones count there


def test_no_coefficient_is_negative():
    steps = [MeasuredStep(n, n, 100 * n, 0.01 - 1e-5 * n) for n in (1, 50, 100, 200)]
    found = fit(steps)
    assert min(found.token, found.sequence, found.key) >= 0
    assert found.seconds(200, 200, 20000, 256) >= found.seconds(1, 1, 100, 16)


def test_given_coefficients_stay():
    truth = StepTime(0.004, token=3e-5, key=2e-8)
    found = fit(measured(truth), given={"key": 5e-8})
    assert found.key == 5e-8
    assert found.mean_error > 0.01


def test_a_fit_recovers_the_line_of_every_graph():
    found = fit(in_graphs(GRAPHS))
    assert [regime.capacity for regime in found.regimes] == [*GRAPHS]
    assert [regime.num_steps for regime in found.regimes] == [200] * 6
    assert found.mean_error < 0.001
    for ours, theirs in zip(found.regimes, (*STEPPED.regimes, STEPPED)):
        assert ours.constant == pytest.approx(theirs.constant, rel=0.01)
        assert ours.token == pytest.approx(theirs.token, rel=0.01)
    for step in in_graphs(GRAPHS, seed=2):
        assert found.seconds(*step[:3], step.capacity) == pytest.approx(step.seconds, rel=0.01)
    noisy = fit(in_graphs(GRAPHS, noise=0.1))
    assert noisy.mean_error < 0.06
    for ours, theirs in zip(noisy.regimes, STEPPED.regimes):
        assert ours.constant == pytest.approx(theirs.constant, rel=0.1)


def test_one_line_through_all_graphs_is_worse():
    steps = in_graphs(GRAPHS)
    unknown = [step._replace(capacity=0) for step in steps]
    line = fit(unknown)
    assert line.regimes == ()
    assert line.mean_error > 20 * fit(steps).mean_error


@pytest.mark.parametrize("capacity", [16, 64, 8192])
def test_steps_of_one_graph_say_nothing_wild_of_others(capacity):
    found = fit(in_graphs([capacity], noise=0.05))
    full = found.seconds(capacity, min(capacity, 256), 10000, capacity)
    for other in GRAPHS:
        assert found.seconds(1, 1, 10, other) >= found.seconds(1, 1, 10, 16) > 0
        most = max(1, other / capacity)
        assert found.seconds(other, min(other, 256), 10000, other) <= 1.01 * most * full
    assert found.unmeasured == [size for size in GRAPHS[:-1] if size != capacity]


def test_a_graph_without_enough_steps_is_between_its_neighbours():
    steps = in_graphs((16, 64, 1024))
    odd = [MeasuredStep(100, 10, 1000, 9.9, 256)] * 4
    found = fit(steps + odd)
    assert [one.num_steps for one in found.regimes] == [200, 200, 0, 0, 200]
    assert found.unmeasured == [256, 512]
    below, above = found.regimes[1], found
    for between in found.regimes[2:4]:
        share = (between.capacity - 64) / (1024 - 64)
        for name in ("constant", "token"):
            ends = getattr(below, name), getattr(above, name)
            want = ends[0] + share * (ends[1] - ends[0])
            assert getattr(between, name) == pytest.approx(want)
    assert found.largest_error > 0.9  # those steps are counted, though not fitted


def test_a_larger_graph_never_has_a_smaller_constant():
    falling = replace(STEPPED, regimes=(), constant=0.001)
    steps = in_graphs((16, 64), falling) + in_graphs((256,), replace(falling, constant=0.0005))
    found = fit(steps)
    constants = [one.constant for one in found.regimes]
    assert all(after >= before > 0 for before, after in pairwise(constants))


def test_decodes_alone_give_their_time_to_tokens():
    """A prompt's tokens would take no time if all of a decode's were the sequence's."""
    steps = [
        MeasuredStep(n, n, 100 * n, 1e-3 + 4e-6 * n, size)
        for size, lowest in ((16, 1), (64, 17), (256, 65))
        for n in range(lowest, size + 1)
    ]
    found = fit(steps)
    assert found.seconds(2000, 1, 2000) > 1.5 * found.seconds(1, 1, 2000, 8192)


def test_a_step_takes_as_long_as_its_graph():
    assert STEPPED.seconds(1, 1, 10, 16) < STEPPED.seconds(1, 1, 10, 300)
    assert STEPPED.seconds(17, 1, 10) == STEPPED.seconds(17, 1, 10, 64)
    assert STEPPED.femtoseconds(300) == STEPPED.femtoseconds(512)
    assert STEPPED.femtoseconds(1025) == STEPPED.femtoseconds(9000)


def test_a_file_keeps_the_fit_and_its_residuals(tmp_path):
    found = fit(in_graphs(GRAPHS), source="s", kv_bytes_per_token=10)
    found.save(tmp_path / "a.json")
    assert load_step_time(str(tmp_path / "a.json")) == found
    assert len(found.steps) == 32
    assert set(found.steps[0]) == {*MeasuredStep._fields, "fitted_seconds"}


@pytest.mark.parametrize("path", sorted(TIMES.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_fits_say_what_they_are(path):
    shipped = load_step_time(path.stem)
    assert shipped.source
    assert shipped.kv_bytes_per_token > 0
    errors = [abs(s["fitted_seconds"] / s["seconds"] - 1) for s in shipped.steps]
    assert shipped.largest_error == pytest.approx(max(errors))
    for step in shipped.steps:
        sizes = [int(step[name]) for name in ("num_tokens", "num_seqs", "num_keys")]
        capacity = int(step.get("capacity", 0))
        assert shipped.seconds(*sizes, capacity) == pytest.approx(step["fitted_seconds"])


def test_steps_of_a_run_folder(tmp_path):
    lines = [
        {"num_tokens": n, "num_seqs": n, "num_keys": 10 * n, "seconds": n / 10, "other": 1}
        for n in (1, 2, 3)
    ]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert steps_of_run(tmp_path) == [MeasuredStep(2, 2, 20, 0.2), MeasuredStep(3, 3, 30, 0.3)]


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="at least one step"):
        fit([])
    with pytest.raises(ValueError, match="must not be negative"):
        StepTime(-1.0)
    with pytest.raises(ValueError, match="would stand still"):
        StepTime(0.0)
    with pytest.raises(ValueError, match="ascending constants"):
        StepTime(0.001, regimes=(Regime(16, 0.002),))
    with pytest.raises(ValueError, match="ascending capacities"):
        StepTime(0.001, regimes=(Regime(16, 0.001), Regime(16, 0.001)))
    with pytest.raises(ValueError, match="must not be negative"):
        StepTime(0.001, regimes=(Regime(16, 0.001, -1e-6),))
    with pytest.raises(ValueError, match="one of llama"):
        load_step_time("unheard-of")
    with pytest.raises(ValueError, match=r"holds steps\.jsonl"):
        steps_of_run(tmp_path)
    (tmp_path / "steps.jsonl").write_text('{"num_tokens": 1}\n')
    with pytest.raises(ValueError, match="no num_keys"):
        steps_of_run(tmp_path)
