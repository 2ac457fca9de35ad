"""A change of the logits at its three levels, and where it stands among the others."""

import pytest
import torch
import triton
import triton.language as tl

from paged.kernels.map_logits import map_logits, map_logits_inputs, map_logits_ref
from paged.logits_processors import HostLogitsProcessor, logits_processor
from paged.request import SamplingParams
from paged.testing.engines import VOCAB_SIZE, oracle_engine, ragged_prompts, run_to_end


@triton.jit
def odd_at_odd_lengths(logit, token_id, row):
    return tl.where(token_id % 2 == row.total_len % 2, logit, logit - 50.0)


def odd_by_torch(logits, requests, plan):
    ids = torch.arange(logits.shape[1], device=logits.device)
    lengths = requests.total_len[plan.sample_slots[: logits.shape[0]].long()]
    logits.sub_(50.0 * (ids % 2 != lengths[:, None] % 2))


def odd_by_hand(prompt_ids, output_ids, logits):
    length = len(prompt_ids) + len(output_ids)
    logits[(length + 1) % 2 :: 2] -= 50.0
    return logits


LEVELS = [odd_at_odd_lengths, odd_by_torch, HostLogitsProcessor(odd_by_hand)]


@pytest.mark.parametrize("given", LEVELS, ids=["triton", "torch", "host"])
def test_levels_agree_and_log_probabilities_stay_the_models(given, device):
    engine = oracle_engine(device, logits_processors=[logits_processor(given)])
    prompts = ragged_prompts(5)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=2)
    biased = SamplingParams(
        temperature=0, max_tokens=6, ignore_eos=True, logit_bias={11: 90.0, 12: 90.0}
    )
    requests = [engine.submit(prompt, params) for prompt in prompts]
    last = engine.submit([1, 2], biased)
    run_to_end(engine)
    share = torch.tensor([10.0] + [0.0] * (VOCAB_SIZE - 1)).log_softmax(0).tolist()
    for request, prompt in zip(requests, prompts):
        completion, tokens = request.output.outputs[0], list(prompt)
        for place, token in enumerate(completion.token_ids):
            best = engine.model.continuation(tokens, 1)[0]
            right = best % 2 == len(tokens) % 2
            assert token == (best if right else len(tokens) % 2)
            known = share[0] if right else share[1]
            assert completion.logprobs[place] == pytest.approx(known, abs=1e-5)
            assert best in completion.top_logprobs[place]
            tokens.append(token)
    assert last.output.outputs[0].token_ids == [12, 11] * 3


def test_functions_on_logits_equal_their_plain_arithmetic(device):
    inputs = map_logits_inputs(device)
    inputs["num_rows"][:] = 4
    expected = map_logits_ref(**inputs)
    map_logits(**inputs)
    torch.testing.assert_close(inputs["logits"], expected)


def test_what_is_no_processor_is_refused(device):
    with pytest.raises(ValueError, match="logits_processors must hold functions"):
        logits_processor("mylab.mine")
    with pytest.raises(ValueError, match=r"function must be a @triton\.jit function"):
        map_logits(**map_logits_inputs(device) | {"function": odd_by_torch})
    with pytest.raises(ValueError, match="goes into HostLogitsProcessor"):
        logits_processor(odd_by_hand)
    wrong = HostLogitsProcessor(lambda prompt_ids, output_ids, logits: logits[:5])
    engine = oracle_engine(device, logits_processors=[wrong])
    engine.submit([1], SamplingParams())
    with pytest.raises(ValueError, match=r"must return logits of shape \[64\], got \[5\]"):
        engine.step()
