from types import SimpleNamespace

import pytest
import torch

from paged.kernels.sampling_ref import sample_inputs, sample_ref
from paged.samplers.base import ScoreSampler
from paged.samplers.greedy import GreedySampler
from paged.samplers.stochastic import StochasticSampler


def table_and_plan(inputs):
    names = ("temperature", "top_k", "top_p", "min_p", "seed", "stop_ids", "min_len")
    columns = {name: inputs[name] for name in names}
    requests = SimpleNamespace(total_len=inputs["position"], **columns)
    plan = SimpleNamespace(
        sample_slots=inputs["slots"],
        num_samples=inputs["num_rows"],
        sample_offsets=None,
        sampled_tokens=inputs["out_tokens"],
        sampled_logprobs=inputs["out_logprobs"],
    )
    return requests, plan


def test_stochastic_sampler_draws_with_each_requests_parameters(device):
    inputs = sample_inputs(device, rows=6, vocab_size=129)
    tokens, logprobs = sample_ref(**inputs)
    requests, plan = table_and_plan(inputs)
    StochasticSampler().sample(inputs["logits"], requests, plan)
    assert torch.equal(plan.sampled_tokens, tokens)
    torch.testing.assert_close(plan.sampled_logprobs, logprobs)


def test_memory_is_made_once_for_the_largest_step(device):
    inputs = sample_inputs(device, rows=6, vocab_size=129)
    requests, plan = table_and_plan(inputs)
    sampler = StochasticSampler()
    sampler.sample(inputs["logits"][:2], requests, plan)
    made = [part.data_ptr() for part in sampler._workspace(6, inputs["logits"])]
    sampler.sample(inputs["logits"], requests, plan)
    assert [part.data_ptr() for part in sampler._workspace(6, inputs["logits"])] == made
    assert len(sampler._workspaces) == 1


def test_greedy_sampler_ignores_parameters_but_keeps_min_tokens(device):
    inputs = sample_inputs(device, rows=6, vocab_size=129)
    best = inputs["logits"].argmax(dim=1).int()
    requests, plan = table_and_plan(inputs)
    GreedySampler().sample(inputs["logits"], requests, plan)
    assert torch.equal(plan.sampled_tokens, best)
    requests.stop_ids[inputs["slots"].long(), 2] = best
    requests.min_len[:] = 100
    GreedySampler().sample(inputs["logits"], requests, plan)
    assert torch.equal(plan.sampled_tokens, inputs["logits"].topk(2).indices[:, 1].int())


def test_a_score_that_is_no_kernel_function_is_refused():
    with pytest.raises(ValueError, match=r"sampler\.score must be a @triton\.jit function"):
        ScoreSampler(lambda logit, gumbel, temperature: logit)
