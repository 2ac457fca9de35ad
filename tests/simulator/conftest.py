"""The stages on the host beside the references of the kernels, on states of their own."""

import pytest

from paged.simulator.stages.host import HostStages
from paged.state import Sizes
from paged.testing.driving import drive as random_work
from paged.testing.sides import Knobs, ReferenceSide, Side
from paged.testing.steps import Steps


class HostSide(Side):
    """A copy of the state whose launchers run on the host."""

    def __init__(self, sizes: Sizes, num_buckets: int | None) -> None:
        super().__init__(sizes, "cpu", num_buckets)
        self.stages = HostStages(self.requests, self.pool, self.plan, inputs=True)


@pytest.fixture
def build_host():
    """`build_host(against=..., num_buckets=..., sizes={...}, **knobs) -> Steps` in lockstep."""

    def make(against=ReferenceSide, num_buckets=None, sizes=None, **knobs) -> Steps:
        capacities = {
            "num_slots": 8, "max_num_seqs": 4, "max_num_batched_tokens": 64,
            "max_model_len": 130, "page_size": 16, "num_pages": 24,
        }  # fmt: skip
        steps = Steps(
            Sizes(**capacities | (sizes or {})), Knobs(**knobs), by="references",
            num_buckets=num_buckets,
        )  # fmt: skip
        steps.sides = [
            HostSide(steps.sizes, num_buckets), against(steps.sizes, "cpu", num_buckets)
        ]  # fmt: skip
        return steps

    return make


@pytest.fixture
def drive():
    """`drive(steps, seed, ...)`: see `paged.testing.driving`."""
    return random_work
