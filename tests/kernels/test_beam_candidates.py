import pytest
import torch

from paged.kernels.beam_candidates import (
    beam_candidates,
    beam_candidates_inputs,
    beam_candidates_ref,
)
from paged.kernels.control.columns import BEAM_WIDTH


def run(inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    beam_candidates(**inputs)
    return inputs["out_tokens"].cpu(), inputs["out_logprobs"].cpu()


def expected(inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("logits", "slots", "num_rows", "columns", "temperature", "stop_ids")
    return beam_candidates_ref(**{name: inputs[name] for name in names})


@pytest.mark.parametrize("vocab_size", [16, 63, 4096, 9001])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_equals_reference(device, rows, vocab_size):
    inputs = beam_candidates_inputs(device, rows=rows, vocab_size=vocab_size, widths=(4, 0, 1, 7))
    tokens, logprobs = run(inputs)
    want_tokens, want_logprobs = expected(inputs)
    assert torch.equal(tokens, want_tokens)
    torch.testing.assert_close(logprobs, want_logprobs, atol=1e-5, rtol=1e-6)


def test_the_widest_beam_and_every_kind_of_logit(device):
    inputs = beam_candidates_inputs(device, rows=2, vocab_size=500, widths=(16, 16))
    inputs["num_rows"].fill_(2)
    inputs["logits"][0, ::2] = float("-inf")
    inputs["logits"][1] *= 1e4
    tokens, logprobs = run(inputs)
    want_tokens, want_logprobs = expected(inputs)
    assert torch.equal(tokens, want_tokens)
    torch.testing.assert_close(logprobs, want_logprobs, atol=1e-2, rtol=1e-6)


def test_equal_logits_come_by_token(device):
    inputs = beam_candidates_inputs(device, rows=1, vocab_size=200, widths=(5,))
    inputs["num_rows"].fill_(1)
    inputs["logits"].zero_()
    inputs["stop_ids"].fill_(-1)
    inputs["stop_ids"][:, 0] = 2
    tokens, logprobs = run(inputs)
    assert tokens[0, :5].tolist() == [0, 1, 3, 4, 5]
    assert int(tokens[0, 16]) == 2
    assert torch.allclose(logprobs[0, :5].exp(), torch.tensor(1 / 200))


def test_rows_that_are_no_beams_stay_untouched(device):
    inputs = beam_candidates_inputs(device, rows=4)
    inputs["columns"][BEAM_WIDTH.value] = 0
    inputs["out_tokens"].fill_(-5)
    tokens, _ = run(inputs)
    assert (tokens == -5).all()


def test_a_row_does_not_depend_on_its_batch(device):
    inputs = beam_candidates_inputs(device, rows=4, vocab_size=700, widths=(3, 3, 3, 3))
    inputs["num_rows"].fill_(4)
    _, together = run(inputs)
    alone = beam_candidates_inputs(device, rows=1, vocab_size=700, widths=(3,))
    alone["num_rows"].fill_(1)
    slot = int(alone["slots"][0])
    alone["logits"].copy_(inputs["logits"][2:3])
    alone["temperature"][slot] = inputs["temperature"][inputs["slots"][2].long()]
    alone["stop_ids"][slot] = inputs["stop_ids"][inputs["slots"][2].long()]
    _, single = run(alone)
    assert torch.equal(single[0], together[2])
