"""A few seconds of the soak experiment, on a model whose every answer is known."""

import importlib.util
import sys
from pathlib import Path

import pytest

from paged.testing.engines import VOCAB_SIZE, oracle_engine

SCRIPT = Path(__file__).parents[1] / "experiments" / "soak" / "run.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak_run"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak_run"]


def make(soak, device: str, reference=None):
    engine = oracle_engine(
        device, in_flight=2, num_pages=3, num_slots=6, max_num_seqs=4, max_model_len=48,
        rings={"depth": 4, "max_commands": 2, "prompt_capacity": 48},
    )  # fmt: skip

    def answers(requests):
        return [
            (engine.model.continuation(live.output.prompt_token_ids, live.params.max_tokens), [])
            for live in requests
        ]

    return soak.Soak(
        engine, reference or answers, VOCAB_SIZE, False, seed=3, check_every=7, sample=1.0,
        max_live=6, weather_steps=20,
        weathers=(soak.Weather("famine", submits=1.0, abort=0.1, longest=0.49),),
    )  # fmt: skip


def test_a_short_soak_holds(soak, device):
    run = make(soak, device)
    wanted = ("length", "abort", "preempted", "checks", "compared")
    for _ in range(5):
        run.run(seconds=60.0, max_rounds=1)
        if all(run.counts[name] for name in wanted):
            break
    assert all(run.counts[name] for name in wanted), f"too quiet: {run.summary()}"
    assert run.counts["length"] + run.counts["abort"] == run.counts["submitted"]


def test_a_soak_finds_wrong_tokens(soak, device):
    run = make(soak, device, reference=lambda requests: [([-1] * 48, []) for _ in requests])
    with pytest.raises(AssertionError, match="has other tokens"):
        run.run(seconds=60.0, max_rounds=1)


def test_a_soak_finds_a_lost_token(soak, device):
    run = make(soak, device)
    apply = run.engine.ledger.apply

    def forgetful(report, *args):
        touched = apply(report, *args)
        if touched and run.counts["steps"] > 5:
            touched[0].token_ids.pop()
        return touched

    run.engine.ledger.apply = forgetful
    with pytest.raises(AssertionError, match=r"tokens in a step|num_output_tokens"):
        run.run(seconds=60.0, max_rounds=1)
