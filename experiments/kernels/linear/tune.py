"""Times every tile of the linear kernel at the shapes of real models, beside cuBLAS and the floor.

    python experiments/kernels/linear/tune.py --out tiles.json

Kernels are compiled first, in parallel, into Triton's cache. Weights rotate through more memory
than L2 holds; a time is the median of graph replays. A tile is timed only after its result equals,
bit for bit, that of the first tile: the table may then follow the capacity freely.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics

import torch
import triton

from paged.kernels import linear as module
from paged.kernels.linear import Tiles, linear

SHAPES = {  # (out_features, in_features)
    "8b qkv": (6144, 4096), "8b o": (4096, 4096), "8b gate_up": (28672, 4096),
    "8b down": (4096, 14336), "8b head": (128256, 4096),
    "0.6b qkv": (4096, 1024), "0.6b o": (1024, 2048), "0.6b gate_up": (6144, 1024),
    "0.6b down": (1024, 3072), "0.6b head": (151936, 1024),
}  # fmt: skip
BANDWIDTH = 4.55e12  # bytes a second, read, measured on an H200
ROTATE_BYTES = 200e6
SHARED_BYTES = 220e3


def candidates(capacity: int) -> list[Tiles]:
    """Tiles worth a try for a capacity, within shared memory."""
    if capacity <= 16:
        grid = itertools.product([16], [16, 32, 64], [128, 256, 512], [2, 4, 8], [3, 4, 6])
    elif capacity <= 64:
        grid = itertools.product([64], [32, 64, 128], [64, 128, 256], [4, 8], [3, 4, 5])
    elif capacity <= 256:
        grid = itertools.product([64, 128], [64, 128, 256], [64, 128], [4, 8], [3, 4])
    else:
        grid = itertools.product([128], [128, 256], [64, 128], [4, 8], [3, 4])
    return [
        tiles for tiles in (Tiles(*values) for values in grid)
        if (tiles.block_m + tiles.block_n) * tiles.block_k * 2 * tiles.num_stages < SHARED_BYTES
        and tiles.block_m * tiles.block_n <= 128 * 32 * tiles.num_warps * 2
    ]  # fmt: skip


def use(tiles: Tiles) -> None:
    module.linear_tiles = lambda *_: tiles


def compile_tile(job: tuple[int, Tiles]) -> None:
    capacity, tiles = job
    use(tiles)
    rows = {"device": "cuda", "dtype": torch.bfloat16}
    x, weight = torch.zeros(capacity, 1024, **rows), torch.zeros(1024, 1024, **rows)
    count = torch.ones(1, dtype=torch.int32, device="cuda")
    linear(x, weight, count, torch.zeros(capacity, 1024, **rows))


def graph_us(launches, repeats: int = 7) -> float:
    """Microseconds of one of `launches`, all captured in one graph."""
    for launch in launches[:2]:
        launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times) * 1e3 / len(launches)


def time_shape(capacity: int, out_features: int, in_features: int) -> dict:
    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    copies = max(2, min(40, int(ROTATE_BYTES / (out_features * in_features * 2)) + 1))
    weights = [torch.randn(out_features, in_features, **bf16) * 0.02 for _ in range(copies)]
    x = torch.randn(capacity, in_features, **bf16)
    count = torch.full((1,), capacity, dtype=torch.int32, device="cuda")
    out = torch.empty(capacity, out_features, **bf16)
    times, expected = {}, None
    for tiles in candidates(capacity):
        use(tiles)
        linear(x, weights[0], count, out)
        if expected is None:
            expected = out.clone()
            exact = x.float() @ weights[0].float().T
            assert (out.float() - exact).norm() / exact.norm() < 5e-3
        name = "/".join(str(value) for value in tiles)
        if not torch.equal(out, expected):
            times[name] = None
            continue
        times[name] = graph_us([lambda w=w: linear(x, w, count, out) for w in weights])
    cublas = graph_us([lambda w=w: torch.nn.functional.linear(x, w, out=None) for w in weights])
    floor = (out_features * in_features * 2 + capacity * (in_features + out_features) * 2) / 1e6
    return {"tiles": times, "cublas": cublas, "floor": floor / BANDWIDTH * 1e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="tiles.json")
    parser.add_argument("--capacities", type=int, nargs="+", default=[16, 64, 256, 1024])
    args = parser.parse_args()
    jobs = [(capacity, tiles) for capacity in args.capacities for tiles in candidates(capacity)]
    with multiprocessing.get_context("spawn").Pool(14) as pool:
        pool.map(compile_tile, jobs, chunksize=4)
    print(f"{len(jobs)} tiles, {torch.cuda.get_device_name()}, triton {triton.__version__}")
    results: dict[str, dict] = {}
    for capacity in args.capacities:
        for name, shape in SHAPES.items():
            result = time_shape(capacity, *shape)
            results[f"{capacity} {name}"] = result
            ranked = sorted((t, n) for n, t in result["tiles"].items() if t is not None)
            differ = sum(t is None for t in result["tiles"].values())
            best = ", ".join(f"{n} {t:.1f}" for t, n in ranked[:3])
            print(
                f"{capacity:>5} {name:<13} floor {result['floor']:6.1f}  "
                f"cublas {result['cublas']:6.1f}  {best}  other bits: {differ}",
                flush=True,
            )
        with open(args.out, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
