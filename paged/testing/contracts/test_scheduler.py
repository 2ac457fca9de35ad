"""Any scheduler: every request ends with the right answer, within the budget, and repeatably."""

import inspect

import pytest

from paged.interfaces import Scheduler
from paged.schedulers.base import RankScheduler
from paged.testing.engines import answer_all, oracle_engine, ragged_prompts

FUNCTIONS = ("fcfs", "priority", "sjf", "sjf_oracle", "srpt", "mlfq", "edf", "hrrn", "lpm")
BUILT_IN = [
    *(f"paged.schedulers.{name}.rank" for name in FUNCTIONS),
    "paged.schedulers.prefill_first.PrefillFirst",
    "paged.schedulers.vtc.VTC",
    "paged.schedulers.past_future.PastFuture",
]
KNOBS = {"max_num_seqs": 4, "max_num_batched_tokens": 64}


def build(component) -> Scheduler:
    if inspect.isclass(component):
        return component(**KNOBS)
    return RankScheduler(component, **KNOBS)


@pytest.mark.parametrize("num_pages", [64, 11], ids=["plenty", "famine"])
def test_every_request_ends_with_the_right_answer(device, scheduler_component, num_pages):
    engine = oracle_engine(device, scheduler=build(scheduler_component), num_pages=num_pages)
    steps = []
    engine.on_step = steps.append
    answer_all(engine, ragged_prompts(7), num_tokens=12)
    assert max(step.num_tokens for step in steps) <= KNOBS["max_num_batched_tokens"]
    assert max(step.num_seqs for step in steps) <= KNOBS["max_num_seqs"]


def test_the_same_requests_give_the_same_steps(device, scheduler_component):
    runs = []
    for _ in range(2):
        engine = oracle_engine(device, scheduler=build(scheduler_component), num_pages=12)
        steps = []
        engine.on_step = lambda stats, steps=steps: steps.append(
            (stats.num_tokens, stats.num_seqs, stats.free_pages, stats.num_preempted)
        )
        answer_all(engine, ragged_prompts(5), num_tokens=6)
        runs.append(steps)
    assert runs[0] == runs[1]
