"""Times every tile of the linear kernels at the shapes of real models, beside cuBLAS and the floor.

    python experiments/kernels/linear/tune.py --out tiles.json --capacities 16 64 256 512 1024 2048
    python experiments/kernels/linear/tune.py --only head --capacities 128 256 512 1024

Up to 64 rows (or with --pointers) the tiles are those of the pointer kernel, above of the
persistent one. Kernels are compiled first, in parallel, into Triton's cache. A tile is timed only
after its result equals, bit for bit, that of a fixed small tile of the pointer kernel: the tables
may then follow the capacity freely. --gated times the gate and up projection with its activation.
The head writes logits in fp32, as in a step; cuBLAS is timed with outputs in bfloat16 and in fp32.
"""

import argparse
import functools
import itertools
import json

import torch
import triton
from timing import BF16, SHAPES, check_close, compile_all, count_of, floor_us, graph_us
from timing import random_weights as weights_of

from paged.kernels import linear as module
from paged.kernels.gated_linear import gated_linear
from paged.kernels.linear import linear
from paged.kernels.linear_tiles import FEW_ROWS, Tiles, persistent_tiles, pointer_tiles

SHARED_BYTES = 228 * 1024  # of a multiprocessor; each program takes one KB more than it asks for
REFERENCE = Tiles(16, 32, 128, 4, 3)
# of the persistent kernel: block_m, block_n, block_k, warps, stages, programs on a multiprocessor
PERSISTENT = [
    (64, 32, 128, 4, 6, 1), (64, 32, 128, 4, 8, 1), (64, 32, 128, 4, 4, 2),
    (64, 64, 64, 4, 6, 2), (64, 64, 64, 4, 4, 3), (64, 64, 128, 4, 4, 1), (64, 64, 128, 4, 3, 2),
    (64, 64, 128, 4, 2, 3), (64, 128, 64, 4, 6, 1), (64, 128, 64, 4, 4, 2), (64, 128, 64, 4, 3, 3),
    (64, 128, 128, 4, 3, 1), (64, 128, 128, 4, 4, 1), (64, 128, 128, 4, 2, 2),
    (64, 256, 64, 4, 4, 1), (64, 256, 64, 4, 2, 2), (64, 256, 64, 8, 4, 1), (128, 64, 64, 4, 4, 2),
    (128, 64, 64, 4, 3, 3), (128, 64, 128, 4, 4, 1), (128, 128, 64, 4, 2, 2),
    (128, 128, 64, 4, 3, 2), (128, 128, 64, 8, 3, 1), (128, 128, 64, 8, 4, 1),
    (128, 128, 64, 8, 5, 1), (128, 128, 64, 8, 6, 1), (128, 128, 64, 8, 3, 2),
    (128, 128, 128, 8, 3, 1), (128, 256, 64, 8, 3, 1), (128, 256, 64, 8, 4, 1),
    (256, 64, 64, 4, 4, 1), (256, 64, 64, 8, 4, 1), (256, 128, 64, 8, 3, 1),
    (256, 128, 64, 8, 4, 1),
]  # fmt: skip


def candidates(capacity: int, pointers: bool) -> list[Tiles]:
    """Tiles worth a try for a capacity, within shared memory."""
    if capacity <= 16:
        grid = itertools.product([16], [8, 16, 32, 64], [128, 256, 512], [2, 4], [3, 4, 6])
    elif capacity <= FEW_ROWS:
        grid = itertools.product([64], [16, 32, 64, 128], [64, 128, 256], [4], [3, 4, 5])
    elif pointers:
        grid = itertools.product([64, 128], [64, 128, 256], [64, 128], [4, 8], [3, 4])
    else:
        least = 1 if capacity <= 1024 else 128 * 128
        grid = (values for values in PERSISTENT if values[0] * values[1] >= least)
    return [tiles for tiles in (Tiles(*values) for values in grid) if fits(tiles)]


def fits(tiles: Tiles) -> bool:
    """Whether shared memory holds the pipeline."""
    step = (tiles.block_m + tiles.block_n) * tiles.block_k * 2
    return (step * tiles.num_stages + 1024) * tiles.per_processor < SHARED_BYTES


def use(tiles: Tiles, pointers: bool) -> None:
    """Make both kernels' launches take `tiles`, and the kernel of pointers if told."""
    module.pointer_tiles = module.persistent_tiles = lambda *_: tiles
    if pointers:
        module.can_persist = lambda *_: False


def output(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(rows, columns, device=BF16["device"], dtype=dtype)


def output_dtype(name: str) -> torch.dtype:
    return torch.float32 if "head" in name else torch.bfloat16


def label_of(tiles: Tiles) -> str:
    return "/".join(str(value) for value in tiles)


def table_tiles(capacity: int, shape: tuple[int, int], pointers: bool) -> Tiles:
    """What a launch takes today."""
    if pointers or capacity <= FEW_ROWS:
        return pointer_tiles(capacity, *shape, torch.bfloat16, False)
    return persistent_tiles(capacity, *shape)


def compile_tile(job: tuple[int, Tiles, bool, bool, torch.dtype]) -> tuple | None:
    capacity, tiles, pointers, gated, out_dtype = job
    use(tiles, pointers)
    x, weight = torch.zeros(capacity, 1024, **BF16), torch.zeros(1024, 1024, **BF16)
    out = output(capacity, 512 if gated else 1024, out_dtype)
    project = functools.partial(gated_linear, activation="silu") if gated else linear
    try:
        project(x, weight, count_of(1), out)
        torch.cuda.synchronize()
    except triton.OutOfResources as error:
        return (*job, str(error))
    return None


def cublas_us(x: torch.Tensor, weights: list, out_dtype: torch.dtype) -> float | None:
    """Microseconds of cuBLAS; None where torch does not offer this output."""
    buffer = output(len(x), len(weights[0]), out_dtype)
    other = {} if out_dtype == x.dtype else {"out_dtype": out_dtype}

    def launch_all() -> None:
        for weight in weights:
            torch.mm(x, weight.T, out=buffer, **other)

    try:
        return graph_us(launch_all, len(weights))
    except (RuntimeError, TypeError) as error:
        print(f"cuBLAS to {out_dtype}: {str(error).splitlines()[0]}", flush=True)
        return None


def time_shape(args: argparse.Namespace, capacity: int, name: str) -> dict:
    shape = out_features, in_features = SHAPES[name]
    weights = weights_of(*shape)
    x, count = torch.randn(capacity, in_features, **BF16), count_of(capacity)
    out = output(capacity, out_features // (2 if args.gated else 1), output_dtype(name))
    project = functools.partial(gated_linear, activation="silu") if args.gated else linear
    can_persist = module.can_persist
    use(REFERENCE, pointers=True)
    project(x, weights[0], count, out)
    module.can_persist = can_persist
    expected = out.clone()
    y = x.float() @ weights[0].float().T
    if args.gated:
        gate, up = y.chunk(2, dim=-1)
        y = torch.nn.functional.silu(gate) * up
    check_close(out, y)
    times: dict[str, float | None] = {}
    today = table_tiles(capacity, shape, args.pointers)
    for tiles in dict.fromkeys([today, *candidates(capacity, args.pointers)]):
        use(tiles, args.pointers)
        label = label_of(tiles)
        try:
            project(x, weights[0], count, out)
        except triton.OutOfResources:
            continue
        if not torch.equal(out, expected):
            times[label] = None
            continue
        times[label] = graph_us(
            lambda: [project(x, weight, count, out) for weight in weights], len(weights)
        )
    cublas = {str(dtype): cublas_us(x, weights, dtype) for dtype in (x.dtype, out.dtype)}
    floor = floor_us(capacity, *shape, out_bytes=out.element_size())
    return {"tiles": times, "cublas": cublas, "floor": floor, "today": label_of(today)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="tiles.json")
    parser.add_argument("--capacities", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--pointers", action="store_true")
    parser.add_argument("--gated", action="store_true")
    parser.add_argument("--only", default="", help="shapes whose name holds this")
    args = parser.parse_args()
    names = [name for name in SHAPES if args.only in name]
    if args.gated:
        names = [name for name in names if "gate_up" in name]
    jobs = [
        (capacity, tiles, args.pointers, args.gated, dtype)
        for capacity in args.capacities
        for tiles in candidates(capacity, args.pointers)
        for dtype in {output_dtype(name): None for name in names}
    ]
    compile_all(compile_tile, jobs)
    print(f"{torch.cuda.get_device_name()}, triton {triton.__version__}")
    results: dict[str, dict] = {}
    for capacity in args.capacities:
        for name in names:
            if capacity > 1024 and "head" in name:
                continue
            result = time_shape(args, capacity, name)
            results[f"{capacity} {name}"] = result
            ranked = sorted((t, n) for n, t in result["tiles"].items() if t is not None)
            differ = sum(t is None for t in result["tiles"].values())
            best = ", ".join(f"{n} {t:.1f}" for t, n in ranked[:3])
            today = f"today {result['today']} {result['tiles'].get(result['today'])}"
            cublas = ", ".join(f"{us:.1f}" for us in result["cublas"].values() if us is not None)
            print(
                f"{capacity:>5} {name:<13} floor {result['floor']:6.1f}  "
                f"cublas {cublas}  {best}; {today}; other bits: {differ}",
                flush=True,
            )
        with open(args.out, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
