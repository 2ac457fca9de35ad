"""What one launch for all layers of a decode step takes, and where: one GPU, 40 s and compilation.

    python experiments/kernels/persistent/measure.py --seconds 40

Compiles in processes beside each other; compares the residual behind 2 and 28 layers with torch,
and 20 launches with each other bit for bit; then times the barriers alone, every variant at 1, 4
and 16 sequences of 512 keys, and the phases one by one. A launch that polls in vain reports it and
ends. Sections fail alone.
"""

import argparse
import functools
import multiprocessing
import time
import traceback
from collections.abc import Callable

import torch
from exchange import WAYS, Exchange
from step import ALL_PHASES, NUM_PHASES, Config, Step
from variants import BEST, EMPTY, VARIANTS

from paged.tasks.bench.hardware import graph_seconds

LAYERS, KEYS, BANDWIDTH = 28, 512, 4.55e12
REGISTERS, SHARED_BYTES = 65536, 228 * 1024
NAMES = ("qkv", "attention", "o", "gate_up", "down")
Job = tuple[int, Config, tuple[int, int]]


def say(text: str) -> None:
    print(text, flush=True)


def compile_one(job: Job) -> tuple[Job, str | None]:
    count, config, phases = job
    try:
        Step([KEYS] * count, 1).launch(config, phases, warmup=True)
    except Exception as error:
        return job, str(error)[:300]
    return job, None


def fits(step: Step, config: Config, phases: tuple[int, int] = ALL_PHASES) -> str | None:
    """Why not all programs can be on the device at once; None if they can."""
    kernel = step.launch(config, phases, warmup=True)
    kernel._init_handles()
    threads = 32 * config.num_warps
    by_registers = REGISTERS // (threads * -(-max(kernel.n_regs, 1) // 8) * 8)
    by_shared = SHARED_BYTES // (kernel.metadata.shared + 1024)
    each = min(by_registers, by_shared, 2048 // threads)
    room = each * torch.cuda.get_device_properties(0).multi_processor_count
    if config.num_programs > room:
        return f"room for {room}: {kernel.n_regs} registers, {kernel.metadata.shared} B shared"
    if kernel.n_spills:
        say(f"    ({kernel.n_spills} spills)")
    return None


def healthy(step: Step) -> bool:
    """Whether no launch so far polled in vain; forgets it if one did."""
    torch.cuda.synchronize()
    arrived, left, error, _ = step.counter.tolist()
    step.counter[:3].zero_()  # the epoch stays: words of earlier ones are still about
    if arrived or left or error:
        say(f"    BARRIER FAILED: arrived {arrived}, left {left}, error {error}")
    return not (arrived or left or error)


def check(count: int, num_layers: int, title: str) -> None:
    config = VARIANTS[count][title]
    lens = [KEYS - 37 * i % 300 for i in range(count)]
    step = Step(lens, num_layers)
    (exact, exact_kv), (rounded, _) = map(step.reference, (torch.float32, torch.bfloat16))

    def error(x: torch.Tensor, exact: torch.Tensor = exact) -> float:
        return ((x - exact).norm() / exact.norm()).item()

    step.launch(config)
    if not healthy(step):
        return
    first, kv_error = step.result(), error(step.written(), exact_kv)
    same = 0
    for _ in range(20):
        step.reset()
        step.launch(config)
        same += torch.equal(step.result(), first)
    healthy(step)
    right = error(first) < 1.5 * error(rounded) + 1e-4
    say(
        f"  {count} sequences, {num_layers} layers, {title}: error {error(first):.5f}, of torch in "
        f"bfloat16 {error(rounded):.5f}: {'right' if right else 'WRONG'}; KV {kv_error:.5f}; "
        f"{same} of 20 have the same bits"
    )
    if not right or same < 20:
        step.reset()
        step.launch_by_phase(config)
        say(f"    with a launch a phase: error {error(step.result()):.5f}")


def time_one(
    step: Step,
    config: Config,
    phases: tuple[int, int] = ALL_PHASES,
    want: torch.Tensor | None = None,
) -> tuple[float, str] | None:
    """(microseconds of a launch, how its result differs from the wanted); None if it cannot run."""
    reason = fits(step, config, phases)
    if reason is not None:
        say(f"    not launched: {reason}")
        return None
    step.reset()
    step.launch(config, phases)
    if not healthy(step):
        return None
    note = ""
    if want is not None:
        difference = ((step.result() - want).norm() / want.norm()).item()
        note = "same bits" if torch.equal(step.result(), want) else f"differs by {difference:.4f}"
        if not difference < 0.1:
            say(f"    WRONG, not timed: {note}")
            return None
    us = 1e6 * graph_seconds([functools.partial(step.launch, config, phases)] * 4, repeats=5)
    return (us, note) if healthy(step) else None


def time_barriers() -> None:
    step = Step([KEYS], LAYERS)
    for name, config in EMPTY.items():
        timed = time_one(step, config)
        if timed:
            say(f"  {name}: {timed[0]:.0f} us, {timed[0] / LAYERS / NUM_PHASES:.2f} a barrier")


def time_exchanges() -> None:
    for way in WAYS:
        exchange = Exchange(way, LAYERS * NUM_PHASES)
        exchange.launch()
        error = exchange.error()
        if not error < 1e-3:
            say(f"  {way}: WRONG, error {error}")
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            exchange.launch()
        end.record()
        torch.cuda.synchronize()
        us = 1e3 * start.elapsed_time(end) / 10 / exchange.num_rounds
        say(f"  1,024 values by {way}: {us:.2f} us, error {exchange.error():.0e}")


def time_variants(count: int, deadline: float) -> None:
    step = Step([KEYS] * count, LAYERS)
    shape = step.shape
    weights = (step.qkv_weight, step.o_weight, step.up_weight, step.down_weight)
    keys = 4 * LAYERS * count * KEYS * shape.num_kv_heads * shape.head_dim
    floor = (2 * sum(w.numel() for w in weights) + keys) / BANDWIDTH * 1e6
    say(f"{count} sequences of {KEYS} keys, {LAYERS} layers, floor {floor:.0f} us")
    step.launch(VARIANTS[count]["no prefetch"])
    want = step.result() if healthy(step) else None
    times: dict[str, float] = {}
    for name, config in VARIANTS[count].items():
        if time.monotonic() > deadline:
            say("  out of time")
            break
        timed = time_one(step, config, want=want)
        if timed:
            times[name] = timed[0]
            say(f"  {name}: {timed[0]:.0f} us, {timed[0] / LAYERS:.1f} a layer, {timed[1]}")
    if times:
        say(f"  best: {min(times, key=lambda name: times[name])}")


def time_phases(count: int) -> None:
    """Each phase with its barrier, alone: without what its neighbours prefetch for it."""
    step = Step([KEYS] * count, LAYERS)
    for title in ("no prefetch", BEST[count]):
        shown = []
        for phase, name in enumerate(NAMES):
            timed = time_one(step, VARIANTS[count][title], (phase, phase + 1))
            shown.append(f"{name} {timed[0] / LAYERS:.2f}" if timed else f"{name} failed")
        say(f"  {count} sequences, {title}, us a phase: " + ", ".join(shown))


def attempt(section: Callable[..., None], *args: object) -> None:
    try:
        section(*args)
    except Exception:
        say(f"{section.__name__}{args} failed: {traceback.format_exc(limit=3)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40, help="of measurements")
    parser.add_argument("--processes", type=int, default=14)
    args = parser.parse_args()
    started = time.monotonic()
    jobs: list[Job] = [(1, config, ALL_PHASES) for config in EMPTY.values()]
    for count, variants in VARIANTS.items():
        jobs += [(count, config, ALL_PHASES) for config in variants.values()]
        for title in ("no prefetch", BEST[count]):
            jobs += [(count, variants[title], (i, i + 1)) for i in range(NUM_PHASES)]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for job, error in pool.imap_unordered(compile_one, jobs):
            if error is not None:
                say(f"not compiled: {job}: {error}")
    compiled = time.monotonic()
    say(f"{torch.cuda.get_device_name()}, {len(jobs)} kernels in {compiled - started:.0f} s")
    for num_layers in (2, LAYERS):
        for count in VARIANTS:
            attempt(check, count, num_layers, BEST[count])
        attempt(check, 1, num_layers, "words, ahead 1")
    attempt(time_barriers)
    attempt(time_exchanges)
    for count in VARIANTS:
        attempt(time_variants, count, compiled + args.seconds)
    for count in (1, 16):
        if time.monotonic() < compiled + args.seconds:
            attempt(time_phases, count)
    say(f"measured in {time.monotonic() - compiled:.0f} s")


if __name__ == "__main__":
    main()
