"""Times ways to cut a row, for every filter; also what each of the two kernels takes.

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

# (block_v, block_warps, programs a multiprocessor, loads ahead)
CUTS = [
    (4096, 8, 2, True),
    (4096, 8, 2, False),
    (4096, 8, 4, False),
    (4096, 8, 100, False),
    (4096, 4, 2, True),
    (4096, 4, 4, False),
    (2048, 4, 4, True),
    (2048, 4, 8, False),
    (2048, 4, 100, False),
    (8192, 16, 1, True),
    (8192, 16, 2, False),
]


def use(cut: tuple) -> None:
    block_v, block_warps, programs, ahead = cut
    tiles = choose_tiles(1, 128256)._replace(
        block_v=block_v, block_warps=block_warps, programs=programs, ahead=ahead,
        strand=block_v // (32 * block_warps),
    )  # fmt: skip
    sampling.choose_tiles = sampling_tiles.choose_tiles = lambda rows, vocab_size: tiles


def compile_cut(job: tuple[tuple, int, str]) -> str:
    """Launch once; what went wrong, if anything."""
    cut, vocab_size, case = job
    use(cut)
    score = greedy_score if case == "greedy" else gumbel_score
    try:
        sample(**make_inputs(2, vocab_size, case) | {"score": score})
        torch.cuda.synchronize()
    except Exception as error:  # a cut that does not compile is a result
        return f"{cut} {case}: {error!r:.200}"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--seconds", type=float, default=50, help="stop starting new cuts after")
    args = parser.parse_args()
    began = time.perf_counter()
    print("as shipped:", choose_tiles(1, args.vocab))
    jobs = [(cut, args.vocab, case) for cut in CUTS for case in ("plain", "greedy")]
    with multiprocessing.get_context("spawn").Pool(14) as pool:
        failed = [line for line in pool.map(compile_cut, jobs, chunksize=1) if line]
    print("\n".join(failed), f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
    use(CUTS[0])
    for case in ("greedy", "plain", "top-k 50, top-p 0.9", "top-p 0.9, flat"):
        for rows in (args.rows[0], args.rows[1]):
            print(case, rows, kernel_times(rows, args.vocab, case), flush=True)
    cases = ("greedy", "plain", "top-k 50, top-p 0.9")
    print("| cut |", " | ".join(f"{case} x {args.rows}" for case in cases), "|")
    for cut in CUTS:
        if time.perf_counter() - began > args.seconds:
            print("out of time before", cut)
            break
        use(cut)
        cells = []
        for case in cases:
            check(16, args.vocab, case)
            times = [time_case(rows, args.vocab, case, with_torch=False)[0] for rows in args.rows]
            cells.append(" ".join(f"{us:.1f}" for us in times))
        print("|", "/".join(map(str, cut)), "|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
