"""How the launches of a step reach the device: one by one, or as captured CUDA graphs.

A graph is captured for each capacity; kernels read the actual sizes from the device and skip what
lies beyond, so a graph serves every batch it has room for, prefill and mixed steps included.
"""

import time

import torch

from paged.ledger import Ledger
from paged.state import next_power_of_2
from paged.step import Step

REGIMES = (16, 64, 256, 512, 1024)  # tokens; tiles of the kernels change about there


def regimes(max_num_batched_tokens: int) -> tuple[int, ...]:
    """Capacities to have a graph for, ascending; the last is the budget of a step.

    One that is over half of the budget would save too little to be worth a graph.
    """
    below = [size for size in REGIMES if 2 * size <= max_num_batched_tokens]
    return (*below, max_num_batched_tokens)


def use_graphs(engine: str, device: torch.device, capturable: bool) -> bool:
    """Whether `engine` (auto, graph or eager) means graphs. Raises ValueError if it cannot."""
    if engine not in ("auto", "graph", "eager"):
        raise ValueError(f"engine must be auto, graph or eager, got {engine!r}")
    if engine == "graph" and device.type != "cuda":
        raise ValueError("engine=graph needs a GPU; use engine=eager or auto in the interpreter")
    return engine == "graph" or (engine == "auto" and device.type == "cuda" and capturable)


def check_capturable(step: Step) -> None:
    """Raise ValueError if a part of the step runs on the host, so that no graph can hold it."""
    for name in ("scheduler", "kv", "eviction", "attention", "sampler", "logits", "drafts"):
        if not getattr(step, name).capturable:
            kind = type(getattr(step, name)).__name__
            raise ValueError(
                f"engine=graph cannot capture the {name} {kind}, which runs on the host; "
                "use engine=eager with it"
            )


class EagerSteps:
    """Launches every stage of every step from Python."""

    capture_seconds = 0.0

    def __init__(self, step: Step) -> None:
        self.step = step

    def run(self, capacity: int, num_commands: int, ledger: Ledger) -> None:
        """Launch one step, for sequences as long as the live requests can become."""
        # Powers of two, so that few different bounds, and few buffers and kernels for them, occur.
        bound = min(next_power_of_2(ledger.longest), self.step.sizes.max_model_len)
        self.step.run(capacity, num_commands, bound, beams=ledger.num_beams > 0)

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
        check_capturable(step)
        self.step = step
        self.capacities = capacities
        self._pool = torch.cuda.graph_pool_handle()
        self._steps: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}  # by capacity and beams
        self._maintenance = torch.cuda.CUDAGraph()
        self.capture_seconds = 0.0
        self.takes_beams = False  # until their graphs are captured, when the first of them come

    def run_uncaptured(self, capacity: int, beams: bool) -> None:
        """One step launched as it will be captured, to compile its kernels and make its buffers."""
        sizes, mailbox = self.step.sizes, self.step.mailbox
        self.step.run(capacity, mailbox.max_commands, sizes.max_model_len, beams)
        self.step.maintain()

    def capture(self, beams: bool) -> None:
        """Capture all graphs; every capacity must have run uncaptured once."""
        began = time.perf_counter()
        sizes, mailbox = self.step.sizes, self.step.mailbox
        for capacity in self.capacities:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self.step.run(capacity, mailbox.max_commands, sizes.max_model_len, beams)
            self._steps[capacity, beams] = graph
        if not beams:
            with torch.cuda.graph(self._maintenance, pool=self._pool):
                self.step.maintain()
        self.takes_beams = beams
        self.capture_seconds += time.perf_counter() - began

    def run(self, capacity: int, num_commands: int, ledger: Ledger) -> None:
        self._steps[capacity, ledger.num_beams > 0].replay()

    def maintain(self) -> None:
        self._maintenance.replay()
