"""A pytest plugin: put any implementation through the contract tests of its interface.

    pytest --pyargs paged.testing.contracts --component scheduler=mylab.sjf.rank

A component is a class, built without arguments, or a policy function. Without the option the
contract tests run over the built-in implementations. The plugin also gives tests the fixture
`device`: "cuda" on a GPU, "cpu" where the interpreter runs.
"""

import importlib

import pytest
import torch

INTERFACES = (
    "scheduler", "eviction", "kv", "compression", "attention", "sampler", "proposer",
)  # fmt: skip


def locate(path: str) -> object:
    """The object a dotted path names. Raises pytest.UsageError if there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(f"--component: cannot import {path!r}: {error}") from error


def pytest_addoption(parser):
    parser.addoption(
        "--component",
        action="append",
        default=[],
        metavar="INTERFACE=PATH",
        help=f"run the contract tests on this implementation; INTERFACE is one of {INTERFACES}",
    )


@pytest.fixture
def device() -> str:
    """Where kernels run: "cuda", or "cpu" through the interpreter."""
    from paged.kernels.launch import interpreted

    return "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"


def pytest_generate_tests(metafunc):
    """A contract test asks for the component by the name of its interface."""
    for interface in INTERFACES:
        if f"{interface}_component" in metafunc.fixturenames:
            built_in = metafunc.module.BUILT_IN
            paths = components(metafunc.config, interface, built_in)
            metafunc.parametrize(f"{interface}_component", [locate(p) for p in paths], ids=paths)


def components(config, interface: str, built_in: list[str]) -> list[str]:
    """What the contract tests of `interface` run over: the given components, else the built-in."""
    given: dict[str, list[str]] = {}
    for option in config.getoption("--component"):
        name, separator, path = option.partition("=")
        if not separator or name not in INTERFACES:
            raise pytest.UsageError(
                f"--component must be INTERFACE=PATH with INTERFACE one of {INTERFACES}, "
                f"got {option!r}"
            )
        given.setdefault(name, []).append(path)
    if not given:
        return built_in
    return given.get(interface, [])
