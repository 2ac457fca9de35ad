"""Fixtures of the whole suite: where tests run, and in which precisions."""

import pytest
import torch

import paged  # noqa: F401 - chooses the interpreter before anything imports triton
from paged.kernels.launch import interpreted

ON_GPU = torch.cuda.is_available() and not interpreted()
# bf16 arithmetic is wrong in the interpreter.
DTYPES = (
    [torch.float32, torch.bfloat16, torch.float16] if ON_GPU else [torch.float32, torch.float16]
)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_generate_tests(metafunc):
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def pytest_collection_modifyitems(config, items):
    for item in items:
        if ON_GPU and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
        if not ON_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if item.get_closest_marker("slow") and not (config.getoption("--slow") or ON_GPU):
            item.add_marker(pytest.mark.skip(reason="slow in the interpreter; run with --slow"))
