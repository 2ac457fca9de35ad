"""The engine around a model whose answers are known: paging, sharing, chunking, preemption."""

import pytest

from paged.kv.contiguous_max import reserve_len as whole_model_length
from paged.kv.paged import PagedKV
from paged.request import SamplingParams
from paged.schedulers.priority import rank as priority
from paged.testing.engines import answer_all, oracle_engine, ragged_prompts, run_to_end


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_answers_do_not_depend_on_chunking(device, chunk):
    engine = oracle_engine(device, chunk=chunk)
    answer_all(engine, ragged_prompts(5 if chunk == 1 else 10), num_tokens=8)


def test_famine_preempts_and_changes_nothing(device):
    engine = oracle_engine(device, num_pages=11)
    live = answer_all(engine, ragged_prompts(8), num_tokens=40)
    assert sum(request.output.metrics.num_preemptions for request in live) > 0


@pytest.mark.parametrize("in_flight", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_steps_launched_ahead_change_nothing(device, in_flight):
    engine = oracle_engine(device, num_pages=11, in_flight=in_flight, num_slots=4, max_num_seqs=4)
    live = answer_all(engine, ragged_prompts(7)[3:], num_tokens=60)
    assert sum(request.output.metrics.num_preemptions for request in live) > 0
    gone = [engine.submit(prompt, SamplingParams(max_tokens=60)) for prompt in ragged_prompts(6)]
    for _ in range(3):
        engine.step()
    for request in gone[:4]:
        engine.abort(request.output.request_id)
    run_to_end(engine)
    reasons = [request.output.outputs[0].finish_reason for request in gone]
    assert reasons == ["abort"] * 4 + ["length"] * 2


def test_shared_prefixes_are_found(device):
    engine = oracle_engine(device)
    answer_all(engine, ragged_prompts(3, shared=48), num_tokens=4)
    live = answer_all(engine, ragged_prompts(3, seed=0, shared=48), num_tokens=4)
    assert all(request.output.metrics.num_cached_tokens >= 48 for request in live)


def test_cached_pages_are_evicted_for_new_requests(device):
    engine = oracle_engine(device, num_pages=16)
    for seed in range(6):
        answer_all(engine, ragged_prompts(3, seed=seed), num_tokens=4)


def test_contiguous_max_holds_the_whole_length(device):
    kv = PagedKV(page_size=16, reserve_len=whole_model_length, prefix_caching=False)
    engine = oracle_engine(device, num_pages=30, kv=kv)
    held = []
    engine.on_step = lambda stats: held.append(
        (stats.num_running, 30 - stats.free_pages - stats.cached_pages)
    )
    answer_all(engine, ragged_prompts(5), num_tokens=8)
    assert max(pages for _, pages in held) == 30
    assert all(running <= 3 for running, _ in held)


def test_static_batch_runs_to_completion(device):
    engine = oracle_engine(device, max_num_seqs=2, static_batch=True)
    running = []
    engine.on_step = lambda stats: running.append((stats.num_admitted, stats.num_running))
    answer_all(engine, ragged_prompts(6), num_tokens=5)
    admitted = [admitted for admitted, _ in running if admitted]
    assert admitted == [2, 2, 2]


def test_priority_preempts_the_running(device):
    engine = oracle_engine(device, num_pages=12, max_model_len=176, rank=priority, preemptive=True)
    low = engine.submit([1] * 60, SamplingParams(max_tokens=80, priority=5))
    for _ in range(4):
        engine.step()
    high = engine.submit([2] * 120, SamplingParams(max_tokens=10, priority=1))
    run_to_end(engine)
    assert low.output.metrics.num_preemptions >= 1
    assert high.output.metrics.finished_time < low.output.metrics.finished_time
    assert low.output.outputs[0].token_ids == engine.model.continuation([1] * 60, 80)


def test_more_requests_than_slots_queue_on_the_host(device):
    engine = oracle_engine(device, num_slots=3, max_num_seqs=2)
    answer_all(engine, ragged_prompts(9), num_tokens=3)


def test_a_nan_row_ends_alone(device):
    prompts = ragged_prompts(4)
    sick = [3] * 20 + [63]
    engine = oracle_engine(device, nan_after=[63])
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    live = [engine.submit(prompt, params) for prompt in prompts]
    ill = engine.submit(sick, params)
    run_to_end(engine)
    assert ill.output.outputs[0].finish_reason == "error"
    assert "NaN" in ill.output.error
    for request, prompt in zip(live, prompts):
        if prompt[-1] != 63:
            assert request.output.outputs[0].token_ids == engine.model.continuation(prompt, 1)
    again = engine.submit(sick, params)
    run_to_end(engine)
    assert again.output.metrics.num_cached_tokens == 0


def test_aborted_requests_free_their_pages(device):
    engine = oracle_engine(device)
    live = [engine.submit(prompt, SamplingParams(max_tokens=100)) for prompt in ragged_prompts(10)]
    engine.step()
    for request in live[::2]:
        engine.abort(request.output.request_id)
    engine.abort("nobody")
    run_to_end(engine)
    for request in live[::2]:
        assert request.output.outputs[0].finish_reason == "abort"
    for request in live[1::2]:
        assert request.output.outputs[0].finish_reason == "length"


def test_stop_tokens_and_min_tokens(device):
    prompt = [7] * 20
    engine = oracle_engine(device)
    expected = engine.model.continuation(prompt, 12)
    stop = expected[5]
    first = expected.index(stop)
    live = engine.submit(prompt, SamplingParams(max_tokens=12, stop_token_ids=[stop]))
    run_to_end(engine)
    assert live.output.outputs[0].token_ids == expected[: first + 1]
    assert live.output.outputs[0].finish_reason == "stop"
    # Until min_tokens the stop token cannot be drawn: the answer leaves the oracle's there.
    params = SamplingParams(max_tokens=12, min_tokens=first + 1, stop_token_ids=[stop])
    live = engine.submit(prompt, params)
    run_to_end(engine)
    assert live.output.outputs[0].token_ids[:first] == expected[:first]
    assert live.output.outputs[0].token_ids[first] != stop


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], SamplingParams(), "at least one token"),
        ([1] * 160, SamplingParams(), "shorter than max_model_len"),
        ([64], SamplingParams(), "vocabulary"),
        ([1] * 100, SamplingParams(max_tokens=60), "kv.num_pages"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(device, prompt, params, message):
    engine = oracle_engine(device, num_pages=9)
    with pytest.raises(ValueError, match=message):
        engine.submit(prompt, params)
    answer_all(engine, ragged_prompts(2), num_tokens=2)
