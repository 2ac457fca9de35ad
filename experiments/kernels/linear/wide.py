"""Do tiles of 192 columns pay where those of 128 and 256 leave multiprocessors without work?

    python experiments/kernels/linear/wide.py --rows 256 512 1024
    TRITON_INTERPRET=1 python experiments/kernels/linear/wide.py --check

Beside the launch of today and cuBLAS; a tile is timed only if its bits are those of that launch.
--check compares with torch in the interpreter.
"""

import argparse
import itertools

import torch
import triton
from timing import BF16, SHAPES, check_close, compile_all, count_of, floor_us, graph_us
from timing import random_weights as weights_of
from wide_kernel import wide

from paged.kernels.linear import linear
from paged.kernels.linear_tiles import Tiles

TILES = [
    Tiles(*values)._replace(flatten=flatten)
    for values in (
        (64, 128, 64, 4, 4), (64, 128, 64, 4, 6), (64, 128, 64, 4, 3, 2), (64, 128, 128, 4, 3),
        (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 8, 5),
    )
    for flatten in (False, True)
]  # fmt: skip


def compile_one(tiles: Tiles) -> tuple | None:
    x, weight = torch.zeros(256, 256, **BF16), torch.zeros(256, 256, **BF16)
    try:
        wide(x, weight, count_of(1), torch.zeros_like(x), tiles, 132)
        torch.cuda.synchronize()
    except triton.OutOfResources as error:
        return (tiles, str(error))
    return None


def time_shape(rows: int, name: str) -> None:
    weights = weights_of(*SHAPES[name])
    x, count = torch.randn(rows, SHAPES[name][1], **BF16), count_of(rows)
    out = torch.empty(rows, SHAPES[name][0], **BF16)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    cublas = graph_us(lambda: [torch.mm(x, w.T, out=out) for w in weights], len(weights))
    today = graph_us(lambda: [linear(x, w, count, out) for w in weights], len(weights))
    linear(x, weights[0], count, out)
    check_close(out, x.float() @ weights[0].float().T)
    expected, times = out.clone(), []
    for tiles in TILES:
        label = "/".join(map(str, tiles[:6])) + (" flat" if tiles.flatten else "")
        try:
            wide(x, weights[0], count, out, tiles, multiprocessors)
        except triton.OutOfResources:
            continue
        if not torch.equal(out, expected):
            print(f"  other bits: {label}")
            continue

        def launch_all(tiles=tiles) -> None:
            for weight in weights:
                wide(x, weight, count, out, tiles, multiprocessors)

        times.append((graph_us(launch_all, len(weights)), label))
    best = ", ".join(f"{label} {us:.1f}" for us, label in sorted(times)[:3])
    floor = floor_us(rows, *SHAPES[name])
    print(
        f"{rows:>5} {name:<13} floor {floor:.1f} cublas {cublas:.1f} today {today:.1f}  {best}",
        flush=True,
    )


def check() -> None:
    """In the interpreter, over sizes that fill no tile, against torch."""
    generator = torch.Generator().manual_seed(0)
    sizes = itertools.product((0, 1, 70, 100), (48, 96, 200), (32, 96), (1, 3, 200), (False, True))
    checked = 0
    for live, out_features, in_features, programs, flatten in sizes:
        x = torch.randn(100, in_features, generator=generator).half()
        weight = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
        weight = weight.half()
        out = torch.full((100, out_features), float("nan")).half()
        count = torch.tensor([live], dtype=torch.int32)
        wide(x, weight, count, out, Tiles(16, 32, 32, 4, 2, flatten=flatten), programs)
        expected = (x.float() @ weight.float().T)[:live]
        torch.testing.assert_close(out[:live].float(), expected, atol=4e-3, rtol=4e-3)
        assert out[live:].isnan().all()
        checked += 1
    print(f"{checked} sizes correct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        check()
        return
    compile_all(compile_one, TILES)
    print(f"{torch.cuda.get_device_name()}, triton {triton.__version__}")
    for rows, name in itertools.product(args.rows, SHAPES):
        if "head" not in name:
            time_shape(rows, name)


if __name__ == "__main__":
    main()
