import pytest
import torch

from paged.kernels.paged_attention import paged_attention
from paged.kernels.prefill_attention import (
    fits_prefill_attention,
    prefill_attention,
    prefill_attention_inputs,
    prefill_attention_ref,
)
from paged.testing.tolerances import assert_close

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("page_size", [16, 64, 256])
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_bits_are_those_of_the_plain_kernel(precision, page_size, head_dim, device):
    inputs = prefill_attention_inputs(device, precision, head_dim, page_size)
    out = prefill_attention(**inputs)
    if precision == torch.float16:  # in bfloat16 one bit of a row of few keys is 0.1 of the rest
        assert_close(out, prefill_attention_ref(**inputs))
    plain = paged_attention(**inputs | {"out": torch.zeros_like(out)})
    assert torch.equal(out, plain)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(5, 1), (14, 2), (71, 1), (4, 4)])
def test_uneven_groups(num_heads, num_kv_heads, device):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    inputs = prefill_attention_inputs(device, **heads)
    out = prefill_attention(**inputs)
    assert torch.equal(out, paged_attention(**inputs | {"out": torch.zeros_like(out)}))


@pytest.mark.parametrize(
    "change",
    [
        {"q": torch.zeros(4, 8, 128)},
        {"q": torch.zeros(4, 8, 80, dtype=torch.float16)},
        {"tokens_per_tile": 4},
        {},  # no Hopper GPU in the interpreter
    ],
    ids=["fp32", "head_dim", "rows", "machine"],
)
def test_what_it_cannot_take_is_left_to_the_plain_kernel_and_named(change):
    if not change and HOPPER:
        pytest.skip("here it can")
    inputs = prefill_attention_inputs(dtype=torch.float16) | change
    assert not fits_prefill_attention(inputs["q"], inputs["k_cache"], inputs["tokens_per_tile"])
    with pytest.raises(ValueError, match="take paged_attention"):
        prefill_attention(**inputs)
