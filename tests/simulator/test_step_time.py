"""The model of step times: what it recovers, refuses and keeps."""

import json
import random

import pytest

from paged.simulator.step_time import (
    TIMES,
    MeasuredStep,
    StepTime,
    fit,
    load_step_time,
    steps_of_run,
)


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


def test_no_coefficient_is_negative():
    steps = [MeasuredStep(n, n, 100 * n, 0.01 - 1e-5 * n) for n in (1, 50, 100, 200)]
    found = fit(steps)
    assert min(found.token, found.sequence, found.key) >= 0
    assert found.seconds(200, 200, 20000) >= found.seconds(1, 1, 100)


def test_given_coefficients_stay():
    truth = StepTime(0.004, token=3e-5, key=2e-8)
    found = fit(measured(truth), given={"key": 5e-8})
    assert found.key == 5e-8
    assert found.mean_error > 0.01


def test_a_file_keeps_the_fit_and_its_residuals(tmp_path):
    found = fit(measured(StepTime(0.004, token=3e-5)), source="s", kv_bytes_per_token=10)
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
        assert shipped.seconds(*sizes) == pytest.approx(step["fitted_seconds"])


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
    with pytest.raises(ValueError, match="one of llama"):
        load_step_time("unheard-of")
    with pytest.raises(ValueError, match=r"holds steps\.jsonl"):
        steps_of_run(tmp_path)
    (tmp_path / "steps.jsonl").write_text('{"num_tokens": 1}\n')
    with pytest.raises(ValueError, match="no num_keys"):
        steps_of_run(tmp_path)
