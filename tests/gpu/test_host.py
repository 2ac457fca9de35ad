"""The host's side of the graph engine on a GPU: pauses, slow readers, aborts, a lost device."""

import random
import subprocess
import sys
import time

import pytest
import torch

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler

pytestmark = pytest.mark.gpu

CUDA_ERROR = """
import torch
from paged.llm import LLM
from paged.request import SamplingParams
llm = LLM(engine="graph", max_model_len=64)
llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4))
llm.submit([1, 2, 3], SamplingParams(max_tokens=40))
llm.engine.step()
torch.zeros(4, device="cuda")[torch.tensor([10**6], device="cuda")]  # an assertion on the device
try:
    while llm.engine.has_unfinished:
        llm.engine.step()
except RuntimeError as error:
    print("SURFACED", type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(
        engine="graph",
        kv=PagedKV(num_pages=128, prefix_caching=False),
        scheduler=RankScheduler(max_num_seqs=8, max_num_batched_tokens=256),
        max_model_len=256,
        num_slots=16,
    )


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2000) for _ in range(rng.randrange(1, 60))] for _ in range(count)]


def answers(llm: LLM) -> list[tuple[list[int], list[float]]]:
    params = [
        SamplingParams(max_tokens=60, temperature=0.8 * (index % 2), seed=index, ignore_eos=True)
        for index in range(12)
    ]
    outputs = llm.generate(prompts(12), params)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


def test_a_pause_of_two_seconds_loses_nothing(llm):
    expected = answers(llm)
    steps = []

    def on_step(stats) -> None:
        steps.append(stats)
        if len(steps) == 30:
            time.sleep(2)

    llm.engine.on_step = on_step
    try:
        began = time.monotonic()
        assert answers(llm) == expected
    finally:
        llm.engine.on_step = None
    assert time.monotonic() - began >= 2
    assert len(steps) > 60


def test_pages_of_an_aborted_request_are_free_a_few_steps_later(llm):
    engine, used = llm.engine, []
    engine.on_step = lambda stats: used.append(128 - stats.free_pages - stats.cached_pages)
    try:
        stays = llm.submit([1] * 5, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
        goes = llm.submit([2] * 150, SamplingParams(max_tokens=90, ignore_eos=True))
        while not goes.token_ids:
            engine.step()
        assert used[-1] >= 11
        llm.abort(goes.output.request_id)
        began = len(used)
        while used[-1] > 3:
            engine.step()
        assert len(used) - began <= engine.in_flight + 1
        assert not stays.output.finished
        while engine.has_unfinished:
            engine.step()
        assert len(stays.token_ids) == 40
    finally:
        engine.on_step = None


def test_waiting_for_the_device_leaves_the_core_alone(llm):
    """The device takes a second; the host, who asks for its events, sleeps for most of it."""
    llm.submit([1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True))
    torch.cuda.synchronize()
    torch.cuda._sleep(int(2e9))
    cpu, began = time.thread_time(), time.perf_counter()
    while llm.engine.has_unfinished:
        llm.engine.step()
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - began
    assert wall > 0.5
    assert cpu < 0.5 * wall


def test_a_hung_device_is_told():
    llm = LLM(engine="graph", max_model_len=64)
    llm.engine.watchdog_seconds = 0.2
    llm.submit([1, 2, 3], SamplingParams(max_tokens=5), request_id="mine")
    torch.cuda._sleep(int(4e9))
    with pytest.raises(RuntimeError, match=r"reported nothing for 0\.2 s\n.*in flight.*mine"):
        llm.engine.step()
    torch.cuda.synchronize()


def test_a_cuda_error_surfaces_as_itself():
    done = subprocess.run(
        [sys.executable, "-c", CUDA_ERROR], capture_output=True, text=True, timeout=120
    )
    assert "SURFACED" in done.stdout, done.stderr
    assert "device-side assert" in done.stdout
