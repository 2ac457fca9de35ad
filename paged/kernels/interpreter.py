"""Make Triton's CPU interpreter fast enough for a test suite and for a demonstration.

Costs of the interpreter that dwarf the arithmetic, and whose remedies change no result:

- each call of a `@triton.jit` function from a kernel (`tl.sum` is one) patches triton.language
  again, which the launch of the kernel has done already: about 0.8 ms a call;
- each launch lists the members of triton.language and wraps them anew: about 2 ms;
- each integer addition is repeated in 64 bits to assert that it does not overflow;
- each value describes its shape anew, in objects made one by one: about 30 us a value;
- each element is loaded and stored on its own, dead ones too: 30 ns; numpy needs 4.

Measured on two cores: a step of the engine takes a third of the time by the first three, and half
of that by the last two.
"""

import dataclasses
import functools
import math
from types import SimpleNamespace

import numpy as np
import triton
import triton.language as tl
from triton._utils import validate_block_shape
from triton.runtime import interpreter

# Stands for a kernel that sees the language under both its names, as device functions do.
BOTH_NAMES = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
# Fewer elements than this go faster one by one.
MANY = 64
POINTER = np.dtype(np.uint64)


def call_in_kernel(self, *args, **kwargs):
    """`InterpretedFunction.__call__` inside a kernel, where triton.language is patched."""
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def memory_at(pointers: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(memory, index) such that memory[index] are the elements of `dtype` at `pointers`.

    pointers: uint64, not empty, multiples of the size of `dtype` as a GPU demands. `memory` spans
    them all, so it may reach over what is not ours: only `memory[index]` may be touched.
    """
    first = int(pointers.min())
    size = (int(pointers.max()) - first) // dtype.itemsize + 1
    span = {"data": (first, False), "shape": (size,), "typestr": dtype.str, "version": 3}
    index = pointers - np.uint64(first)
    index >>= np.uint64(dtype.itemsize.bit_length() - 1)
    return np.asarray(SimpleNamespace(__array_interface__=span)), index.view(np.int64)


def contiguous(function):
    """`function` of C++ for any strides: it would read past the one value of `create_splat`."""

    def call(*arguments):
        return function(
            *(np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x for x in arguments)
        )

    return call


def make_load(one_by_one):
    """A faster `load(pointers, mask, other, dtype)` of the interpreter."""

    def load(pointers, mask, other, dtype):
        mask = np.asarray(mask)  # the load of a descriptor gives its buffer
        if pointers.size < MANY:
            return one_by_one(pointers, mask, other, dtype)
        if mask.all():
            memory, index = memory_at(pointers, dtype)
            return memory[index]
        live = mask.argmax()
        if not mask.flat[live]:
            return np.array(other, dtype=dtype)
        memory, index = memory_at(np.where(mask, pointers, pointers.flat[live]), dtype)
        return np.where(mask, memory[index], other.astype(dtype, copy=False))

    return load


def make_store(one_by_one):
    """A faster `store(pointers, values, mask)`: of two values for a pointer, the last one stays."""

    def store(pointers, values, mask):
        if pointers.size < MANY:
            one_by_one(pointers, values, mask)
        elif mask.any():
            memory, index = memory_at(pointers[mask], values.dtype)
            memory[index] = values[mask]

    return store


def make_np_dtype(original):
    """A faster `_get_np_dtype`: the numpy dtype of the elements of a type."""
    of_scalar = functools.cache(original)

    def np_dtype(type):
        scalar = type.scalar
        return POINTER if scalar.is_ptr() else of_scalar(scalar)

    return np_dtype


@functools.cache
def described(shape: tuple[int, ...]) -> tuple[tl.tuple, tl.constexpr]:
    """(shape, number of elements) as a tensor of the language carries them."""
    return tl.tuple([tl.constexpr(size) for size in shape]), tl.constexpr(math.prod(shape))


def init_tensor(self, handle, type) -> None:
    """`tl.tensor.__init__`, with descriptions that tensors of a shape share."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = described(tuple(type.shape) if type.is_block() else ())


@functools.cache
def checked(shape: tuple[int, ...]) -> tuple[tl.tuple, int]:
    """(shape, number of elements) as a type of the language carries them, if Triton allows it."""
    if not shape:
        raise TypeError("0d block_type is forbidden")
    return tl.tuple(shape), validate_block_shape(shape)


def init_block_type(self, element_ty, shape) -> None:
    """`tl.block_type.__init__`, which checks a shape once and names a type when asked."""
    self.element_ty = element_ty
    self.shape, self.numel = checked(tuple(getattr(size, "value", size) for size in shape))


def create_splat(self, type, scalar):
    """A block of one value, which its elements share."""
    value = scalar.data.reshape(-1)
    shape = tuple(type.shape)
    block = np.ndarray(shape, value.dtype, value, strides=(0,) * len(shape))
    return interpreter.TensorHandle(block, scalar.dtype.scalar)


def create_addptr(self, pointer, offset):
    """pointer + offset * size of the element; an offset that one value fills costs one pass."""
    size = np.uint64(max(1, pointer.get_element_ty().primitive_bitwidth // 8))
    offsets = offset.data
    if not any(offsets.strides):
        offsets = offsets.reshape(-1)[:1].reshape((1,) * offsets.ndim)
    data = pointer.data + offsets.astype(np.uint64) * size
    return interpreter.TensorHandle(data, pointer.dtype)


def make_patch_lang(patch_lang):
    """A faster `_patch_lang`: what it put in place the first time is put there again."""
    patches: dict[tuple[int, str], tuple] = {}

    def patch_again(function):
        if not patches:
            scope = patch_lang(BOTH_NAMES)
            for owner, name, before in scope._changes:
                patches.setdefault((id(owner), name), (owner, name, before, getattr(owner, name)))
            return scope
        scope = interpreter._LangPatchScope()
        for owner, name, before, after in patches.values():
            scope._changes.append((owner, name, before))
            setattr(owner, name, after)
        return scope

    return patch_again


def speed_up() -> None:
    """Apply the remedies to the interpreter of this process, if it is the version they are for."""
    if not triton.__version__.startswith("3.7."):
        return
    interpreter._patch_lang = make_patch_lang(interpreter._patch_lang)
    interpreter.InterpretedFunction.__call__ = call_in_kernel
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

    interpreter._get_np_dtype = make_np_dtype(interpreter._get_np_dtype)
    tl.tensor.__init__ = init_tensor
    tl.block_type.__init__ = init_block_type
    tl.block_type.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")
    interpreter.InterpreterBuilder.create_splat = create_splat
    interpreter.InterpreterBuilder.create_addptr = create_addptr
    memory = interpreter._interpreter
    functions = ("load", "store", "atomic_cas", "atomic_rmw")
    native = {name: contiguous(getattr(memory, name)) for name in functions}
    faster = {"load": make_load(native["load"]), "store": make_store(native["store"])}
    interpreter._interpreter = SimpleNamespace(**vars(memory) | native | faster)
