"""Decoding modes while pages are short and rows are preempted: the answers are those of plenty.

Parallel sampling, beams, grammars, drafts and mixes of parameters have such tests in their own
files; these are the others.
"""

import pytest

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.logits_processors import logits_processor
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.testing.engines import oracle_engine, ragged_prompts, run_to_end
from tests.test_logits_processors import LEVELS


def completions(device, num_pages, params, **options):
    """[(tokens, logprobs, prompt_logprobs)] of each request, and preemptions in all."""
    engine = oracle_engine(device, num_pages=num_pages, **options)
    requests = [engine.submit(prompt, params) for prompt in ragged_prompts(5, seed=2)]
    run_to_end(engine)
    found = [
        (one.token_ids, one.logprobs, request.output.prompt_logprobs)
        for request in requests
        for one in request.output.outputs
    ]
    return found, sum(request.output.metrics.num_preemptions for request in requests)


@pytest.mark.parametrize(
    "given",
    [pytest.param(one, marks=[pytest.mark.slow] * (at > 0)) for at, one in enumerate(LEVELS)],
    ids=["triton", "torch", "host"],
)
def test_logits_processors(given, device):
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    plenty, none = completions(device, 32, params, logits_processors=[logits_processor(given)])
    starved, some = completions(device, 5, params, logits_processors=[logits_processor(given)])
    assert (none, some > 0) == (0, True)
    assert starved == plenty


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_log_probabilities_of_prompts(n, device):
    params = SamplingParams(n=n, max_tokens=12, ignore_eos=True, prompt_logprobs=2, seed=1)
    plenty, none = completions(device, 32, params)
    starved, some = completions(device, 5 * n, params)
    assert (none, some > 0) == (0, True)
    assert [len(known) for _, _, known in starved[::n]] == [1, 15, 16, 17, 33]
    assert starved == plenty


@pytest.mark.slow
def test_stop_strings_and_streams(device):
    prompts = ["Once upon a time there was a little", "The girl and the boy went to the"] * 2
    each = [SamplingParams(temperature=0.8, seed=seed, max_tokens=16) for seed in range(4)]

    def texts(num_pages, stop):
        llm = LLM(
            kv=PagedKV(num_pages=num_pages, prefix_caching=False),
            scheduler=RankScheduler(max_num_seqs=4, max_num_batched_tokens=64, watermark=0.0),
            max_model_len=32,
        )
        params = [SamplingParams(**vars(one) | {"stop": stop}) for one in each]
        outputs = {output.request_id: output for output in llm.stream(prompts, params)}
        assert int((llm.engine.pool.ref_count > 0).sum()) == 0
        preempted = sum(output.metrics.num_preemptions for output in outputs.values())
        return [output.outputs[0].text for output in outputs.values()], preempted

    whole, none = texts(8, None)
    stop = whole[0][-10:-2]  # so long that the others go on, and pages run short
    starved, some = texts(4, stop)
    assert (none, some > 0) == (0, True)
    assert sorted(starved) == sorted(text.partition(stop)[0] for text in whole)
