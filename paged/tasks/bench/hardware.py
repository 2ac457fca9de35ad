"""What the device can do at most, measured in the run: the floor that figures are held against."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paged.kernels.read_sum import read_sum
from paged.models.spec import DecoderSpec, kv_bytes_per_page, weight_shapes

READ_BYTES = 4 << 30
PRODUCT_SIZE = 8192


@dataclass(frozen=True)
class Hardware:
    """Rates of a device: bytes read a second, floating-point operations a second."""

    bandwidth: float
    flops: float

    def floor(self, num_bytes: float, num_flops: float = 0.0) -> float:
        """Seconds that this much reading and computing take at least, side by side."""
        return max(num_bytes / self.bandwidth, num_flops / self.flops)


def measure(device: torch.device, dtype: torch.dtype) -> Hardware | None:
    """The best of some reads of a large tensor and of some large matrix products; None on a CPU,
    whose interpreter no hardware limits.
    """
    if device.type != "cuda":
        return None
    hardware = Hardware(_bandwidth(device), _flops(device, dtype))
    torch.cuda.empty_cache()  # an engine comes next, and takes what is free
    return hardware


def _flops(device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=device).to(dtype) for _ in range(2))
    return 2 * PRODUCT_SIZE**3 / graph_seconds([lambda: torch.mm(a, b)])


def _bandwidth(device: torch.device) -> float:
    free, _ = torch.cuda.mem_get_info(device)
    x = torch.ones(min(READ_BYTES, free // 2) // 4, device=device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count

    def seconds(programs: int) -> float:
        out = torch.empty(programs, device=device)
        return graph_seconds([lambda: read_sum(x, out)])

    return 4 * x.numel() / min(seconds(processors * most) for most in (2, 4, 8))


def graph_seconds(launches: Sequence[Callable[[], object]], repeats: int = 7) -> float:
    """Seconds of one of `launches`, all captured in one CUDA graph: the median of its replays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for launch in launches:  # compiles, and makes what a first call makes
            launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    times = []
    for _ in range(repeats + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[1:]) / 1e3 / len(launches)


def step_bytes(spec: DecoderSpec, dtype: torch.dtype) -> int:
    """Bytes of weights that a decode step reads: all but tables of which it reads some rows."""
    tables = {"positions.weight"} | (set() if spec.tied_embeddings else {"embed.weight"})
    shapes = weight_shapes(spec)
    sizes = [torch.Size(shape).numel() for name, shape in shapes.items() if name not in tables]
    return sum(sizes) * dtype.itemsize


def token_bytes(spec: DecoderSpec, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token of context, all layers together."""
    return kv_bytes_per_page(spec, 1, dtype)
