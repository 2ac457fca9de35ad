"""A decode step of a whole model as one graph: tiles and prefetches where launches follow launches.

    python experiments/kernels/linear/chain.py --models qwen3-0.6b --rows 1 16 64 --seconds 80
    python experiments/kernels/linear/chain.py --models llama-3.1-8b --rows 1 16 64 --seconds 80

Runs `Decoder.forward` with random weights and 576 keys a sequence. In turn: programmatic
dependent launch (PDL) off and on; prefetches of the same size in all layers; what each kind of
launch adds to the step (the step less the step without it); then, layer by layer, the tile and
prefetch with which the whole step is fastest. A variant is timed only if its logits equal, bit for
bit, those without PDL. --late lets every launch start its successor behind its own wait.
"""

import argparse
import os
import time

import torch
import triton
import triton.language as tl
from chain_step import CAPACITIES, LINEARS, Step, without
from timing import BF16, compile_all, count_of, graph_us

from paged.kernels import linear as linear_module
from paged.kernels.gated_linear import gated_linear
from paged.kernels.launch import pdl
from paged.kernels.linear import linear
from paged.kernels.linear_tiles import StreamTiles, Tiles, pointer_tiles

KIB = 1024
PREFETCHES = {"none": 0, "16 KB": 16 * KIB, "32 KB": 32 * KIB, "64 KB": 64 * KIB,
              "128 KB": 128 * KIB, "all": 2**30}  # fmt: skip
# by capacity: block_m, block_n, block_k, warps, stages; 64 rows take wgmma, with a shorter chain
CANDIDATES = {
    16: [
        (16, 8, 512, 2, 4), (16, 8, 512, 4, 4), (16, 16, 256, 2, 4), (16, 16, 512, 2, 3),
        (16, 16, 512, 2, 4), (16, 16, 512, 4, 3), (16, 16, 256, 4, 5), (16, 32, 128, 2, 4),
        (16, 32, 256, 4, 3), (16, 32, 256, 4, 4), (16, 32, 128, 4, 6), (16, 64, 128, 4, 3),
        (16, 64, 128, 4, 4), (16, 64, 256, 4, 4), (64, 16, 128, 4, 4), (64, 16, 256, 4, 2),
        (64, 32, 128, 4, 3),
    ],
    64: [
        (64, 16, 128, 4, 3), (64, 16, 128, 4, 4), (64, 16, 256, 4, 2), (64, 16, 256, 4, 3),
        (64, 16, 256, 4, 4), (64, 32, 128, 4, 3), (64, 32, 128, 4, 4), (64, 32, 128, 4, 5),
        (64, 32, 256, 4, 3), (64, 64, 64, 4, 4), (64, 64, 128, 4, 3), (64, 64, 128, 4, 4),
        (64, 64, 128, 4, 5), (64, 128, 64, 4, 3),
    ],
}  # fmt: skip
# rows and columns of a tile, units of 64 over K, steps of weights and of x in flight, programs on a
# multiprocessor
STREAMS = {
    16: [
        (64, 8, 4, 12, 6, 1), (64, 16, 4, 4, 4, 2), (64, 16, 4, 6, 4, 2), (64, 16, 4, 4, 4, 3),
        (64, 16, 4, 8, 4, 1), (64, 16, 8, 4, 2, 1), (64, 16, 8, 3, 2, 2), (64, 32, 4, 4, 4, 1),
        (64, 32, 4, 3, 3, 2), (64, 32, 4, 4, 3, 2), (64, 32, 4, 8, 4, 1), (64, 32, 8, 4, 2, 1),
        (64, 32, 8, 2, 2, 2), (64, 64, 4, 3, 3, 1), (64, 64, 4, 4, 4, 1), (64, 64, 2, 4, 4, 2),
        (64, 64, 4, 5, 3, 1), (64, 64, 8, 2, 2, 1), (64, 128, 2, 4, 4, 1),
    ],
    64: [
        (64, 8, 4, 8, 4, 1), (64, 8, 4, 12, 5, 1), (64, 16, 4, 6, 3, 1), (64, 16, 4, 6, 4, 1),
        (64, 32, 4, 4, 3, 1), (64, 32, 4, 5, 4, 1), (64, 32, 2, 8, 4, 1), (64, 32, 2, 5, 3, 2),
        (64, 64, 2, 6, 4, 1), (64, 64, 4, 3, 3, 1), (64, 64, 1, 6, 4, 2), (64, 64, 2, 4, 3, 1),
        (64, 64, 4, 4, 2, 1), (64, 128, 2, 4, 3, 1),
    ],
    256: [
        (128, 64, 2, 4, 3, 1), (128, 128, 1, 6, 5, 1), (256, 64, 1, 6, 4, 1),
        (128, 32, 2, 6, 3, 1), (256, 128, 1, 5, 3, 1), (128, 128, 2, 3, 3, 1),
        (128, 64, 1, 5, 4, 2), (128, 256, 1, 4, 3, 1), (256, 64, 2, 4, 2, 1),
    ],
}
# by shape of the weight; others from the table
Choice = dict[tuple[int, int], Tiles | StreamTiles]


def use(choice: Choice, with_pdl: bool = True) -> None:
    """Launch from here on with these tiles."""

    def tiles_of(capacity: int, rows: int, columns: int, *rest: object) -> Tiles:
        chosen = choice.get((rows, columns))
        return chosen or pointer_tiles(capacity, rows, columns, *rest)

    def stream_of(capacity: int, rows: int, columns: int) -> StreamTiles | None:
        chosen = choice.get((rows, columns))
        return chosen if isinstance(chosen, StreamTiles) else None

    linear_module.pointer_tiles, linear_module.stream_tiles = tiles_of, stream_of
    os.environ["PAGED_PDL"] = "1" if with_pdl else "0"
    pdl.cache_clear()


def start_successors_late() -> None:
    """A launch starts the next one behind its own wait. Needs a cache of compiled kernels apart."""
    cuda = tl.extra.cuda

    @tl.core.extern
    def wait_and_launch(_semantic=None):
        tl.core.inline_asm_elementwise(
            "griddepcontrol.wait; griddepcontrol.launch_dependents; // dummy $0",
            "=r", [], dtype=tl.int32, is_pure=False, pack=1, _semantic=_semantic,
        )  # fmt: skip

    @tl.core.extern
    def nothing(_semantic=None):
        pass

    cuda.gdc_wait, cuda.gdc_launch_dependents = wait_and_launch, nothing


def prepare() -> None:
    """What main was told, in this process and those it starts."""
    if "CHAIN_LATE" in os.environ:
        start_successors_late()


def compile_one(job: tuple) -> tuple | None:
    prepare()
    kind, *values = job
    try:
        if kind == "step":
            model, rows, with_pdl = values
            use({}, with_pdl)
            Step(model, rows, num_layers=2, vocab_size=1024).run()
        else:
            capacity, tiles = values
            x, count = torch.zeros(capacity, 1024, **BF16), count_of(capacity)
            weight, out = torch.zeros(1024, 1024, **BF16), torch.zeros(capacity, 1024, **BF16)
            half = torch.zeros(capacity, 512, **BF16)
            variants = [tiles]
            if isinstance(tiles, Tiles):
                variants = [tiles._replace(prefetch=prefetch) for prefetch in (0, 2**30)]
            for variant in variants:
                use({(1024, 1024): variant})
                linear(x, weight, count, out)
                if tiles.block_n >= 16:
                    gated_linear(x, weight, count, half, "silu")
        torch.cuda.synchronize()
    except triton.OutOfResources as error:
        return (*job, str(error))
    return None


def table_choice(step: Step, prefetch: int) -> Choice:
    """The table's tiles, all with the same prefetch."""
    return {
        shape: pointer_tiles(step.capacity, *shape, torch.bfloat16, False)._replace(
            prefetch=prefetch
        )
        for shape in step.shapes.values()
    }


def time_step(step: Step, choice: Choice, expected: torch.Tensor | None) -> float | None:
    """Microseconds of a step; None if a tile cannot be launched or gives other bits."""
    use(choice)
    try:
        step.run()
    except triton.OutOfResources:
        return None
    if expected is not None:
        step.decoder.logits.fill_(float("nan"))
    us = graph_us(step.run, repeats=9)
    if expected is not None and not torch.equal(step.logits(), expected):
        print("  OTHER BITS: " + ", ".join(map(label, choice.values())))
        return None
    return us


def label(tiles: Tiles | StreamTiles) -> str:
    if isinstance(tiles, StreamTiles):
        return "stream " + "/".join(map(str, tiles))
    prefetch = "all" if tiles.prefetch >= 2**30 else f"{tiles.prefetch // KIB}KB"
    return "/".join(map(str, tiles[:5])) + f"+{prefetch}"


def measure_streams(model: str, rows: int, deadline: float) -> None:
    """Layer by layer, the streaming kernel's tiles against the table's."""
    step = Step(model, rows)
    print(f"{model}, {rows} rows, floor {step.floor_us():.0f} us", flush=True)
    use({})
    step.run()
    expected = step.logits()
    assert bool(expected.isfinite().all())
    best: Choice = {}
    best_us = graph_us(step.run, repeats=15)
    print(f"  table {best_us:.0f}", flush=True)
    for left, (name, shape) in zip(range(len(step.shapes), 0, -1), step.shapes.items()):
        until = time.monotonic() + (deadline - time.monotonic()) / left
        ranked: list[tuple[float, Tiles | StreamTiles | None]] = [(best_us, None)]
        for values in STREAMS[step.capacity]:
            tiles = StreamTiles(*values)
            most = 264 if shape[0] < 16384 else 2**31  # more tiles than places at once: many steps
            if (name == "gate_up" and tiles.block_n < 16) or time.monotonic() > until:
                continue
            if step.capacity <= 64 and shape[0] / tiles.block_n > most * 2:
                continue
            us = time_step(step, best | {shape: tiles}, expected)
            if us is not None:
                ranked.append((us, tiles))
        ranked.sort(key=lambda pair: pair[0])
        if ranked[0][1] is not None:
            best_us, best[shape] = ranked[0]
        shown = ", ".join(f"{t and label(t)} {us:.0f}" for us, t in ranked[:6])
        print(f"  {name} {list(shape)}: {shown}; slowest {ranked[-1][0]:.0f}", flush=True)
    chosen = ", ".join(f"{name} {label(best[s])}" for name, s in step.shapes.items() if s in best)
    print(f"  best {time_step(step, best, expected):.0f}: {chosen}", flush=True)


def measure(model: str, rows: int, deadline: float) -> None:
    step = Step(model, rows)
    layers = step.spec.num_layers
    print(f"{model}, {rows} rows, floor {step.floor_us():.0f} us", flush=True)
    use({}, with_pdl=False)
    step.run()
    expected = step.logits()
    assert bool(expected.isfinite().all())
    print(f"  without PDL {graph_us(step.run, repeats=9):.0f}", flush=True)
    times: dict[str, float] = {}
    for name, prefetch in PREFETCHES.items():
        us = time_step(step, table_choice(step, prefetch), expected)
        if us is not None:
            times[name] = us
    print("  PDL, prefetch: " + ", ".join(f"{k} {v:.0f}" for k, v in times.items()), flush=True)
    best_name = min(times, key=lambda name: times[name])
    best, best_us = table_choice(step, PREFETCHES[best_name]), times[best_name]

    marginal = []
    for name in ("norm", *LINEARS, "rope_kv", "attention"):
        restore = without(step, name)
        us = time_step(step, best, None)
        restore()
        launches = layers * (2 if name == "norm" else 1)
        marginal.append(f"{name} {(best_us - us) / launches:.2f}")
    print(f"  us a launch ({best_name}): " + ", ".join(marginal), flush=True)

    for name, shape in step.shapes.items():
        ranked = [(best_us, best[shape])]
        for values in CANDIDATES[step.capacity]:
            for prefetch in sorted({0, 64 * KIB, PREFETCHES[best_name]}):
                tiles = Tiles(*values, prefetch=prefetch)
                if shape[1] % tiles.block_k or time.monotonic() > deadline:
                    continue
                us = time_step(step, best | {shape: tiles}, expected)
                if us is not None:
                    ranked.append((us, tiles))
        ranked.sort()
        best_us, best[shape] = ranked[0]
        shown = ", ".join(f"{label(tiles)} {us:.0f}" for us, tiles in ranked[:4])
        print(f"  {name} {list(shape)}: {shown}; slowest {ranked[-1][0]:.0f}", flush=True)
    chosen = ", ".join(f"{name} {label(best[shape])}" for name, shape in step.shapes.items())
    print(f"  best {time_step(step, best, expected):.0f}: {chosen}", flush=True)
    if time.monotonic() > deadline:
        print("  out of time: not every tile was tried")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["qwen3-0.6b", "llama-3.1-8b"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=85)
    parser.add_argument("--late", action="store_true")
    parser.add_argument("--streams", action="store_true", help="only the streaming kernel's tiles")
    args = parser.parse_args()
    started = time.monotonic()
    if args.late:
        folder = os.environ.get("TRITON_CACHE_DIR", os.path.expanduser("~/.triton/cache"))
        os.environ |= {"CHAIN_LATE": "1", "TRITON_CACHE_DIR": f"{folder}-late"}
    prepare()
    capacities = {CAPACITIES[rows]: rows for rows in args.rows}
    jobs: list[tuple] = [
        ("step", model, rows, with_pdl)
        for model in args.models
        for rows in capacities.values()
        for with_pdl in ((True,) if args.streams else (False, True))
    ]
    for capacity in capacities:
        if args.streams:
            jobs += [("linear", capacity, StreamTiles(*one)) for one in STREAMS[capacity]]
            continue
        tiles = {Tiles(*values) for values in CANDIDATES[capacity]}
        for model in args.models:
            tiles.update(table_choice(Step(model, capacities[capacity], num_layers=1), 0).values())
        jobs += [("linear", capacity, one) for one in sorted(tiles)]
    compile_all(compile_one, jobs)
    print(f"{torch.cuda.get_device_name()}, compiled in {time.monotonic() - started:.0f} s")
    cases = [(model, rows) for model in args.models for rows in args.rows]
    for left, (model, rows) in zip(range(len(cases), 0, -1), cases):
        now = time.monotonic()
        until = now + (started + args.seconds - now) / left
        (measure_streams if args.streams else measure)(model, rows, until)


if __name__ == "__main__":
    main()
