"""A kernel that may start early waits for the ones before it, in every program, first of all."""

import ast
import importlib
import inspect
import pkgutil
import textwrap

import pytest

import paged.kernels.control
from paged.kernels.launch import is_kernel_function

MODULES = [
    importlib.import_module(f"paged.kernels.control.{info.name}")
    for info in pkgutil.iter_modules(paged.kernels.control.__path__)
]
KERNELS = {
    name: value.fn
    for module in MODULES
    for name, value in vars(module).items()
    if is_kernel_function(value) and "PDL" in inspect.signature(value.fn).parameters
}
FIRST = """
if PDL:
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
"""


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_it_waits_before_it_reads_or_leaves(name):
    (kernel,) = ast.parse(textwrap.dedent(inspect.getsource(KERNELS[name]))).body
    (wait,) = ast.parse(FIRST).body
    assert ast.dump(kernel.body[0]) == ast.dump(wait)


def test_the_stages_of_every_step_may_start_early():
    stages = ("ingest", "lookup", "order", "schedule", "prepare", "update", "publish", "release")
    assert {f"_{stage}_kernel" for stage in stages} <= KERNELS.keys()
