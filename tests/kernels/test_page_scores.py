"""Scores of pages against plain torch, and that they do not depend on the batch."""

import pytest
import torch

from paged.kernels.mean_keys import mean_keys, mean_keys_inputs, mean_keys_ref
from paged.kernels.page_scores import page_scores, page_scores_inputs, page_scores_ref
from paged.kv.compression import keydiff, knorm, paged_eviction, tova
from paged.testing.tolerances import assert_close

SHAPES = ({}, {"num_kv_heads": 3, "head_dim": 80}, {"num_kv_heads": 1, "page_size": 64})


def key_norm(token):
    return -token.key.norm(dim=-1)


def value_over_key(token):
    return token.value.norm(dim=-1) / token.key.norm(dim=-1)


def difference(token):
    return -torch.cosine_similarity(token.key, token.mean_key, dim=-1)


def attention(token):
    return token.attention


POLICIES = {
    "knorm": (knorm.score, key_norm, {}),
    "paged_eviction": (paged_eviction.score, value_over_key, {}),
    "keydiff": (keydiff.score, difference, {"with_means": True}),
    "tova": (tova.score, attention, {"with_attention": True}),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_scores(device, dtype, policy, shape):
    score, expected, given = POLICIES[policy]
    inputs = page_scores_inputs(device, dtype, **given, **shape)
    want = page_scores_ref(**inputs | {"score": expected})
    page_scores(**inputs | {"score": score})
    assert torch.equal(inputs["scores"].isnan(), want.isnan()), "other entries were written"
    assert_close(inputs["scores"].nan_to_num(), want.nan_to_num(), torch.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mean_keys(device, dtype, shape):
    inputs = mean_keys_inputs(device, dtype, **shape)
    want = mean_keys_ref(**inputs)
    mean_keys(**inputs)
    assert torch.equal(inputs["means"].isnan(), want.isnan())
    assert_close(inputs["means"].nan_to_num(), want.nan_to_num(), torch.float32)


def test_bits_of_a_score_do_not_depend_on_the_batch(device):
    inputs = page_scores_inputs(device, ends=(9, 4, 6), with_means=True, with_attention=True)
    page_scores(**inputs)
    alone = inputs | {name: inputs[name][2:3].contiguous() for name in ("slots", "ends")}
    alone |= {"num_rows": inputs["num_rows"] * 0 + 1, "mean_keys": inputs["mean_keys"][2:3]}
    alone["scores"] = torch.full_like(inputs["scores"][2:3], float("nan"))
    page_scores(**alone)
    assert torch.equal(alone["scores"][0, 1:6], inputs["scores"][2, 1:6])


def test_pages_that_do_not_hold_heads_are_refused(device):
    with pytest.raises(ValueError, match="elements a head"):
        page_scores(**page_scores_inputs(device) | {"head_dim": 48})
