"""What would make the linear layers of a decode step faster: segments of K, prefetch, no clamp.

    python experiments/kernels/linear/few_rows.py --rows 16 64 --seconds 50

For each weight shape the fastest tile of each way, in a chain of launches of that shape; then all
linear layers of a model as one chain with real dependencies, each way and without programmatic
dependent launch, whose results must be equal bit for bit among the ways of equal segments.
"""

import argparse
import functools
import time

import torch
import triton
from few_rows_kernel import few_rows
from timing import BF16, LAYERS, SHAPES, check_close, compile_all, count_of, floor_us, graph_us
from timing import random_weights as weights_of

from paged.kernels.linear_tiles import Tiles

# (segments, bytes of prefetch, clamp)
Way = tuple[int, int, bool]
WAYS: dict[str, Way] = {
    "as it is": (1, 0, True),
    "no clamp": (1, 0, False),
    "prefetch": (1, 32768, False),
    "2 segments": (2, 0, False),
    "4 segments": (4, 0, False),
    "4 and prefetch": (4, 32768, False),
    "8 segments": (8, 0, False),
}
# block_n, block_k, warps, stages by (rows, segments); a few more than fit one shape best
TILES = {
    (16, 1): [
        (16, 256, 4, 4), (16, 512, 4, 3), (16, 512, 2, 3), (8, 512, 4, 3), (32, 128, 4, 4),
        (32, 256, 4, 4), (32, 256, 2, 4), (32, 128, 2, 3), (64, 128, 2, 3), (64, 128, 4, 4),
        (64, 256, 4, 4),
    ],
    (16, 2): [
        (16, 128, 2, 4), (16, 256, 2, 3), (16, 256, 4, 3), (8, 256, 2, 3), (32, 128, 2, 4),
        (32, 128, 4, 3), (64, 64, 2, 4), (64, 64, 4, 4), (64, 128, 4, 3),
    ],
    (16, 4): [
        (16, 64, 4, 4), (16, 128, 4, 3), (16, 128, 4, 4), (16, 256, 4, 2), (8, 128, 4, 3),
        (8, 128, 4, 4), (32, 64, 4, 3), (32, 64, 4, 4), (32, 128, 4, 3), (64, 32, 4, 4),
        (64, 64, 4, 3),
    ],
    (16, 8): [
        (16, 32, 8, 6), (16, 64, 8, 3), (16, 64, 8, 4), (16, 128, 8, 2), (8, 64, 8, 4),
        (8, 128, 8, 3), (32, 32, 8, 4), (32, 64, 8, 3),
    ],
    (64, 1): [
        (16, 256, 4, 3), (16, 256, 4, 4), (32, 128, 4, 5), (32, 256, 4, 4), (64, 64, 4, 6),
        (64, 128, 4, 3), (64, 128, 4, 5), (128, 64, 4, 4),
    ],
    (64, 2): [(16, 64, 4, 4), (16, 128, 4, 3), (32, 64, 4, 3), (32, 64, 4, 4), (64, 64, 4, 4)],
    (64, 4): [(8, 64, 4, 4), (16, 32, 4, 6), (16, 64, 4, 3), (32, 32, 4, 3), (32, 32, 4, 4)],
    (64, 8): [(8, 32, 8, 4), (16, 32, 8, 3), (16, 32, 8, 4), (32, 32, 8, 3)],
}  # fmt: skip
HEAD = {16: Tiles(16, 64, 128, 2, 3), 64: Tiles(64, 128, 64, 4, 4)}
Choice = tuple[Tiles, Way]


def fits(in_features: int, tiles: Tiles, way: Way) -> bool:
    return in_features % (way[0] * tiles.block_k) == 0


def tiles_of(rows: int, way: Way) -> list[Tiles]:
    return [Tiles(rows, *values) for values in TILES[rows, way[0]]]


def compile_one(job: tuple[int, Tiles, Way, int]) -> tuple | None:
    rows, tiles, way, in_features = job
    x, weight = torch.zeros(rows, in_features, **BF16), torch.zeros(1024, in_features, **BF16)
    try:
        few_rows(x, weight, count_of(rows), torch.zeros(rows, 1024, **BF16), tiles, *way)
        torch.cuda.synchronize()
    except triton.OutOfResources as error:
        return (*job, str(error))
    return None


def best_choices(rows: int, name: str, weights: list) -> dict[str, tuple[float, Choice]]:
    """By way: the fastest tile of a shape, with its microseconds."""
    out_features, in_features = weights[0].shape
    x, out = torch.randn(rows, in_features, **BF16), torch.empty(rows, out_features, **BF16)
    count = count_of(rows)
    exact = x.float() @ weights[0].float().T
    expected: dict[int, torch.Tensor] = {}  # by segments
    best = {}
    for label, way in WAYS.items():
        times = []
        for tiles in tiles_of(rows, way):
            if not fits(in_features, tiles, way):
                continue
            try:
                few_rows(x, weights[0], count, out, tiles, *way)
            except triton.OutOfResources:
                continue
            if way[0] not in expected:
                check_close(out, exact)
                expected[way[0]] = out.clone()
            if not torch.equal(out, expected[way[0]]):
                print(f"other bits: {rows} {name} {label} {tiles}")
                continue

            def launch_all(tiles=tiles, way=way) -> None:
                for weight in weights:
                    few_rows(x, weight, count, out, tiles, *way)

            us = graph_us(launch_all, len(weights))
            times.append((us, (tiles, way)))
        if times:
            best[label] = min(times)
    return best


def time_chain(rows: int, model: str, weights: dict, best: dict) -> None:
    """All linear layers of a model, each reading what the one before wrote."""
    names = [f"{model} {layer}" for layer in ("qkv", "o", "gate_up", "down")]
    head = weights[f"{model} head"][0]
    buffers = {name: torch.empty(rows, SHAPES[name][0], **BF16) for name in names}
    hidden = torch.randn(rows, head.shape[1], **BF16)
    start, count = hidden.clone(), count_of(rows)
    logits = torch.empty(rows, head.shape[0], **BF16)

    def run(choices: dict[str, Choice], pdl: bool) -> None:
        hidden.copy_(start)
        for layer in range(LAYERS[model]):
            sources = (hidden, buffers[names[0]], hidden, buffers[names[2]])
            for name, source in zip(names, sources):
                width = SHAPES[name][1]
                x = source.view(-1)[: rows * width].view(rows, width)
                out = buffers[name] if name in (names[0], names[2]) else hidden
                tiles, way = choices[name]
                few_rows(x, weights[name][layer], count, out, tiles, *way, pdl=pdl)
        few_rows(hidden, head, count, logits, HEAD[rows], pdl=pdl)

    ways: dict[str, dict[str, Choice]] = {
        label: {name: best[name][label][1] for name in names}
        for label in WAYS
        if all(label in best[name] for name in names)
    }
    ways["best of each"] = {name: min(best[name].values())[1] for name in names}
    for label, choices in ways.items():
        alone = graph_us(functools.partial(run, choices, False))
        expected = logits.clone()
        overlapped = graph_us(functools.partial(run, choices, True))
        same = torch.equal(logits, expected) and bool(expected.isfinite().all())
        segments = [choices[name][1][0] for name in names]
        print(
            f"  {model} chain, {rows} rows, {label} (segments {segments}): {overlapped:.0f} us, "
            f"without PDL {alone:.0f}, same bits {same}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seconds", type=float, default=600)
    args = parser.parse_args()
    started = time.monotonic()
    jobs = {
        (rows, tiles, way, 4096 if way[1] == 0 else in_features): None
        for rows in args.rows
        for way in WAYS.values()
        for tiles in tiles_of(rows, way)
        for in_features in sorted({shape[1] for shape in SHAPES.values()})
        if fits(in_features, tiles, way)
    }
    compile_all(compile_one, list(jobs))
    weights = {
        name: weights_of(*shape, copies=1 if "head" in name else LAYERS[name.split()[0]])
        for name, shape in SHAPES.items()
    }
    for rows in args.rows:
        best: dict[str, dict] = {}
        for name, shape in SHAPES.items():
            if "head" in name:
                continue
            used = weights[name][: max(4, int(160e6 / (shape[0] * shape[1] * 2)) + 1)]
            best[name] = best_choices(rows, name, used)
            print(
                f"{rows} {name} floor {floor_us(rows, *shape):.1f}: "
                + ", ".join(
                    f"{label} {us:.1f} ({'/'.join(map(str, tiles[1:5]))})"
                    for label, (us, (tiles, _)) in best[name].items()
                ),
                flush=True,
            )
        for model in LAYERS:
            time_chain(rows, model, weights, best)
        if time.monotonic() - started > args.seconds:
            print("out of time")
            return


if __name__ == "__main__":
    main()
