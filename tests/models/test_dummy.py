import pytest
import torch

from paged.models import kv_bytes_per_page, load_model
from paged.models.config import preset_config, spec_of
from paged.models.presets import PRESETS
from paged.models.spec import weight_shapes

# parameters of the published models
SIZES = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "qwen3-0.6b": 596_049_920,
    "smollm2-135m": 134_515_008,
    "opt-125m": 125_239_296,
    "gpt2": 124_439_808,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    shapes = weight_shapes(spec_of(preset_config(name)))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == SIZES[name]


def test_dummy_weights_are_random_and_repeat(saved_tiny, device):
    folder, _ = saved_tiny("opt")
    weights, again = (
        load_model(folder, torch.float32, device, load="dummy").decoder.weights for _ in range(2)
    )
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert abs(weights["embed.weight"].std().item() - 0.02) < 2e-3
    assert (weights["layers.0.attn_norm.weight"] == 1).all()


def test_kv_bytes_of_a_page():
    spec = spec_of(preset_config("llama-3.1-8b"))
    assert kv_bytes_per_page(spec, 16, torch.bfloat16) == 32 * 2 * 8 * 128 * 16 * 2
