"""Times ways to cut a row, for every filter; also what each of the kernels takes.

    python experiments/kernels/sampling/tune.py

Kernels are compiled first, in parallel, into Triton's cache. The cut is part of a row's bits (it
orders its sums), so it may follow the vocabulary but never the batch: one row of the table has to
do for every batch size. Draws are checked against the reference before a cut is timed.
"""

import argparse
import multiprocessing
import time

import torch
from bench import check, make_inputs, time_case

from paged.kernels import sampling, sampling_tiles
from paged.kernels.sampling import greedy_score, gumbel_score, sample
from paged.kernels.sampling_tiles import choose_tiles

# Of the blocks' kernel: tokens, warps and registers a thread at most (0: as many as it likes).
CUTS = [
    (2048, 2, 64),
    (1024, 1, 64),
    (4096, 4, 64),
    (2048, 2, 0),
    (2048, 2, 80),
    (2048, 4, 40),
]
# Of the filtered kernel: warps, registers a thread, programs a multiprocessor, and tokens at a time
# of a row that all programs draw together.
FILTERED_CUTS = [(16, 112, 1, 8192), (16, 128, 1, 8192), (16, 64, 2, 4096), (16, 112, 1, 4096)]


def use(cut: tuple, filtered_cut: tuple) -> None:
    block_v, block_warps, block_registers = cut
    warps, registers, sampling.PROGRAMS, spread_v = filtered_cut
    tiles = choose_tiles(1, 128256)._replace(
        block_v=block_v, block_warps=block_warps, block_registers=block_registers,
        strand=block_v // (32 * block_warps), spread_v=spread_v,
    )  # fmt: skip
    sampling.choose_tiles = sampling_tiles.choose_tiles = lambda rows, vocab_size: tiles
    sampling.filtered_options = lambda: {"num_warps": warps, "maxnreg": registers}


def compile_cut(job: tuple[tuple, tuple, int, str]) -> str:
    """Launch once; what went wrong, if anything."""
    cut, filtered_cut, vocab_size, case = job
    use(cut, filtered_cut)
    score = greedy_score if case == "greedy" else gumbel_score
    try:
        sample(**make_inputs(2, vocab_size, case) | {"score": score})
        torch.cuda.synchronize()
    except Exception as error:  # a cut that does not compile is a result
        return f"{cut} {filtered_cut} {case}: {error!r:.200}"
    return ""


def kernel_times(rows: int, vocab_size: int, case: str) -> dict[str, float]:
    """Microseconds of each kernel, from the profiler."""
    inputs = make_inputs(rows, vocab_size, case)
    inputs["score"] = greedy_score if case == "greedy" else gumbel_score
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            sample(**inputs)
        torch.cuda.synchronize()
    return {
        event.key: round(event.self_device_time_total / event.count, 1)
        for event in profile.key_averages() if "_sample_" in event.key
    }  # fmt: skip


def compare(cuts: list[tuple[tuple, tuple]], cases: tuple, rows: list[int], args, until: float):
    """Print a table: a line a cut, a column a case, microseconds at each number of rows."""
    print("| cut |", " | ".join(f"{case} x {rows}" for case in cases), "|")
    for cut, filtered_cut in cuts:
        if time.perf_counter() > until:
            print("out of time before", cut, filtered_cut)
            return
        use(cut, filtered_cut)
        cells = []
        for case in cases:
            check(16, args.vocab, case)
            times = [time_case(count, args.vocab, case, with_torch=False)[0] for count in rows]
            cells.append(" ".join(f"{us:.1f}" for us in times))
        print("|", *cut, "/", *filtered_cut, "|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--seconds", type=float, default=80, help="stop starting new cuts after")
    args = parser.parse_args()
    began = time.perf_counter()
    print("as shipped:", choose_tiles(1, args.vocab))
    by_blocks = [(cut, FILTERED_CUTS[0]) for cut in CUTS]
    by_filtered = [(CUTS[0], cut) for cut in FILTERED_CUTS]
    jobs = [(*cut, args.vocab, "greedy") for cut in by_blocks]
    jobs += [(*cut, args.vocab, "plain") for cut in by_blocks + by_filtered[1:]]
    with multiprocessing.get_context("spawn").Pool(14) as pool:
        failed = [line for line in pool.map(compile_cut, jobs, chunksize=1) if line]
    print("\n".join(failed), f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
    use(*by_blocks[0])
    warm = "plain, temperature 0.7"
    for case in ("greedy", "plain", warm, "top-k 50, top-p 0.9", "top-p 0.9, flat"):
        for rows in args.rows[:2]:
            print(case, rows, kernel_times(rows, args.vocab, case), flush=True)
    until = began + args.seconds
    compare(by_blocks, ("greedy", "plain", warm), args.rows, args, until)
    filtered = ("plain", "top-k 50, top-p 0.9", "top-p 0.9, flat")
    compare(by_filtered, filtered, args.rows[:2], args, until)


if __name__ == "__main__":
    main()
