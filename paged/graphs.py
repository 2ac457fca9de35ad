"""How the launches of a step reach the device: one by one, or as captured CUDA graphs.

A graph is captured for each capacity; kernels read the actual sizes from the device and skip what
lies beyond, so a graph serves every batch it has room for, prefill and mixed steps included.
"""

import torch

from paged.state import next_power_of_2
from paged.step import Step


class EagerSteps:
    """Launches every stage of every step from Python."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def run(self, capacity: int, num_commands: int, longest: int) -> None:
        """Launch one step; `longest` bounds the length any live sequence can reach."""
        # Powers of two, so that few different bounds, and few buffers and kernels for them, occur.
        bound = min(next_power_of_2(longest), self.step.sizes.max_model_len)
        self.step.run(capacity, num_commands, bound)

    def maintain(self) -> None:
        self.step.maintain()


class GraphSteps:
    """Replays a captured step, and captured maintenance.

    Args:
        warm_up: runs one empty step of a capacity through the engine, eagerly: it compiles every
            kernel and makes every buffer before the capture.
        capacities: a graph is captured for each.

    Raises ValueError if a part of the step cannot be captured.
    """

    def __init__(self, step: Step, capacities: tuple[int, ...]) -> None:
        for name in ("scheduler", "kv", "eviction", "attention", "sampler"):
            if not getattr(step, name).capturable:
                kind = type(getattr(step, name)).__name__
                raise ValueError(
                    f"engine=graph cannot capture the {name} {kind}, which runs on the host; "
                    "use engine=eager with it"
                )
        self.step = step
        self.capacities = capacities
        self._pool = torch.cuda.graph_pool_handle()
        self._steps: dict[int, torch.cuda.CUDAGraph] = {}
        self._maintenance = torch.cuda.CUDAGraph()

    def run_uncaptured(self, capacity: int) -> None:
        """One step launched as it will be captured, to compile its kernels and make its buffers."""
        sizes, mailbox = self.step.sizes, self.step.mailbox
        self.step.run(capacity, mailbox.max_commands, sizes.max_model_len)
        self.step.maintain()

    def capture(self) -> None:
        """Capture all graphs; every capacity must have run uncaptured once."""
        sizes, mailbox = self.step.sizes, self.step.mailbox
        for capacity in self.capacities:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self.step.run(capacity, mailbox.max_commands, sizes.max_model_len)
            self._steps[capacity] = graph
        with torch.cuda.graph(self._maintenance, pool=self._pool):
            self.step.maintain()

    def run(self, capacity: int, num_commands: int, longest: int) -> None:
        self._steps[capacity].replay()

    def maintain(self) -> None:
        self._maintenance.replay()
