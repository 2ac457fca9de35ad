"""What kernels in Gluon share: where they run, and how their threads meet."""

import functools

import torch
from triton.experimental.gluon import language as gl

from paged.kernels.launch import interpreted

# of all threads of a warp group or a program; its name in Triton 3.6 and in 3.7
barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier


@functools.cache
def has_warp_groups() -> bool:
    """True on Hopper, whose products of warp groups they issue, or with no GPU to ask."""
    if interpreted():
        return False
    if not torch.cuda.is_available():
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability()[0] == 9
