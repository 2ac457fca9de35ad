"""Triton-level policies without Triton: the body of a `@triton.jit` function run on numpy arrays.

A policy is elementwise arithmetic over lanes, so its Python body does on arrays what the compiled
function does, if three things are put right: names of `triton.language` mean numpy, integers divide
as in C, and 32-bit floats stay so. `on_lanes` makes such a function of a policy. It covers what
policies are made of; a function that uses more raises when it is called, and the caller lets the
interpreter run it instead.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import triton
import triton.language as tl

from paged.kernels.launch import is_kernel_function

DTYPES = {
    "int1": np.bool_, "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
    "float16": np.float16, "float32": np.float32, "float64": np.float64,
}  # fmt: skip


class Lanes(np.ndarray):
    """An array that computes as Triton does: integers divide towards zero, and an integer beside a
    float becomes one of 32 bits.

    `x += y` names a new value, as in Triton.
    """

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__" or options:
            return NotImplemented
        values = [x.view(np.ndarray) if isinstance(x, Lanes) else x for x in inputs]
        if ufunc is np.true_divide or any(map(_is_float, values)):
            values = [_to_float(x) for x in values]
        elif ufunc is np.floor_divide:
            values[0] = values[0] - np.fmod(*values)
        elif ufunc is np.remainder:
            ufunc = np.fmod
        return lanes(ufunc(*values))

    def to(self, dtype, bitcast: bool = False):
        """The values, or with `bitcast` the bits, as another type."""
        return self.view(dtype) if bitcast else self.astype(dtype)


# numpy's own would write into the column of the request table that x may be.
IN_PLACE = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift",
)  # fmt: skip
for _name in IN_PLACE:
    setattr(Lanes, f"__i{_name}__", getattr(Lanes, f"__{_name}__"))


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or getattr(value, "dtype", np.dtype(int)).kind == "f"


def _to_float(value: Any) -> Any:
    """A float as it is; everything else, and a number of Python's, as one of 32 bits."""
    is_array = isinstance(value, np.ndarray | np.generic)
    return value if is_array and value.dtype.kind == "f" else np.asarray(value, np.float32)


def lanes(values: np.ndarray) -> Lanes:
    """The same memory as lanes; one value is a lane that all share."""
    return np.atleast_1d(values).view(Lanes)


def _where(condition, x, y):
    if _is_float(x) or _is_float(y):
        x, y = _to_float(x), _to_float(y)
    return lanes(np.where(condition, x, y))


def _of_floats(function: Callable) -> Callable:
    """A function that Triton has for floats only."""

    def call(x):
        if not _is_float(x):
            raise TypeError(f"{function.__name__} takes no integers in Triton")
        return function(x)

    return call


def _zeros_like(x):
    return lanes(np.zeros_like(x))


def _full_like(x, value):
    return lanes(np.full_like(x, value))


def _cast(x, dtype, bitcast=False):
    return lanes(np.asarray(x)).to(dtype, bitcast)


def _constexpr(value):
    return getattr(value, "value", value)


LANGUAGE = types.SimpleNamespace(
    where=_where,
    minimum=np.minimum,
    maximum=np.maximum,
    abs=np.abs,
    clamp=lambda x, low, high: np.minimum(np.maximum(x, low), high),
    cdiv=lambda x, y: (x + y - 1) // y,
    zeros_like=_zeros_like,
    full_like=_full_like,
    cast=_cast,
    exp=_of_floats(np.exp),
    exp2=_of_floats(np.exp2),
    log=_of_floats(np.log),
    log2=_of_floats(np.log2),
    sqrt=_of_floats(np.sqrt),
    floor=_of_floats(np.floor),
    ceil=_of_floats(np.ceil),
    constexpr=_constexpr,
    **DTYPES,
)
TRITON = types.SimpleNamespace(language=LANGUAGE, cdiv=LANGUAGE.cdiv)


@functools.cache
def on_lanes(function: Any) -> Callable:
    """A `@triton.jit` function as one over `Lanes`, with what it calls."""
    body = function.fn
    names = {}
    for name in body.__code__.co_names:
        if name in body.__globals__:
            names[name] = _translated(body.__globals__[name])
    plain = {"min": np.minimum, "max": np.maximum, "abs": np.abs, "range": range}
    names["__builtins__"] = plain | {"int": int, "float": float, "bool": bool}
    return types.FunctionType(
        body.__code__, names, body.__name__, body.__defaults__, body.__closure__
    )


def _translated(value: Any) -> Any:
    """What a global of a policy means on lanes."""
    if value is tl:
        return LANGUAGE
    if value is triton:
        return TRITON
    if isinstance(value, tl.constexpr):
        return value.value
    if is_kernel_function(value):
        return on_lanes(value)
    name = getattr(value, "__name__", None)
    if getattr(tl, str(name), None) is value:  # from triton.language import where
        return getattr(LANGUAGE, str(name))
    return value


def as_int32(values: Any, count: int) -> np.ndarray:
    """What a policy returned, as [count] int32; one value stands for all."""
    result = np.asarray(values)
    if result.dtype.kind not in "iub" or result.ndim > 1 or result.size not in (1, count):
        raise TypeError(f"a policy returns one int32 a lane, got {result.dtype} {result.shape}")
    result = result.astype(np.int32, copy=False)
    return result if result.shape == (count,) else np.broadcast_to(result, (count,))
