import pytest
import torch

from paged.kernels.norm import norm, norm_inputs, norm_ref
from paged.testing.tolerances import assert_close

CASES = [
    {},
    {"with_residual": True},
    {"weight_offset": 1.0, "with_residual": True},
    {"kind": "layer"},
    {"kind": "layer", "with_bias": True, "with_residual": True},
    {"with_rows": True, "with_residual": True},
    {"kind": "layer", "with_bias": True, "with_rows": True},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [(1, 2), (15, 16), (17, 129), (129, 63)])
def test_equals_reference(num_tokens, hidden_size, case, device, dtype):
    shape = {"num_tokens": num_tokens, "capacity": num_tokens + 3, "hidden_size": hidden_size}
    inputs = norm_inputs(device, dtype, **shape, **case)
    out, residual = norm_ref(**inputs)
    norm(**inputs)
    assert_close(inputs["out"][:num_tokens], out)
    if residual is not None and inputs["rows"] is None:
        assert torch.equal(inputs["residual"][:num_tokens], residual)


@pytest.mark.parametrize("num_tokens", [0, 1, 16, 70])
def test_rows_past_num_tokens_stay_untouched(num_tokens, device, dtype):
    shape = {"num_tokens": num_tokens, "capacity": 70, "with_residual": True}
    inputs = norm_inputs(device, dtype, **shape)
    for name in ("x", "residual"):
        inputs[name][num_tokens:] = 7.0
    norm(**inputs)
    assert inputs["out"][:num_tokens].isfinite().all()
    assert inputs["out"][num_tokens:].isnan().all()
    assert (inputs["residual"][num_tokens:] == 7.0).all()


@pytest.mark.parametrize("num_tokens", [0, 1, 16, 70])
def test_selected_rows_are_packed_and_only_read(num_tokens, device, dtype):
    shape = {"num_tokens": num_tokens, "capacity": 70, "with_residual": True}
    inputs = norm_inputs(device, dtype, with_rows=True, **shape)
    before = {name: inputs[name].clone() for name in ("x", "residual")}
    norm(**inputs)
    assert inputs["out"][:num_tokens].isfinite().all()
    assert inputs["out"][num_tokens:].isnan().all()
    for name, tensor in before.items():
        torch.testing.assert_close(inputs[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_selected_row_has_the_bits_of_its_place(kind, device, dtype):
    shape = {"capacity": 300, "num_tokens": 300, "hidden_size": 129}
    inputs = norm_inputs(device, dtype, kind=kind, with_residual=True, **shape)
    rows = torch.tensor([299, 0, 64, 63, 64], dtype=torch.int32, device=device)
    selected = torch.full_like(inputs["out"][:5], float("nan"))
    num_rows = torch.full_like(inputs["num_tokens"], 5)
    norm(**inputs | {"rows": rows, "num_tokens": num_rows, "out": selected})
    norm(**inputs)
    assert torch.equal(selected, inputs["out"][rows.long()])


def test_out_may_be_the_input(device, dtype):
    inputs = norm_inputs(device, dtype)
    expected, _ = norm_ref(**inputs)
    norm(**inputs | {"out": inputs["x"]})
    assert_close(inputs["x"][:17], expected)


@pytest.mark.parametrize("case", [case for case in CASES if "with_rows" not in case])
def test_bits_of_a_row_do_not_depend_on_the_batch(case, device, dtype):
    row, results = 13, []
    for capacity in (14, 16, 64, 500):
        inputs = norm_inputs(device, dtype, capacity=16, num_tokens=16, hidden_size=512, **case)
        for name in ("x", "out", "residual"):
            if inputs.get(name) is not None:
                repeats = torch.arange(capacity, device=device) % 16
                inputs[name] = inputs[name][repeats].contiguous()
        inputs["num_tokens"].fill_(capacity)
        norm(**inputs)
        results.append(inputs["out"][row].clone())
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_empty_capacity_is_allowed(device, dtype):
    norm(**norm_inputs(device, dtype, num_tokens=0, capacity=0))


def test_out_has_a_row_for_each_selected_one(device, dtype):
    inputs = norm_inputs(device, dtype, with_rows=True)
    with pytest.raises(ValueError, match=r"out must have shape \[20, 129\], got \[40, 129\]"):
        norm(**inputs | {"out": torch.empty_like(inputs["x"])})


def test_unknown_kind_names_the_known_ones(device, dtype):
    with pytest.raises(ValueError, match="rms, layer, got 'group'"):
        norm(**norm_inputs(device, dtype) | {"kind": "group"})
