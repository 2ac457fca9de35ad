import pytest
import torch

from paged.kernels.attention_merge import (
    ATTENTION_MERGE_VARIANTS,
    attention_merge,
    attention_merge_inputs,
    attention_merge_ref,
)
from paged.testing.tolerances import assert_close


@pytest.mark.parametrize("variant", [{}, *ATTENTION_MERGE_VARIANTS], ids=str)
def test_merge_matches_the_reference_and_leaves_other_rows(variant, device, dtype):
    inputs = attention_merge_inputs(device, dtype, **variant)
    out = attention_merge(**inputs)
    assert_close(out[:4], attention_merge_ref(**inputs)[:4])
    assert out[4:].isnan().all()


def test_a_split_without_keys_changes_no_bit(device):
    inputs = attention_merge_inputs(device, positions=(200,), max_num_tokens=1)
    seen = attention_merge(**inputs).clone()
    acc, ml = inputs["partial_acc"], inputs["partial_ml"]
    # the same splits behind an empty one: position + split_size, one more split
    inputs["partial_acc"] = torch.cat([torch.zeros_like(acc[:, :, :1]), acc], dim=2)
    inputs["partial_ml"] = torch.cat([torch.zeros_like(ml[:, :, :1]), ml], dim=2)
    inputs["partial_ml"][:, :, 0, 0] = float("-inf")
    inputs["tiles"][0, 2] += inputs["split_size"]
    assert torch.equal(attention_merge(**inputs), seen)


def test_merge_rejects_a_small_workspace():
    inputs = attention_merge_inputs()
    inputs["partial_acc"] = inputs["partial_acc"][:2].contiguous()
    inputs["partial_ml"] = inputs["partial_ml"][:2].contiguous()
    with pytest.raises(ValueError, match="partial_acc must hold 6 tokens, got 2"):
        attention_merge(**inputs)
