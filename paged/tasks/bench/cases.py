"""One operation at one shape of the model: how to run it, what it must give, what it costs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from paged.interfaces import Attention
from paged.kernels.activation import activate_ref
from paged.kernels.embedding import embedding, embedding_inputs, embedding_ref
from paged.kernels.gated_linear import gated_linear, gated_linear_inputs, gated_linear_ref
from paged.kernels.linear import linear, linear_inputs, linear_ref
from paged.kernels.norm import norm, norm_inputs, norm_ref
from paged.kernels.rope_kv import rope_kv, rope_kv_inputs, rope_kv_ref
from paged.models.spec import DecoderSpec
from paged.testing.tolerances import assert_close


@dataclass(frozen=True)
class Case:
    """One row of the kernels' table.

    Args:
        make: new arguments on the device; they are cycled through, so that L2 holds none.
        run: launches the operation on them.
        check: raises AssertionError unless `run` on these arguments gave what it must.
        num_bytes, num_flops: the least that must be read and written, and computed.
        libraries: the same work on the same arguments by others; the fastest counts, and one that
            raises RuntimeError is left out.
    """

    name: str
    make: Callable[[], dict]
    run: Callable[[dict], object]
    check: Callable[[dict], None]
    num_bytes: float
    num_flops: float = 0.0
    libraries: Mapping[str, Callable[[dict], object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shapes:
    """What the cases are made for."""

    spec: DecoderSpec
    device: torch.device
    dtype: torch.dtype
    page_size: int
    attention: Attention

    @property
    def on(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype}


def row_cases(shapes: Shapes, rows: int) -> Iterator[Case]:
    """The operations of a layer that work on each token by itself, for `rows` tokens."""
    spec = shapes.spec
    linears = {
        "qkv": (spec.q_size + 2 * spec.kv_size, spec.hidden_size),
        "o": (spec.hidden_size, spec.q_size),
        "down": (spec.hidden_size, spec.intermediate_size),
    }
    if not spec.gated:
        linears["up"] = (spec.intermediate_size, spec.hidden_size)
    for name, (out_features, in_features) in linears.items():
        yield linear_case(shapes, f"linear {name}", rows, out_features, in_features)
    yield norm_case(shapes, rows)
    yield rope_case(shapes, rows)
    if spec.gated:
        yield gated_case(shapes, rows)
    yield embedding_case(shapes, rows)


def linear_case(shapes: Shapes, name: str, rows: int, out_features: int, in_features: int) -> Case:
    size = shapes.dtype.itemsize

    def make() -> dict:
        inputs = linear_inputs(**shapes.on, capacity=rows, in_features=in_features, out_features=16)
        # the weight is made on the device: the host would take seconds for it
        weight = torch.randn(out_features, in_features, device=shapes.device) / in_features**0.5
        out = torch.full((rows, out_features), float("nan"), **shapes.on)
        return inputs | {"weight": weight.to(shapes.dtype), "out": out}

    return Case(
        f"{name} {out_features}x{in_features}, {rows} rows",
        make,
        lambda inputs: linear(**inputs),
        lambda inputs: assert_close(inputs["out"], linear_ref(**inputs)),
        size * (out_features * in_features + rows * (in_features + out_features)),
        2.0 * rows * out_features * in_features,
        {"cuBLAS": lambda inputs: F.linear(inputs["x"][:rows], inputs["weight"])},
    )


def norm_case(shapes: Shapes, rows: int) -> Case:
    spec = shapes.spec
    layer = spec.norm == "layer"

    def make() -> dict:
        inputs = norm_inputs(
            **shapes.on, capacity=rows, num_tokens=rows, hidden_size=spec.hidden_size,
            kind=spec.norm, with_bias=layer, with_residual=True,
        )  # fmt: skip
        return inputs | {"expected": norm_ref(**inputs)}

    def run(inputs: dict) -> None:
        norm(**{name: value for name, value in inputs.items() if name != "expected"})

    def check(inputs: dict) -> None:
        assert_close(inputs["out"], inputs["expected"][0])
        assert_close(inputs["residual"], inputs["expected"][1])

    def library(inputs: dict) -> torch.Tensor:
        h, weight, width = inputs["x"] + inputs["residual"], inputs["weight"], (spec.hidden_size,)
        if layer:
            return F.layer_norm(h, width, weight, inputs["bias"], inputs["eps"])
        return F.rms_norm(h, width, weight, inputs["eps"])

    moved = 4 * rows * spec.hidden_size * shapes.dtype.itemsize
    return Case(f"norm + residual, {rows} rows", make, run, check, moved, 0.0, {"torch": library})


def rope_case(shapes: Shapes, rows: int) -> Case:
    spec = shapes.spec

    def make() -> dict:
        inputs = rope_kv_inputs(
            **shapes.on, capacity=rows, num_tokens=rows, num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim, page_size=shapes.page_size,
            rotary_dim=spec.rope.rotary_dim if spec.rope else 0, with_norm=spec.qk_norm,
        )  # fmt: skip
        return inputs | {"expected": rope_kv_ref(**inputs)}

    def run(inputs: dict) -> None:
        rope_kv(**{name: value for name, value in inputs.items() if name != "expected"})

    def check(inputs: dict) -> None:
        for name, expected in zip(("qkv", "k_cache", "v_cache"), inputs["expected"]):
            written = ~expected.isnan()
            assert torch.equal(written, ~inputs[name].isnan()), f"{name}: wrong places were written"
            assert_close(inputs[name][written], expected[written])

    rotated = 2 * (spec.q_size + spec.kv_size) if spec.rope or spec.qk_norm else 0
    moved = rotated + 4 * spec.kv_size
    return Case(f"rope + KV write, {rows} rows", make, run, check,
                rows * moved * shapes.dtype.itemsize)  # fmt: skip


def gated_case(shapes: Shapes, rows: int) -> Case:
    spec, size = shapes.spec, shapes.dtype.itemsize
    name, width, in_features = spec.activation, spec.intermediate_size, spec.hidden_size

    def make() -> dict:
        inputs = gated_linear_inputs(
            **shapes.on, capacity=rows, in_features=in_features, width=16, activation=name
        )
        weight = torch.randn(2 * width, in_features, device=shapes.device) / in_features**0.5
        out = torch.full((rows, width), float("nan"), **shapes.on)
        return inputs | {"weight": weight.to(shapes.dtype), "out": out}

    def library(inputs: dict) -> torch.Tensor:
        gate, up = F.linear(inputs["x"][:rows], inputs["weight"]).chunk(2, dim=1)
        return activate_ref(gate, name) * up

    return Case(
        f"gated {name} {2 * width}x{in_features}, {rows} rows",
        make,
        lambda inputs: gated_linear(**inputs),
        lambda inputs: assert_close(inputs["out"], gated_linear_ref(**inputs)),
        size * (2 * width * in_features + rows * (in_features + width)),
        4.0 * rows * width * in_features,
        {"cuBLAS": library},
    )


def embedding_case(shapes: Shapes, rows: int) -> Case:
    spec = shapes.spec

    def make() -> dict:
        return embedding_inputs(
            **shapes.on, capacity=rows, num_tokens=rows, hidden_size=spec.hidden_size,
            vocab_size=4096,
        )  # fmt: skip

    return Case(
        f"embedding, {rows} rows",
        make,
        lambda inputs: embedding(**inputs),
        lambda inputs: assert_close(inputs["out"], embedding_ref(**inputs)),
        2 * rows * spec.hidden_size * shapes.dtype.itemsize,
        0.0,
        {"torch": lambda inputs: F.embedding(inputs["ids"], inputs["weight"])},
    )
