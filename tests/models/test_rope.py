import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from paged.models.rope import rope_table

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 256}
CASES = [
    ("default", 10000.0, {}),
    ("linear", 10000.0, {"factor": 2.5}),
    ("llama3", 500000.0, LLAMA3),
    ("yarn", 10000.0, YARN),
    ("yarn", 1e6, YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False}),
    ("yarn", 10000.0, YARN | {"attention_factor": 1.25}),
    ("yarn", 10000.0, YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}),
]


@pytest.mark.parametrize(("rope_type", "theta", "scaling"), CASES)
@pytest.mark.parametrize("head_dim", [32, 80, 128])
def test_table_equals_transformers(rope_type, theta, scaling, head_dim):
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": rope_type, "rope_theta": theta, **scaling},
    )
    positions = torch.arange(1024)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, 1, 1), positions)
    table = rope_table(rope_type, theta, head_dim, 1024, scaling)
    half = head_dim // 2
    assert table.shape == (1024, head_dim)
    assert table.dtype == torch.float32
    # an angle of 1000 radians is itself rounded to 3e-5 in fp32
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], atol=2e-4, rtol=0)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], atol=2e-4, rtol=0)


def test_unsupported_type_names_the_supported_ones():
    with pytest.raises(ValueError, match="default, linear, llama3, yarn, divided, got 'longrope'"):
        rope_table("longrope", 10000.0, 64, 16, {"factor": 2.0})


def test_missing_scaling_entries_are_all_named():
    with pytest.raises(ValueError, match="low_freq_factor, high_freq_factor"):
        rope_table("llama3", 10000.0, 64, 16, {"factor": 2.0})


@pytest.mark.parametrize("rotary_dim", [0, 7])
def test_odd_or_empty_rotary_dim_is_refused(rotary_dim):
    with pytest.raises(ValueError, match="rotary_dim must be even"):
        rope_table("default", 10000.0, rotary_dim, 16)


def test_divisors_give_the_llama3_table():
    plain = rope_table("default", 500000.0, 32, 2)
    scaled = rope_table("llama3", 500000.0, 32, 2, LLAMA3)
    divisors = (plain[1, 16:].asin() / scaled[1, 16:].asin()).tolist()  # angles at position 1
    table = rope_table("divided", 500000.0, 32, 64, {"divisors": divisors})
    expected = rope_table("llama3", 500000.0, 32, 64, LLAMA3)
    torch.testing.assert_close(table, expected, atol=1e-4, rtol=0)
