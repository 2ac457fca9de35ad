"""Several outputs of one request (`n`): one prefill, one result, a stream of draws for each."""

from dataclasses import replace

import pytest

from paged.kv.contiguous_max import reserve_len as whole_model_length
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.submission import sample_seed
from paged.testing.engines import oracle_engine, ragged_prompts, run_to_end

OPENING = "Once upon a time there was a little dog named Max. Max loved to play in the park. "
PROMPTS = [OPENING + "One day", "The girl"]


def sample_all(engine, prompts, num_tokens, n):
    """Run all prompts at once; every output must be the oracle's, which draws alike for all."""
    params = SamplingParams(n=n, max_tokens=num_tokens, ignore_eos=True)
    requests = [engine.submit(prompt, params) for prompt in prompts]
    run_to_end(engine)
    for request, prompt in zip(requests, prompts):
        assert [one.index for one in request.output.outputs] == list(range(n))
        for one in request.output.outputs:
            assert one.finish_reason == "length"
            assert one.token_ids == engine.model.continuation(prompt, num_tokens)
        assert request.output.metrics.num_output_tokens == n * num_tokens
    engine.ledger.check_empty()
    return requests


def test_no_prompt_is_computed_twice(device):
    engine = oracle_engine(device)
    computed = []
    engine.on_step = lambda stats: computed.append(stats.num_tokens)
    prompts = ragged_prompts(7)[3:]
    sample_all(engine, prompts, 10, n=4)
    assert sum(computed) == sum(len(prompt) - 1 + 4 * 10 for prompt in prompts)


@pytest.mark.parametrize("in_flight", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_famine_preempts_and_changes_nothing(device, in_flight):
    engine = oracle_engine(device, num_pages=11, in_flight=in_flight)
    requests = sample_all(engine, ragged_prompts(5), 40, n=3)
    assert sum(request.output.metrics.num_preemptions for request in requests) > 0


def test_each_output_has_its_own_stretch_of_memory_where_stretches_are_reserved(device):
    kv = PagedKV(page_size=16, reserve_len=whole_model_length, prefix_caching=False)
    engine = oracle_engine(device, num_pages=30, kv=kv)
    copies = []
    engine.on_step = lambda stats: copies.append(int(engine.device_step.plan.num_copies))
    sample_all(engine, ragged_prompts(3), 8, n=2)
    assert sum(copies) == 0


def test_a_request_waits_for_as_many_slots_as_it_has_outputs(device):
    engine = oracle_engine(device, num_slots=4, max_num_seqs=4)
    first = engine.submit([1] * 20, SamplingParams(n=2, max_tokens=12))
    second = engine.submit([2] * 20, SamplingParams(n=3, max_tokens=4))
    engine.step()
    assert [one.slot >= 0 for one in (*first.group, *second.group)] == [True] * 2 + [False] * 3
    run_to_end(engine)
    assert all(one.finish_reason == "length" for one in second.output.outputs)


def test_more_outputs_than_commands_of_a_step(device):
    sample_all(oracle_engine(device, rings={"max_commands": 3}), ragged_prompts(3), 4, n=8)


def test_abort_ends_all_outputs_wherever_they_are(device):
    engine = oracle_engine(device, num_slots=4, max_num_seqs=2)
    params = SamplingParams(n=4, max_tokens=100)
    running, queued = (engine.submit([token] * 40, params) for token in (1, 2))
    for _ in range(3):
        engine.step()
    for request in (running, queued):
        engine.abort(request.output.request_id)
    run_to_end(engine)
    for request in (running, queued):
        assert [one.finish_reason for one in request.output.outputs] == ["abort"] * 4
        assert request.output.finished


def test_an_output_that_ends_early_leaves_the_others(device):
    engine = oracle_engine(device)
    request = engine.submit([1] * 40, SamplingParams(n=3, max_tokens=20, ignore_eos=True))
    while len(request.token_ids) < 2:
        engine.step()
    engine.stop(request.group[1], 2, "a stop string")
    engine.stop(request.group[1], 2, "a stop string")
    run_to_end(engine)
    reasons = [one.finish_reason for one in request.output.outputs]
    assert reasons == ["length", "stop", "length"]
    assert [len(one.token_ids) for one in request.output.outputs] == [20, 2, 20]
    assert request.output.metrics.num_output_tokens == 42


def test_refusals(device):
    for fields, rule in (
        ({"n": 0}, "n must be at least 1"),
        ({"n": 2, "temperature": 0}, "n must"),
        ({"n": 2, "best_of": 1}, r"best_of must be at least n \(2\), got 1"),
        ({"best_of": 2, "temperature": 0}, "best_of must be 1 with temperature=0"),
    ):
        with pytest.raises(ValueError, match=rule):
            SamplingParams(**fields)
    engine = oracle_engine(device, num_slots=4, max_num_seqs=2)
    with pytest.raises(ValueError, match=r"n must be at most num_slots \(4\)"):
        engine.submit([1], SamplingParams(n=5))
    assert not engine.has_unfinished


def test_best_of_keeps_the_outputs_with_the_best_mean_logprob(device):
    llm = LLM(
        scheduler=RankScheduler(max_num_seqs=4, max_num_batched_tokens=64),
        kv=PagedKV(num_pages=16), max_model_len=48,
    )  # fmt: skip
    params = SamplingParams(n=4, temperature=1.2, seed=6, max_tokens=6, stop=[" a"])
    (every,) = llm.generate(PROMPTS[1], params)
    (output,) = llm.generate(PROMPTS[1], replace(params, n=2, best_of=4))
    best = sorted(every.outputs, key=lambda one: -sum(one.logprobs) / len(one.logprobs))[:2]
    assert output.outputs == best
    assert best != every.outputs[:2]
    assert output.metrics.num_output_tokens == sum(len(one.token_ids) for one in every.outputs)


def test_seeds_of_the_outputs():
    seeds = [sample_seed(seed, index) for seed in (-1, 0, 1) for index in range(100)]
    assert seeds[::100] == [-1, 0, 1]
    assert len(set(seeds)) == len(seeds)
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def make_llm(**knobs) -> LLM:
    num_pages = knobs.pop("num_pages", 64)
    knobs = {"max_num_seqs": 16, "max_num_batched_tokens": 256, "watermark": 0.0} | knobs
    return LLM(
        dtype="float32", kv=PagedKV(page_size=16, num_pages=num_pages), max_model_len=128,
        scheduler=RankScheduler(**knobs), num_slots=16,
    )  # fmt: skip


def test_draws_of_the_model(device):
    params = SamplingParams(n=3, temperature=0.9, seed=11, max_tokens=12, ignore_eos=True)
    llm = make_llm()
    outputs = [[one.token_ids for one in request.outputs] for request in
               llm.generate(PROMPTS, params)]  # fmt: skip
    assert all(len({tuple(tokens) for tokens in three}) == 3 for three in outputs)
    alone = make_llm().generate(PROMPTS, SamplingParams(
        temperature=0.9, seed=11, max_tokens=12, ignore_eos=True))  # fmt: skip
    assert [request.outputs[0].token_ids for request in alone] == [three[0] for three in outputs]
    starved = make_llm(num_pages=4, chunk=7)
    preempted = []
    starved.engine.on_step = lambda stats: preempted.append(stats.num_preempted)
    again = starved.generate(PROMPTS, params)
    assert [[one.token_ids for one in request.outputs] for request in again] == outputs
    assert sum(preempted) > 0


def test_text_streams_and_stop_strings(device):
    llm = make_llm()
    params = SamplingParams(n=3, temperature=0.9, seed=11, max_tokens=12, ignore_eos=True)
    (whole,) = llm.generate(PROMPTS[0], params)
    texts = [one.text for one in whole.outputs]
    stop = texts[1][3:6]
    params.stop = stop
    grown = [""] * 3
    for update in llm.stream(PROMPTS[0], params):
        for one in update.outputs:
            assert one.text.startswith(grown[one.index])
            grown[one.index] = one.text
    assert update.finished
    assert grown == [text[: text.find(stop)] if stop in text else text for text in texts]
    assert update.outputs[1].stop_reason == stop
    assert not len(llm._texts)
