"""Make Triton's CPU interpreter fast enough for a test suite.

Three costs of the interpreter dwarf the arithmetic, and none of them changes a result:

- each call of a `@triton.jit` function from a kernel (`tl.sum` is one) patches triton.language
  again, which the launch of the kernel has done already: about 0.8 ms a call;
- each launch lists the members of triton.language anew to patch them: about 1 ms;
- each integer addition is repeated in 64 bits to assert that it does not overflow.

Measured on two cores: a step of the engine takes a third of the time.
"""

import dataclasses
import inspect
from types import SimpleNamespace

import triton.language as tl
from triton.runtime import interpreter

# Stands for a kernel that sees the language under both its names, as device functions do.
BOTH_NAMES = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})


def call_in_kernel(self, *args, **kwargs):
    """`InterpretedFunction.__call__` inside a kernel, where triton.language is patched."""
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def speed_up() -> None:
    """Apply the three remedies to the interpreter of this process."""
    members: dict[int, list] = {}

    def getmembers(package):
        # Only called between launches, when the package is in its original state.
        if id(package) not in members:
            members[id(package)] = inspect.getmembers(package)
        return members[id(package)]

    patch_lang = interpreter._patch_lang
    interpreter._patch_lang = lambda function: patch_lang(BOTH_NAMES)
    interpreter.inspect = SimpleNamespace(**vars(inspect) | {"getmembers": getmembers})
    interpreter.InterpretedFunction.__call__ = call_in_kernel
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
