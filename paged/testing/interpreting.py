"""Make the CPU interpreter compute as a GPU does where numpy differs."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from paged.kernels.launch import interpreted


@contextmanager
def rowwise_dots() -> Iterator[None]:
    """Inside, a row of an interpreted `tl.dot` has the same bits wherever it stands in its tile.

    So it is on a GPU. The interpreter calls BLAS, which sums a row differently at the edge of a
    matrix; here products are summed in float64 and rounded once. For tests of batch invariance:
    what is left to differ is the kernel's own order of work. Compiled, nothing changes.
    """
    if not interpreted():
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        product = np.matmul(a.data, b.data, dtype=np.float64)
        return TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)

    original = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = create_dot
    try:
        yield
    finally:
        InterpreterBuilder.create_dot = original
