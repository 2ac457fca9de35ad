"""Builders for the tests of the control plane: tiny engines without a model."""

import pytest

from paged.state import Sizes
from paged.testing.driving import drive as random_work
from paged.testing.sides import Knobs
from paged.testing.steps import Steps


@pytest.fixture
def build(device):
    """`build(by=..., num_buckets=..., sizes={...}, **knobs) -> Steps`, tiny unless told."""

    def make(by: str = "both", num_buckets: int | None = None, sizes=None, **knobs) -> Steps:
        capacities = {
            "num_slots": 8, "max_num_seqs": 4, "max_num_batched_tokens": 64,
            "max_model_len": 130, "page_size": 16, "num_pages": 24,
        }  # fmt: skip
        return Steps(
            Sizes(**capacities | (sizes or {})),
            Knobs(**knobs),
            by=by,
            device=device,
            num_buckets=num_buckets,
        )

    return make


@pytest.fixture
def drive():
    """`drive(steps, seed, ...)`: see `paged.testing.driving`."""
    return random_work
