import pytest
import torch

from paged.kernels.linear import linear, linear_inputs, linear_ref
from paged.kernels.linear_tiles import pointer_tiles
from paged.testing.interpreting import rowwise_dots
from paged.testing.tolerances import assert_close

SHAPES = [(1, 1, 1), (15, 16, 129), (17, 129, 15), (129, 63, 200), (16, 576, 1100), (300, 64, 48)]
CASES = [
    {"with_bias": True},
    {"activation": "relu", "with_bias": True},
    {"activation": "gelu"},
    {"activation": "gelu_tanh"},
    {"activation": "silu"},
    {"logit_softcap": 3.0},
]


@pytest.mark.parametrize(("num_tokens", "in_features", "out_features"), SHAPES)
def test_equals_reference(num_tokens, in_features, out_features, device, dtype):
    shape = {"in_features": in_features, "out_features": out_features}
    inputs = linear_inputs(device, dtype, capacity=num_tokens, **shape)
    linear(**inputs)
    assert_close(inputs["out"], linear_ref(**inputs))


@pytest.mark.parametrize("case", CASES)
def test_epilogues_equal_reference(case, device, dtype):
    inputs = linear_inputs(device, dtype, capacity=40, num_tokens=17, **case)
    linear(**inputs)
    assert_close(inputs["out"][:17], linear_ref(**inputs))


def test_logits_may_be_fp32(device, dtype):
    inputs = linear_inputs(device, dtype, capacity=5, out_dtype=torch.float32)
    linear(**inputs)
    assert_close(inputs["out"], linear_ref(**inputs))


@pytest.mark.parametrize("num_tokens", [0, 1, 16, 129])
def test_rows_past_num_tokens_stay_untouched(num_tokens, device, dtype):
    inputs = linear_inputs(device, dtype, num_tokens=num_tokens, capacity=300)
    linear(**inputs)
    assert inputs["out"][:num_tokens].isfinite().all()
    assert inputs["out"][num_tokens:].isnan().all()


LOGITS = {"out_dtype": torch.float32, "logit_softcap": 5.0}


@pytest.mark.parametrize(
    ("in_features", "out_features", "epilogue"),
    [
        (129, 96, {}),
        (576, 96, LOGITS),
        (2048, 96, {}),
        *(pytest.param(1000, n, {}, marks=pytest.mark.gpu) for n in (4096, 16384, 20000)),
        *(pytest.param(4096, n, {}, marks=pytest.mark.gpu) for n in (2048, 4096, 16384, 20000)),
        pytest.param(1024, 70016, LOGITS, marks=pytest.mark.gpu),
    ],
    ids=str,
)
def test_bits_of_a_row_do_not_depend_on_the_batch(
    in_features, out_features, epilogue, device, dtype
):
    shape = {"in_features": in_features, "out_features": out_features, "with_bias": True} | epilogue
    results = []
    capacities = [(1, 0), (16, 15), (64, 33), (128, 100), (256, 200), (512, 511)]
    if device != "cpu":
        capacities += [(1024, 77), (2048, 2047), (8192, 5000)]
    for capacity, row in capacities:
        inputs = linear_inputs(device, dtype, capacity=capacity, **shape)
        generator = torch.Generator().manual_seed(1)
        inputs["x"][row] = torch.randn(in_features, generator=generator).to(device, dtype)
        for name in ("weight", "bias"):
            inputs[name] = torch.randn(inputs[name].shape, generator=generator).to(device, dtype)
        with rowwise_dots():
            linear(**inputs)
        results.append(inputs["out"][row].clone())
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("capacity", [16, 64, 256, 1024])
def test_a_captured_chain_waits_for_each_layer(capacity):
    """With programmatic dependent launch a layer starts before the one it reads from has ended."""
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    width = 4096
    weights = [torch.randn(width, width, **options) / width**0.5 for _ in range(12)]
    buffers = [torch.randn(capacity, width, **options) for _ in range(2)]
    start = buffers[0].clone()
    num_tokens = torch.full((1,), capacity, dtype=torch.int32, device="cuda")

    def chain(after_each=lambda: None):
        buffers[0].copy_(start)
        for i, weight in enumerate(weights):
            linear(buffers[i % 2], weight, num_tokens, buffers[1 - i % 2])
            after_each()

    chain(torch.cuda.synchronize)
    expected = buffers[0].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    for _ in range(20):
        buffers[0].zero_()
        graph.replay()
        assert torch.equal(buffers[0], expected)


def test_the_interpreter_walks_k_in_the_same_steps_for_every_batch(dtype):
    for in_features in (16, 129, 576, 4096, 14336):
        steps = {
            pointer_tiles(capacity, 4096, in_features, dtype, interpreted=True).block_k
            for capacity in (1, 15, 16, 17, 64, 129, 513, 8192)
        }
        assert len(steps) == 1


def test_empty_capacity_is_allowed(device, dtype):
    linear(**linear_inputs(device, dtype, capacity=0))


def test_too_few_rows_are_refused(device, dtype):
    inputs = linear_inputs(device, dtype)
    with pytest.raises(ValueError, match="x must have at least the 15 rows of out, got 3"):
        linear(**inputs | {"x": inputs["x"][:3]})


def test_unknown_activation_names_the_known_ones(device, dtype):
    with pytest.raises(ValueError, match="relu, gelu, gelu_tanh, silu, got 'tanh'"):
        linear(**linear_inputs(device, dtype) | {"activation": "tanh"})
