"""The engine's side of the protocol: steps in flight, tiny rings, wrong guesses, a lost device."""

import random
import time
from collections import deque

import pytest

from paged.beams import BeamSearchParams
from paged.graphs import EagerSteps, GraphSteps
from paged.request import SamplingParams
from paged.testing.engines import answer_all, oracle_engine, ragged_prompts, run_to_end

TINY = {"depth": 4, "max_commands": 2, "prompt_capacity": 160}


class LateDevice:
    """Runs a launched step no earlier than the host asks whether the device is done.

    So commands are read long after they were written, and a step's events come long after its
    launch, as on a GPU; in the interpreter a launch is over when it returns.
    """

    def __init__(self, engine) -> None:
        self.steps, engine.steps = engine.steps, self
        self.stream = engine._stream()
        engine._stream = lambda: self  # what the host asks
        self.pending = deque()
        self.most_in_flight = 0

    def run(self, *args) -> None:
        self.pending.append((self.steps.run, args))
        in_flight = sum(call == self.steps.run for call, _ in self.pending)
        self.most_in_flight = max(self.most_in_flight, in_flight)

    def maintain(self) -> None:
        self.pending.append((self.steps.maintain, ()))

    def query(self) -> bool:
        if self.pending:
            call, args = self.pending.popleft()
            call(*args)
            return False
        return self.stream is None or self.stream.query()


class DeadDevice:
    """Takes steps and never says anything again."""

    def __init__(self, engine, error: str | None = None) -> None:
        engine.steps, engine._stream = self, lambda: self
        self.error = error

    def run(self, *args) -> None:
        pass

    def query(self) -> bool:
        if self.error is not None:
            raise RuntimeError(self.error)
        return False


class Graphs(GraphSteps):
    """Graphs for a device that has none: what was captured is launched from Python."""

    def __init__(self, engine) -> None:
        self.step, self.capacities = engine.device_step, engine.capacities
        self.eager, self.takes_beams = EagerSteps(self.step), False

    def capture(self, beams: bool) -> None:
        self.takes_beams = beams

    def run(self, *args) -> None:
        self.eager.run(*args)

    def maintain(self) -> None:
        self.eager.maintain()


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_beams_wait_for_their_graphs_until_nothing_runs_and_no_longer(device, in_flight):
    engine = oracle_engine(device, in_flight=in_flight)
    engine.steps = Graphs(engine)
    company = engine.submit([3, 1, 4, 1], SamplingParams(max_tokens=5, temperature=0))
    search = engine.submit_beams([2, 7, 1], BeamSearchParams(2, 4, ignore_eos=True))
    behind = engine.submit([6, 2, 8], SamplingParams(max_tokens=5, temperature=0))
    for _ in range(40):
        engine.step()
    for live in (company, search, behind):
        assert live.output.finished
    engine.ledger.check_empty()


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_tiny_rings_that_wrap_change_nothing(device, in_flight):
    engine = oracle_engine(device, in_flight=in_flight, rings=TINY, num_pages=16)
    late = LateDevice(engine)
    prompts = ragged_prompts(7)
    answer_all(engine, prompts, num_tokens=14)
    assert late.most_in_flight == in_flight
    assert engine.num_steps > 4 * TINY["depth"]
    assert engine.mailbox._written > TINY["prompt_capacity"]
    engine.ledger.check_empty()


@pytest.mark.parametrize("in_flight", [1, 3])
def test_steps_cross_the_end_of_the_tags(device, in_flight):
    """A tag has 16 bits: the device counts on, the host must go with it."""
    engine = oracle_engine(device, in_flight=in_flight, rings=TINY)
    engine.num_steps = (1 << 16) - 5
    engine.pool.counters[3] = engine.num_steps  # STEP
    answer_all(engine, ragged_prompts(2), num_tokens=10)
    assert engine.num_steps > 1 << 16


def test_a_host_that_reads_nothing_stops_the_engine_and_loses_nothing(device):
    engine = oracle_engine(device, in_flight=3, rings=TINY)
    late = LateDevice(engine)
    prompts = ragged_prompts(4)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    live = [engine.submit(prompt, params) for prompt in prompts]
    engine.step()
    launched = engine.num_steps
    while late.pending:  # the device runs all it has been given, nobody reads
        late.query()
    assert (engine.num_steps, late.most_in_flight) == (launched, 3)
    run_to_end(engine)
    for request, prompt in zip(live, prompts):
        assert request.token_ids == engine.model.continuation(prompt, 8)


@pytest.mark.parametrize("guess", ["too_small", "too_large", "random"])
def test_any_guess_of_the_capacity_is_safe(device, guess):
    engine = oracle_engine(device, in_flight=2, num_pages=14, max_num_batched_tokens=64)
    assert engine.capacities == (16, 64)
    LateDevice(engine)
    rng, steps = random.Random(3), []
    choose = {
        "too_small": lambda: 3,  # even below every capacity there is, and below the rows that run
        "too_large": lambda: 64,
        "random": lambda: rng.choice([1, 5, 16, 64]),
    }[guess]
    engine.guess_capacity = lambda: (choose(), rng.randrange(100))
    engine.on_step = steps.append
    answer_all(engine, ragged_prompts(5), num_tokens=6 if guess == "too_small" else 10)
    assert all(stats.num_tokens <= stats.capacity for stats in steps)
    if guess != "too_large":
        assert any(stats.num_tokens == stats.capacity for stats in steps), "nothing was clamped"


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_pages_of_an_aborted_request_are_free_a_few_steps_later(device, in_flight):
    engine = oracle_engine(device, in_flight=in_flight)
    LateDevice(engine)
    used = []
    engine.on_step = lambda stats: used.append(64 - stats.free_pages - stats.cached_pages)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    stays = engine.submit([1] * 5, params)
    goes = engine.submit([2] * 70, params)
    while not goes.token_ids:
        engine.step()
    assert used[-1] == 6
    engine.abort(goes.output.request_id)
    engine.abort(goes.output.request_id)  # once more does nothing
    count = 0
    while used[-1] > 2:  # a page of the other, and the one it may just have begun
        engine.step()
        count += 1
    assert count <= in_flight + 1
    assert goes.output.finished
    assert not stays.output.finished
    run_to_end(engine)
    assert stays.token_ids == engine.model.continuation([1] * 5, 20)


def test_a_slow_reader_of_steps_loses_nothing(device):
    answers = []
    for pause in (0.0, 0.1):
        engine = oracle_engine(device, in_flight=2)
        LateDevice(engine)
        engine.on_step = lambda stats, pause=pause: time.sleep(pause)
        live = answer_all(engine, ragged_prompts(4), num_tokens=5)
        answers.append([(request.token_ids, request.logprobs) for request in live])
    assert answers[0] == answers[1]


def test_without_a_request_nothing_is_launched(device):
    engine = oracle_engine(device, in_flight=2)
    late = LateDevice(engine)
    assert engine.step() == []
    answer_all(engine, ragged_prompts(1), num_tokens=2)
    done = engine.num_steps
    for _ in range(5):
        assert engine.step() == []
    assert engine.num_steps == done
    assert not late.pending
    assert not engine._flights
    live = engine.submit([1], SamplingParams())
    engine.abort(live.output.request_id)
    assert live.output.finished
    assert engine.step() == []
    assert engine.num_steps == done


def test_more_aborts_and_submits_than_a_step_takes(device):
    engine = oracle_engine(device, in_flight=2, rings=TINY)
    LateDevice(engine)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    live = [engine.submit(prompt, params) for prompt in ragged_prompts(12)]
    for _ in range(6):
        engine.step()
    assert sum(request.slot >= 0 for request in live) > 2 * TINY["max_commands"]
    for request in live[:9]:
        engine.abort(request.output.request_id)
    run_to_end(engine)
    reasons = [request.output.outputs[0].finish_reason for request in live]
    assert set(reasons[:9]) == {"abort"}
    assert reasons[9:] == ["length"] * 3
    engine.ledger.check_empty()


def test_the_watchdog_names_what_is_lost(device):
    engine = oracle_engine(device, in_flight=2, watchdog_seconds=0.2)
    DeadDevice(engine)
    engine.submit([1, 2, 3], SamplingParams(), request_id="mine")
    message = (
        r"step 0 reported nothing for 0\.2 s\nlost step 0 with capacity 16; steps in flight: "
        r"0 \(capacity 16\), 1 \(capacity 16\); requests on the device: 1 \(mine\)"
    )
    with pytest.raises(RuntimeError, match=message):
        engine.step()
    with pytest.raises(RuntimeError, match=r"the engine has stopped: step 0 reported nothing"):
        engine.step()
    with pytest.raises(ValueError, match="watchdog_seconds must be positive"):
        oracle_engine(device, watchdog_seconds=0.0)


def test_an_error_of_the_device_is_told_as_it_is(device):
    engine = oracle_engine(device, in_flight=2)
    DeadDevice(engine, error="CUDA error: an illegal memory access was encountered")
    engine.submit([1, 2, 3], SamplingParams())
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="CUDA error: an illegal memory access") as caught:
        engine.step()
    assert time.monotonic() - began < 5
    assert "lost step 0 with capacity 16" in str(caught.value)


def test_a_step_that_cannot_be_launched_stops_the_engine(device):
    engine = oracle_engine(device)

    def run(*args):
        raise ValueError("rank must return an int")

    engine.steps.run = run
    engine.submit([1, 2, 3], SamplingParams())
    with pytest.raises(ValueError, match="rank must return an int"):
        engine.step()
    with pytest.raises(RuntimeError, match="step 0 could not be launched: rank must return"):
        engine.step()
