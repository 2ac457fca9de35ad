import pytest
import torch

from paged.kernels.activation import (
    ACTIVATIONS,
    gated_activation,
    gated_activation_inputs,
    gated_activation_ref,
)
from paged.testing.tolerances import assert_close


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (15, 16), (17, 129), (129, 17)])
def test_equals_reference(num_tokens, width, activation, device, dtype):
    shape = {"num_tokens": num_tokens, "capacity": num_tokens + 3, "width": width}
    inputs = gated_activation_inputs(device, dtype, **shape, activation=activation)
    gated_activation(**inputs)
    assert_close(inputs["out"][:num_tokens], gated_activation_ref(**inputs))


@pytest.mark.parametrize("num_tokens", [0, 1, 16, 70])
def test_rows_past_num_tokens_stay_untouched(num_tokens, device, dtype):
    inputs = gated_activation_inputs(device, dtype, num_tokens=num_tokens, capacity=70)
    gated_activation(**inputs)
    assert inputs["out"][:num_tokens].isfinite().all()
    assert inputs["out"][num_tokens:].isnan().all()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_values_saturate_without_nan(activation, device, dtype):
    inputs = gated_activation_inputs(device, dtype, activation=activation)
    inputs["gate_up"].copy_(torch.tensor(200.0))
    inputs["gate_up"][:, ::2] = -200.0
    gated_activation(**inputs)
    assert_close(inputs["out"][:17], gated_activation_ref(**inputs))


def test_empty_capacity_is_allowed(device, dtype):
    gated_activation(**gated_activation_inputs(device, dtype, num_tokens=0, capacity=0))


def test_unknown_activation_names_the_known_ones(device, dtype):
    inputs = gated_activation_inputs(device, dtype) | {"activation": "swish"}
    with pytest.raises(ValueError, match="relu, gelu, gelu_tanh, silu, got 'swish'"):
        gated_activation(**inputs)


def test_wrong_shape_is_refused(device, dtype):
    inputs = gated_activation_inputs(device, dtype)
    with pytest.raises(ValueError, match="gate_up must have shape"):
        gated_activation(**inputs | {"gate_up": inputs["out"]})
