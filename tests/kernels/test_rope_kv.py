import pytest
import torch

from paged.kernels.rope_kv import rope_kv, rope_kv_inputs, rope_kv_ref
from paged.testing.tolerances import assert_close

CASES = [
    {},
    {"interleaved": True},
    {"rotary_dim": 24},
    {"rotary_dim": 24, "interleaved": True, "with_norm": True},
    {"rotary_dim": 0},
    {"rotary_dim": 0, "with_norm": True},
    {"with_norm": True, "head_dim": 80, "page_size": 64},
    {"num_heads": 6, "num_kv_heads": 2, "head_dim": 32, "with_norm": True},
    {"num_heads": 3, "num_kv_heads": 3, "head_dim": 20},
]


def check(inputs: dict) -> None:
    """Run the kernel; the buffer must be close, the caches close where written, else untouched."""
    expected = rope_kv_ref(**inputs)
    rope_kv(**inputs)
    for name, want in zip(("qkv", "k_cache", "v_cache"), expected):
        have, unwritten = inputs[name], want.isnan()
        assert torch.equal(have.isnan(), unwritten), name
        assert_close(have[~unwritten], want[~unwritten])


@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case, device, dtype):
    check(rope_kv_inputs(device, dtype, **case))


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 129])
def test_any_number_of_tokens(num_tokens, device, dtype):
    check(rope_kv_inputs(device, dtype, capacity=num_tokens + 3, num_tokens=num_tokens))


@pytest.mark.parametrize("with_norm", [False, True])
def test_rows_past_num_tokens_stay_untouched(with_norm, device, dtype):
    inputs = rope_kv_inputs(device, dtype, num_tokens=3, with_norm=with_norm)
    before = inputs["qkv"].clone()
    rope_kv(**inputs)
    assert torch.equal(inputs["qkv"][3:], before[3:])
    # token 0 is skipped, tokens 1 and 2 are written
    assert inputs["k_cache"].isfinite().sum() == inputs["v_cache"].isfinite().sum() == 2 * 64


def test_nothing_happens_without_tokens(device, dtype):
    inputs = rope_kv_inputs(device, dtype, num_tokens=0)
    before = inputs["qkv"].clone()
    rope_kv(**inputs)
    assert torch.equal(inputs["qkv"], before)
    assert inputs["k_cache"].isnan().all()
    rope_kv(**rope_kv_inputs(device, dtype, num_tokens=0, capacity=0))


def test_values_reach_the_cache_bit_for_bit(device, dtype):
    inputs = rope_kv_inputs(device, dtype, with_norm=True)
    rope_kv(**inputs)
    slots = inputs["slot_mapping"][:17]
    v = inputs["qkv"][:17, -64:][slots >= 0]
    k = inputs["qkv"][:17, -128:-64][slots >= 0]
    slots = slots[slots >= 0]
    assert torch.equal(inputs["v_cache"][slots // 16, 0, slots % 16], v)
    assert torch.equal(inputs["k_cache"][slots // 16, 0, slots % 16], k)


@pytest.mark.parametrize("row", [1, 7, 300])
def test_bits_of_a_row_do_not_depend_on_the_batch(row, device, dtype):
    def rotated(capacity: int, row: int) -> torch.Tensor:
        shape = {"capacity": capacity, "num_tokens": capacity, "with_norm": True}
        inputs = rope_kv_inputs(device, dtype, **shape)
        generator = torch.Generator().manual_seed(1)
        inputs["cos_sin"] = torch.randn(1001, 64, generator=generator).to(device)
        for name in ("q_norm", "k_norm"):
            inputs[name] = torch.randn(64, generator=generator).to(device, dtype)
        width = inputs["qkv"].shape[1]
        inputs["qkv"][row] = torch.randn(width, generator=generator).to(device, dtype)
        inputs["positions"][row] = 5
        rope_kv(**inputs)
        return inputs["qkv"][row]

    assert torch.equal(rotated(1, 0), rotated(row + 3, row))


def test_bad_rotary_dim_is_refused(device, dtype):
    inputs = rope_kv_inputs(device, dtype)
    with pytest.raises(ValueError, match="rotary_dim must be even and <= 64, got 66"):
        rope_kv(**inputs | {"cos_sin": torch.zeros(41, 66, device=device)})


def test_one_norm_weight_alone_is_refused(device, dtype):
    with pytest.raises(ValueError, match="must be given together"):
        rope_kv(**rope_kv_inputs(device, dtype, with_norm=True) | {"k_norm": None})
