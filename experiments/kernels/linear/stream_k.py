"""Does sharing the last wave of tiles pay for 64 < rows <= 8192?

    python experiments/kernels/linear/stream_k.py --rows 256 512 1024 2048
    TRITON_INTERPRET=1 python experiments/kernels/linear/stream_k.py --check

--check runs the bookkeeping in the interpreter, over many sizes, against torch.
"""

import argparse
import itertools

import torch
import triton
from stream_k_kernel import stream_k
from timing import BF16, SHAPES, check_close, compile_all, count_of, graph_us
from timing import random_weights as weights_of

from paged.kernels.linear_tiles import Tiles

TILES = [
    Tiles(64, 64, 128, 4, 4), Tiles(64, 128, 128, 4, 4), Tiles(64, 128, 64, 4, 4, 2),
    Tiles(64, 256, 64, 4, 4), Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 6),
    Tiles(128, 128, 64, 4, 3, 2), Tiles(128, 256, 64, 8, 4), Tiles(256, 128, 64, 8, 4),
]  # fmt: skip
WAYS = {"plain": (False, False), "shared": (True, True), "no exchange": (True, False)}


def state(programs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Accumulators and flags for as many programs of the largest tile."""
    return (
        torch.zeros(programs * 128 * 256, dtype=torch.float32, device="cuda"),
        torch.zeros(programs, dtype=torch.int32, device="cuda"),
    )


def compile_one(job: tuple[Tiles, str]) -> tuple | None:
    tiles, way = job
    x, weight = torch.zeros(256, 256, **BF16), torch.zeros(256, 256, **BF16)
    try:
        stream_k(x, weight, count_of(1), torch.zeros_like(x), *state(264), tiles, 132, *WAYS[way])
        torch.cuda.synchronize()
    except triton.OutOfResources as error:
        return (*job, str(error))
    return None


def time_shape(rows: int, name: str) -> None:
    out_features, in_features = SHAPES[name]
    weights = weights_of(out_features, in_features)[: 2 if rows > 2048 else None]
    x, out = torch.randn(rows, in_features, **BF16), torch.empty(rows, out_features, **BF16)
    count, exact = count_of(rows), x.float() @ weights[0].float().T
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    partials, flags = state(2 * sms)
    expected = None
    print(f"{rows} {name}")
    cublas = graph_us(lambda: [torch.mm(x, w.T, out=out) for w in weights], len(weights))
    for tiles in TILES:
        tiles_in_all = triton.cdiv(rows, tiles.block_m) * triton.cdiv(out_features, tiles.block_n)
        times = {}
        for way, (share, exchange) in WAYS.items():

            def launch(weight, tiles=tiles, share=share, exchange=exchange) -> None:
                stream_k(x, weight, count, out, partials, flags, tiles, sms, share, exchange)

            def launch_all(launch=launch) -> None:
                for weight in weights:
                    launch(weight)

            try:
                launch(weights[0])
            except triton.OutOfResources:
                continue
            if expected is None:
                check_close(out, exact)
                expected = out.clone()
            if way != "no exchange" and not torch.equal(out, expected):
                print(f"  other bits: {tiles} {way}")
                continue
            times[way] = graph_us(launch_all, len(weights))
            if flags.any():
                raise AssertionError(f"flags left up by {tiles}")
        waves = tiles_in_all / (sms * tiles.per_processor)
        shown = ", ".join(f"{way} {us:.1f}" for way, us in times.items())
        print(f"  {'/'.join(map(str, tiles))} waves {waves:.2f}: {shown} (cuBLAS {cublas:.1f})")


def check() -> None:
    """All ways to cut: sizes by programs, in the interpreter, against torch."""
    tiles = Tiles(16, 32, 32, 4, 2)
    generator = torch.Generator().manual_seed(0)
    sizes = itertools.product((0, 1, 33, 100, 128), (64, 96, 200), (32, 128, 256), range(1, 10))
    checked = 0
    for live, out_features, in_features, programs in sizes:
        x = torch.randn(128, in_features, generator=generator).half()
        weight = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
        weight = weight.half()
        out = torch.full((128, out_features), float("nan")).half()
        partials, flags = torch.zeros(programs * 16 * 32), torch.zeros(programs, dtype=torch.int32)
        count = torch.tensor([live], dtype=torch.int32)
        stream_k(x, weight, count, out, partials, flags, tiles, programs)
        expected = (x.float() @ weight.float().T)[:live]
        torch.testing.assert_close(out[:live].float(), expected, atol=4e-3, rtol=4e-3)
        assert out[live:].isnan().all()
        assert not flags.any()
        checked += 1
    print(f"{checked} sizes correct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        check()
        return
    compile_all(compile_one, list(itertools.product(TILES, WAYS)))
    for rows in args.rows:
        for name in SHAPES:
            if "head" not in name:
                time_shape(rows, name)


if __name__ == "__main__":
    main()
