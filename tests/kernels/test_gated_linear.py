import pytest
import torch

from paged.kernels.activation import ACTIVATIONS, activate_ref
from paged.kernels.gated_linear import gated_linear, gated_linear_inputs, gated_linear_ref
from paged.kernels.linear import linear
from paged.testing.interpreting import rowwise_dots
from paged.testing.tolerances import assert_close

GPU = pytest.mark.gpu


@pytest.mark.parametrize(("num_tokens", "in_features", "width"), [(1, 1, 1), (15, 129, 100)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_reference(num_tokens, in_features, width, with_bias, device, dtype):
    shape = {"in_features": in_features, "width": width, "with_bias": with_bias}
    inputs = gated_linear_inputs(device, dtype, capacity=num_tokens, **shape)
    gated_linear(**inputs)
    assert_close(inputs["out"], gated_linear_ref(**inputs))


@pytest.mark.parametrize("num_tokens", [0, 1, 17, 129])
def test_rows_past_num_tokens_stay_untouched(num_tokens, device, dtype):
    inputs = gated_linear_inputs(device, dtype, capacity=300, num_tokens=num_tokens, width=40)
    gated_linear(**inputs)
    assert inputs["out"][:num_tokens].isfinite().all()
    assert inputs["out"][num_tokens:].isnan().all()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_values_saturate_without_nan(activation, device, dtype):
    inputs = gated_linear_inputs(device, dtype, activation=activation)
    inputs["x"] *= 40  # exp overflows in fp32, the product does not in fp16
    gated_linear(**inputs)
    assert_close(inputs["out"], gated_linear_ref(**inputs))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("capacity", "in_features", "width"),
    [
        (70, 200, 33),
        *(
            pytest.param(capacity, in_features, width, marks=GPU)
            for capacity in (64, 256, 512, 1024, 4096)
            for in_features, width in ((1024, 3072), (4096, 14336), (200, 1000))
        ),
    ],
)
def test_bits_do_not_depend_on_the_capacity(
    capacity, in_features, width, activation, device, dtype
):
    shape = {"in_features": in_features, "width": width, "num_tokens": capacity - 3}
    inputs = gated_linear_inputs(
        device, dtype, capacity=capacity, activation=activation, with_bias=True, **shape
    )
    few = inputs | {"out": torch.full_like(inputs["out"][:16], float("nan"))}
    few["num_tokens"] = torch.full_like(inputs["num_tokens"], 16)
    with rowwise_dots():
        gated_linear(**inputs)
        gated_linear(**few)
        gate_up = torch.empty_like(few["out"].repeat(1, 2))
        linear(few["x"], few["weight"], few["num_tokens"], gate_up, few["bias"])
    assert torch.equal(inputs["out"][:16], few["out"])
    # Of the layer's own gate and up: where these round otherwise, a large product shows it thrice.
    gate, up = gate_up.float().chunk(2, dim=-1)
    assert_close(few["out"], (activate_ref(gate, activation) * up).to(dtype))


def test_empty_capacity_is_allowed(device, dtype):
    gated_linear(**gated_linear_inputs(device, dtype, capacity=0))


def test_weight_holds_gate_and_up(device, dtype):
    inputs = gated_linear_inputs(device, dtype)
    with pytest.raises(ValueError, match=r"weight must have shape \[200, any\], got \[100, 129\]"):
        gated_linear(**inputs | {"weight": inputs["weight"][:100]})


def test_unknown_activation_names_the_known_ones(device, dtype):
    with pytest.raises(ValueError, match="relu, gelu, gelu_tanh, silu, got 'tanh'"):
        gated_linear(**gated_linear_inputs(device, dtype) | {"activation": "tanh"})
