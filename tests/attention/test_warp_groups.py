"""Tall tiles by the Hopper kernel: where it is called, and that the bits stay what they are."""

import pytest
import torch

import paged.attention.triton as triton_attention
from paged.attention.triton import TritonAttention
from paged.kernels.paged_attention import paged_attention
from paged.testing.attention_cases import ATTENTION_CASES, attention_case

PLAIN = ("chunk_of_long_context", "mha_wide", "page_64")


@pytest.mark.parametrize("name", [*PLAIN, "sliding_window", "softcap", "alibi"])
def test_it_takes_the_tall_tiles_of_plain_attention(name, device, dtype, monkeypatch):
    """With the plain kernel in its place: it cannot run here."""
    taken = []

    def stand_in(*arguments):
        taken.append(arguments)
        return paged_attention(*arguments)

    monkeypatch.setattr(triton_attention, "fits_prefill_attention", lambda *given: True)
    monkeypatch.setattr(triton_attention, "prefill_attention", stand_in)
    case = attention_case(**ATTENTION_CASES[name], device=device, dtype=dtype)
    tiles = {"split_size": 128, "workspace_rows": 0, "short_capacity": 0}
    off = case.run(TritonAttention(**tiles))
    assert not taken
    assert torch.equal(case.run(TritonAttention(**tiles, warp_groups=True)), off)
    assert bool(taken) == (name in PLAIN)


@pytest.mark.gpu
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_bits_are_the_same(name, precision, device):
    wide = ATTENTION_CASES[name] | {"head_dim": 128}
    case = attention_case(**wide, device=device, dtype=precision)
    tiles = {"split_size": 256, "short_capacity": 0}
    off, on = (
        case.run(TritonAttention(**tiles, warp_groups=warp_groups)) for warp_groups in (False, True)
    )
    assert torch.equal(on, off)
