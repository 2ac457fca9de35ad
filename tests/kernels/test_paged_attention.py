import pytest
import torch

from paged.kernels.paged_attention import paged_attention
from paged.kernels.paged_attention_ref import (
    PAGED_ATTENTION_VARIANTS,
    paged_attention_inputs,
    paged_attention_ref,
)
from paged.testing.interpreting import rowwise_dots
from paged.testing.tolerances import assert_close

ODD = (1, 15, 16, 17, 129)


@pytest.mark.parametrize("variant", [{}, *PAGED_ATTENTION_VARIANTS], ids=str)
def test_matches_the_reference(variant, device, dtype):
    inputs = paged_attention_inputs(device, dtype, **variant)
    assert_close(paged_attention(**inputs), paged_attention_ref(**inputs))


@pytest.mark.parametrize("lens", [tuple((1, n) for n in ODD), tuple((n, 130) for n in ODD)])
def test_odd_lengths_as_decode_and_as_chunks(lens, device, dtype):
    inputs = paged_attention_inputs(device, dtype, lens=lens, num_heads=5, num_kv_heads=1)
    assert_close(paged_attention(**inputs), paged_attention_ref(**inputs))


@pytest.mark.parametrize("page_size", [16, 64, 128])
def test_one_pair_a_program_as_on_a_gpu(page_size, device, dtype):
    inputs = paged_attention_inputs(device, dtype, lens=((1, 150), (5, 70)), page_size=page_size)
    assert_close(paged_attention(**inputs, pairs=1), paged_attention_ref(**inputs))


def test_rows_of_no_item_are_left_alone(device, dtype):
    inputs = paged_attention_inputs(device, dtype, lens=((3, 20), (4, 9)))
    inputs["items"][0] = torch.tensor([-1, 0, 0, 0, 0, 0, 0, 0])
    out = paged_attention(**inputs)
    assert out[:3].isnan().all()
    assert torch.isfinite(out[3:]).all()


def test_an_empty_batch_writes_nothing(device, dtype):
    inputs = paged_attention_inputs(device, dtype)
    inputs["items"][:] = torch.tensor([-1, 0, 0, 0, 0, 0, 0, 0])
    assert paged_attention(**inputs).isnan().all()


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_nan_query_spoils_its_own_token_only(device, dtype):
    inputs = paged_attention_inputs(device, dtype, lens=((4, 20), (1, 9)))
    inputs["q"][1] = float("nan")
    out = paged_attention(**inputs)
    assert out[1].isnan().all()
    assert torch.isfinite(out[[0, 2, 3, 4]]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_size": 96}, "split_size must be a power of two from 128 up, got 96"),
        ({"block_table": torch.zeros(3, 4)}, "block_table must be int32"),
        ({"k_cache": torch.zeros(2, 3, 16, 64)}, "num_heads must be a multiple of 3, got 4"),
        ({"k_cache": torch.zeros(2, 2, 24, 64)}, "page_size must be a power of two"),
        ({"q": torch.zeros(27, 64, 4).transpose(1, 2)}, "q must have strides"),
        ({"sliding_window": 0}, "sliding_window must be positive, got 0"),
        ({"logit_softcap": -1.0}, "logit_softcap must be positive, got -1.0"),
        ({"softmax_scale": 0.0}, "softmax_scale must be positive, got 0.0"),
        ({"pairs": 3}, "pairs must be a power of two from 1 up, got 3"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        paged_attention(**paged_attention_inputs() | change)


TALL = {"num_heads": 16, "num_kv_heads": 2, "lens": ((1, 150), (40, 290), (9, 9))}


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(
    "variant", [{}, {"sliding_window": 100}, {"logit_softcap": 5.0, "alibi": True}], ids=str
)
def test_tall_tiles_have_the_bits_of_short_ones(variant, page_size, device, dtype):
    options = TALL | variant | {"page_size": page_size}
    tall = paged_attention_inputs(device, dtype, **options, tokens_per_tile=8)
    short = paged_attention_inputs(device, dtype, **options, tokens_per_tile=2)
    with rowwise_dots():
        out = paged_attention(**tall, pairs=1)
        assert torch.equal(paged_attention(**short), out)
    assert_close(out, paged_attention_ref(**tall))


@pytest.mark.parametrize("spread", [2, 4, 7])
def test_spread_splits_have_the_bits_of_one_program_whoever_arrives_last(spread, device, dtype):
    lens = ((1, 600), (3, 200), (1, 64), (1, 385))
    whole = paged_attention_inputs(device, dtype, lens=lens)
    spread_out = paged_attention_inputs(device, dtype, lens=lens, spread=spread)
    with rowwise_dots():
        out = paged_attention(**whole)
        for order in (slice(None), torch.arange(len(spread_out["items"])).flip(0)):
            # the workspace is used again: every tile must leave its counter at zero
            spread_out["items"] = spread_out["items"][order].contiguous()
            spread_out["out"].fill_(float("nan"))
            assert torch.equal(paged_attention(**spread_out), out)
    assert not spread_out["partials"].arrived.any()


@pytest.mark.gpu
def test_layers_that_share_a_workspace_keep_their_bits_in_a_graph(device):
    """Launches back to back, as the layers of a step: each counts, folds and resets for itself."""
    lens = (*((1, 100 + 61 * i) for i in range(24)), (7, 900), (1, 3000))
    options = {"lens": lens, "num_heads": 8, "num_kv_heads": 2, "head_dim": 128}
    whole = paged_attention_inputs(device, torch.bfloat16, **options)
    spread_out = paged_attention_inputs(device, torch.bfloat16, **options, spread=5)
    layers = [torch.randn_like(whole["q"]) for _ in range(40)]
    wanted = [paged_attention(**whole | {"q": q, "out": torch.zeros_like(q)}) for q in layers]
    outs = [torch.zeros_like(q) for q in layers]
    graph = torch.cuda.CUDAGraph()
    paged_attention(**spread_out)
    with torch.cuda.graph(graph):
        for q, out in zip(layers, outs):
            paged_attention(**spread_out | {"q": q, "out": out})
    for _ in range(50):
        for out in outs:
            out.fill_(float("nan"))
        graph.replay()
        graph.replay()
        assert all(torch.equal(out, want) for out, want in zip(outs, wanted))
        assert not spread_out["partials"].arrived.any()
