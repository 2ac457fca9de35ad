"""A decode step of a whole model as one graph: tiles of streamed weights, launch behind launch.

    python experiments/kernels/linear/chain.py --models qwen3-0.6b --rows 1 16 64 --seconds 80
    python experiments/kernels/linear/chain.py --models llama-3.1-8b --rows 1 16 64 --seconds 80

Runs `Decoder.forward` with random weights and 576 keys a sequence. First what each kind of launch
adds to the step (the step less the step without it); then, layer by layer, the tile of
`paged.kernels.linear_stream` with which the whole step is fastest, against the kernel of pointers.
A variant is timed only if its logits equal, bit for bit, those of the kernel of pointers.
"""

import argparse
import time

import torch
import triton
from chain_step import CAPACITIES, LINEARS, Step, without
from timing import BF16, compile_all, count_of, graph_us

from paged.kernels import linear as linear_module
from paged.kernels.gated_linear import gated_linear
from paged.kernels.linear import linear
from paged.kernels.linear_tiles import StreamTiles, stream_tiles

# rows of a tile of the weight, units of 64 over K, steps of weights and of x in flight, programs on
# a multiprocessor
CANDIDATES = {
    16: [
        (8, 4, 12, 6, 1), (16, 4, 4, 4, 2), (16, 4, 6, 4, 2), (16, 4, 4, 4, 3), (16, 4, 8, 4, 1),
        (16, 8, 4, 2, 1), (16, 8, 3, 2, 2), (32, 4, 4, 4, 1), (32, 4, 3, 3, 2), (32, 4, 4, 3, 2),
        (32, 4, 8, 4, 1), (32, 8, 4, 2, 1), (32, 8, 2, 2, 2), (64, 4, 3, 3, 1), (64, 4, 4, 4, 1),
        (64, 2, 4, 4, 2), (64, 4, 5, 3, 1), (64, 8, 2, 2, 1), (128, 2, 4, 4, 1),
    ],
    64: [
        (8, 4, 8, 4, 1), (8, 4, 12, 5, 1), (16, 4, 6, 3, 1), (16, 4, 6, 4, 1), (32, 4, 4, 3, 1),
        (32, 4, 5, 4, 1), (32, 2, 8, 4, 1), (32, 2, 5, 3, 2), (64, 2, 6, 4, 1), (64, 4, 3, 3, 1),
        (64, 1, 6, 4, 2), (64, 2, 4, 3, 1), (64, 4, 4, 2, 1), (128, 2, 4, 3, 1),
    ],
}  # fmt: skip
GATED_ROWS = 16  # at least: a box of gates and one of ups, of 8 rows each
# by shape of the weight; None: the kernel of pointers
Choice = dict[tuple[int, int], StreamTiles | None]


def use(choice: Choice) -> None:
    """Launch from here on with these tiles; other shapes, such as the head's, from the table."""

    def tiles_of(capacity: int, rows: int, columns: int) -> StreamTiles | None:
        shape = (rows, columns)
        return choice[shape] if shape in choice else stream_tiles(capacity, rows, columns)

    linear_module.stream_tiles = tiles_of


def compile_one(job: tuple) -> tuple | None:
    """Compile for a step of a model, or for a tile; what could not be launched is returned."""
    capacity, what = job
    try:
        if isinstance(what, str):
            step = Step(what, capacity, num_layers=2, vocab_size=1024)
            for tiles in (dict.fromkeys(step.shapes.values()), {}):
                use(tiles)
                step.run()
        else:
            x, count = torch.zeros(capacity, 1024, **BF16), count_of(capacity)
            weight, out = torch.zeros(1024, 1024, **BF16), torch.zeros(capacity, 1024, **BF16)
            use({(1024, 1024): what})
            linear(x, weight, count, out)
            if what.block_n >= GATED_ROWS:
                gated_linear(x, weight, count, torch.zeros(capacity, 512, **BF16), "silu")
        torch.cuda.synchronize()
    except triton.OutOfResources as error:
        return (*job, str(error))
    return None


def time_step(step: Step, choice: Choice, expected: torch.Tensor | None) -> float | None:
    """Microseconds of a step; None if a tile cannot be launched or gives other bits."""
    use(choice)
    try:
        step.run()
    except triton.OutOfResources:
        return None
    if expected is not None:
        step.decoder.logits.fill_(float("nan"))
    us = graph_us(step.run, repeats=15)
    if expected is not None and not torch.equal(step.logits(), expected):
        print("  OTHER BITS: " + ", ".join(map(label, choice.values())))
        return None
    return us


def label(tiles: StreamTiles | None) -> str:
    return "pointers" if tiles is None else "/".join(map(str, tiles))


def measure(model: str, rows: int, deadline: float) -> None:
    step = Step(model, rows)
    print(f"{model}, {rows} rows, floor {step.floor_us():.0f} us", flush=True)
    best: Choice = dict.fromkeys(step.shapes.values())
    use(best)
    step.run()
    expected = step.logits()
    assert bool(expected.isfinite().all())
    best_us = graph_us(step.run, repeats=15)
    table_us = time_step(step, {}, expected)
    print(f"  pointers {best_us:.0f}, table {table_us and round(table_us)}", flush=True)

    if table_us is not None:
        marginal = []
        for name in ("norm", *LINEARS, "rope_kv", "attention"):
            restore = without(step, name)
            us = time_step(step, {}, None)
            restore()
            launches = step.spec.num_layers * (2 if name == "norm" else 1)
            marginal.append(f"{name} {(table_us - us) / launches:.2f}")
        print("  us a launch: " + ", ".join(marginal), flush=True)

    for left, (name, shape) in zip(range(len(step.shapes), 0, -1), step.shapes.items()):
        until = time.monotonic() + (deadline - time.monotonic()) / left
        ranked = [(best_us, best[shape])]
        for values in CANDIDATES[step.capacity]:
            tiles = StreamTiles(*values)
            fits = name != "gate_up" or tiles.block_n >= GATED_ROWS
            if fits and time.monotonic() < until:
                us = time_step(step, best | {shape: tiles}, expected)
                if us is not None:
                    ranked.append((us, tiles))
        ranked.sort(key=lambda pair: pair[0])
        best_us, best[shape] = ranked[0]
        shown = ", ".join(f"{label(tiles)} {us:.0f}" for us, tiles in ranked[:5])
        print(f"  {name} {list(shape)}: {shown}; slowest {ranked[-1][0]:.0f}", flush=True)
        if time.monotonic() > until:
            print("  out of time: not every tile was tried")
    chosen = ", ".join(f"{name} {label(best[shape])}" for name, shape in step.shapes.items())
    print(f"  best {time_step(step, best, expected):.0f}: {chosen}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qwen3-0.6b", "llama-3.1-8b"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=85)
    args = parser.parse_args()
    started = time.monotonic()
    capacities = sorted({CAPACITIES[rows] for rows in args.rows})
    jobs: list[tuple] = [(capacity, model) for model in args.models for capacity in capacities]
    jobs += [(c, StreamTiles(*values)) for c in capacities for values in CANDIDATES[c]]
    compile_all(compile_one, jobs)
    print(f"{torch.cuda.get_device_name()}, compiled in {time.monotonic() - started:.0f} s")
    cases = [(model, rows) for model in args.models for rows in args.rows]
    for left, (model, rows) in zip(range(len(cases), 0, -1), cases):
        now = time.monotonic()
        measure(model, rows, now + (started + args.seconds - now) / left)


if __name__ == "__main__":
    main()
