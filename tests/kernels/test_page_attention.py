"""Attention that pages are paid, against plain torch, and that it depends on nothing else."""

import pytest
import torch

from paged.kernels.page_attention import UNSEEN, page_attention
from paged.kernels.page_attention_ref import page_attention_inputs, page_attention_ref
from paged.testing.interpreting import rowwise_dots
from paged.testing.tolerances import assert_close

CASES = (
    {},
    {"first_layer": False},
    {"window": 1},
    {"window": 20, "num_heads": 5, "num_kv_heads": 1, "head_dim": 80},
    {"window": 32, "prompt_only": True, "page_size": 32},
    {"window": 3, "page_size": 512, "num_kv_heads": 4, "logit_softcap": 5.0},
)


def unseen(sums: torch.Tensor) -> torch.Tensor:
    return sums == UNSEEN.value


@pytest.mark.parametrize("case", CASES, ids=str)
def test_page_attention(device, dtype, case):
    inputs = page_attention_inputs(device, dtype, **case)
    before, want = inputs["attention"].clone(), page_attention_ref(**inputs)
    page_attention(**inputs)
    found = inputs["attention"]
    assert torch.equal(found == before, want == before), "a sum was written that should not be"
    assert torch.equal(unseen(found), unseen(want))
    seen = (want != before) & ~unseen(want)
    assert seen.any()
    assert_close(found[seen].double(), want[seen].double(), dtype)


def paid(inputs: dict, cuts: list[int], window: int) -> torch.Tensor:
    """What the pages of one prompt have been paid, when it is computed in chunks of two layers."""
    inputs = inputs | {"window": window, "attention": torch.zeros_like(inputs["attention"]) + 7}
    q, length = inputs["q"], cuts[-1]
    for start, end in zip([0, *cuts], cuts):
        chunk = {"q": q[start:], "lse": inputs["lse"][start:]}
        for name, value in (("num_seqs", 1), ("seq_lens", end), ("seq_start", start)):
            chunk[name] = inputs[name].clone().fill_(value)
        chunk["cu_seqlens_q"] = torch.zeros_like(inputs["cu_seqlens_q"])
        chunk["cu_seqlens_q"][1] = end - start
        for first_layer in (True, False):
            page_attention(**inputs | chunk | {"first_layer": first_layer})
    slot = int(inputs["seq_slots"][0])
    return inputs["attention"][slot, : -(-length // inputs["k_cache"].shape[2])]


@pytest.mark.parametrize("window", [2**30, 1, 20])
def test_sums_do_not_depend_on_the_chunks_of_a_prompt(device, window):
    inputs = page_attention_inputs(device)
    with rowwise_dots():
        whole = paid(inputs, [70], window)
        for cuts in ([7, 49, 55, 70], [16, 69, 70], [50, 70]):
            assert torch.equal(paid(inputs, cuts, window), whole)
    # Every counted query pays 1 in all, in each of 2 layers and 4 heads.
    assert abs(whole.sum().item() / 2**30 / (min(window, 70) * 2 * 4) - 1) < 1e-5


def test_wrong_arguments_are_refused(device):
    inputs = page_attention_inputs(device)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        page_attention(**inputs | {"window": 0})
    with pytest.raises(ValueError, match="a multiple of 2 heads"):
        page_attention(**inputs | {"q": inputs["q"][:, :3]})
    with pytest.raises(ValueError, match="attention must be int64"):
        page_attention(**inputs | {"attention": inputs["attention"].int()})
