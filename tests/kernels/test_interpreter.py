"""The faster interpreter does what Triton's own does."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton._C.libtriton import interpreter as native

from paged.kernels.interpreter import MANY, make_load, make_store
from paged.kernels.launch import interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="about the interpreter")


@triton.jit
def _shared_values_kernel(count_ptr, out_ptr, value, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    tl.atomic_add(count_ptr + lane * 0, 1, mask=lane % 2 == 0)
    tl.store(out_ptr + lane, value, mask=lane >= 1)


@pytest.mark.parametrize("size", [1, 16, 2 * MANY])
def test_a_value_that_all_lanes_share(size):
    count = torch.zeros(1, dtype=torch.int32)
    out = torch.zeros(size, dtype=torch.int32)
    _shared_values_kernel[(1,)](count, out, 7, SIZE=size)
    assert count.item() == (size + 1) // 2
    assert out.tolist() == [0] + [7] * (size - 1)


def test_a_kernel_sees_the_compilers_language_again_after_a_launch():
    before = tl.load, tl.tensor.__add__, tl.core.arange
    test_a_value_that_all_lanes_share(16)
    assert (tl.load, tl.tensor.__add__, tl.core.arange) == before


@pytest.mark.parametrize("live", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("element", ["float32", "float16", "int64", "uint8", "bool"])
def test_loads_and_stores(element, live):
    random = np.random.default_rng(0)
    shape, dtype = (8, MANY), np.dtype(element)
    memory = random.integers(0, 2, 4096).astype(dtype)
    index = random.integers(0, memory.size, shape)
    mask = random.random(shape) < live
    # a masked pointer may point anywhere
    pointers = np.where(mask, memory.ctypes.data + index * dtype.itemsize, 1).astype(np.uint64)
    values = random.integers(0, 2, shape).astype(dtype)

    loaded = make_load(native.load)(pointers, mask, values, dtype)
    np.testing.assert_array_equal(loaded, np.where(mask, memory[index], values))
    assert loaded.dtype == dtype

    expected = memory.copy()
    for place, value in zip(index[mask], values[mask]):
        expected[place] = value
    make_store(native.store)(pointers, values, mask)
    np.testing.assert_array_equal(memory, expected)
