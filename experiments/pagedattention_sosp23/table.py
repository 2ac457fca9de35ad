"""The figures of PagedAttention (Kwon et al., SOSP 2023) from the simulator, beside the paper's.

    python experiments/pagedattention_sosp23/table.py

Prints markdown. README.md says what the differences come from.
"""

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from sharing import SAMPLES, samples_save
from systems import SYSTEMS, Load, latency, serve, workload

from paged.kv.paged import PagedKV

# Fig. 2: percent of the KV memory; None is not given.
SPLIT = {
    "token_states": (20.4, 26.8, 38.2, 96.3),
    "reserved": (13.3, 17.9, 25.2, None),
    "internal_waste": (57.3, 13.6, None, None),
    "external_waste": (8.9, 41.6, 36.6, None),
}
# Fig. 13: requests that run at once, at so many requests a second.
RATES = {"ShareGPT": 2.0, "Alpaca": 30.0}
BATCHES = {"ShareGPT": (7.00, 9.81, 13.62, 30.42), "Alpaca": (7.00, 43.24, 72.75, 132.44)}
# Section 6.2: how many times the request rate of a baseline paged memory sustains on ShareGPT.
GAINS = {"Orca (Max)": "2.7-8", "Orca (Oracle)": "1.7-2.7"}
# Fig. 16: with a prefix of so many tokens, the rate sustained, of that of Orca (Oracle).
PREFIXES = {"1-shot, 80 tokens": (80, 1.67), "5-shot, 341 tokens": (341, 3.58)}
# Fig. 18: latency hardly depends on small pages; these are the largest of which that is said.
PAGE_SIZES = (16, 32, 64, 128, 256)
LARGEST = {"ShareGPT": 128, "Alpaca": 32}
# Fig. 15: percent of the pages saved on Alpaca; section 6.3: on ShareGPT.
SAMPLES_SAVE = (6.09, 8.53, 9.79)
SHAREGPT_SAMPLES_SAVE = "16.2-30.5%"
BEAMS_SAVE = (37.56, 53.13, 55.16)

# Requests of a run: enough for some 10,000 steps while memory is full.
BACKLOG = dict(zip(SYSTEMS, (400, 600, 700, 1500)))
ARRIVING = {"ShareGPT": 600, "Alpaca": 2400}


def loads(seed: int, scale: float, jobs: int) -> dict[tuple[str, str], Load]:
    """{(dataset or "backlog", system): its load}"""
    cases = {
        ("backlog", system): ("ShareGPT", int(count * scale), None)
        for system, count in BACKLOG.items()
    }
    for dataset, rate in RATES.items():
        for system in SYSTEMS:
            cases[dataset, system] = (dataset, int(ARRIVING[dataset] * scale), rate)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        runs = {
            (name, system): pool.submit(load, system, dataset, count, rate, seed)
            for (name, system), (dataset, count, rate) in cases.items()
        }
        return {key: run.result() for key, run in runs.items()}


def load(system: str, dataset: str, count: int, rate: float | None, seed: int) -> Load:
    """A system on `count` requests, all at once if `rate` is None."""
    return serve(SYSTEMS[system](), workload(dataset, count, rate, seed), warmup=count // 10)


def prefix_rate(system: str, prefix_len: int, count: int, seed: int) -> float:
    """Translations a second that a system sustains if all begin with the same examples."""
    kv = PagedKV() if system == "paged" else SYSTEMS[system]()
    return serve(kv, workload("WMT16", count, None, seed, prefix_len), warmup=count // 10).rate


def page_size_latency(dataset: str, page_size: int, count: int, seed: int) -> float:
    kv = PagedKV(page_size=page_size, prefix_caching=False)
    return latency(kv, workload(dataset, count, RATES[dataset], seed))


def beams_save(width: int, num_requests: int, seed: int) -> float:
    """Share of the pages that beams save, in the engine with its embedded model."""
    sys.path.append(str(Path(__file__).parents[1] / "sharing"))
    from measure import measure

    requests = workload("Alpaca", num_requests, None, seed)
    return measure("beams", width, [(one.prompt_len, one.output_len) for one in requests], 256)


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def compared(name: object, found: float, paper: float | None, unit: str = "%") -> str:
    if paper is None:
        return row(name, f"{found:.1f}{unit}", "-", "-")
    return row(name, f"{found:.2f}{unit}", f"{paper:.2f}{unit}", f"{found - paper:+.2f}")


def memory(found: dict[tuple[str, str], Load]) -> Iterable[str]:
    yield from ("", row("KV memory, ShareGPT", "here", "paper", "points"), row(*["---"] * 4))
    for at, system in enumerate(SYSTEMS):
        for part, paper in SPLIT.items():
            name = f"{system}: {part.replace('_', ' ')}"
            yield compared(name, 100 * found["backlog", system].split[part], paper[at])


def batches(found: dict[tuple[str, str], Load]) -> Iterable[str]:
    header = ("batched requests", "here", "paper", "here, of Max", "paper, of Max")
    yield from ("", row(*header), row(*["---"] * 5))
    for dataset, paper in BATCHES.items():
        mine = [found[dataset, system].batch for system in SYSTEMS]
        for system, batch, theirs in zip(SYSTEMS, mine, paper):
            shown = (f"{batch:.2f}", f"{theirs:.2f}")
            ratios = (f"{batch / mine[0]:.2f}x", f"{theirs / paper[0]:.2f}x")
            yield row(f"{dataset}, {RATES[dataset]:g} req/s: {system}", *shown, *ratios)


def gains(found: dict[tuple[str, str], Load]) -> Iterable[str]:
    yield from ("", row("rate sustained, ShareGPT", "here", "paper"), row(*["---"] * 3))
    for system, paper in GAINS.items():
        gain = found["backlog", "paged"].rate / found["backlog", system].rate
        yield row(f"paged, of {system}", f"{gain:.2f}x", f"{paper}x")


def prefixes(count: int, seed: int) -> Iterable[str]:
    yield from ("", row("rate sustained, shared prefix", "here", "paper"), row(*["---"] * 3))
    for name, (length, paper) in PREFIXES.items():
        gain = prefix_rate("paged", length, count, seed) / prefix_rate(
            "Orca (Oracle)", length, count, seed
        )
        yield row(f"paged, of Orca (Oracle), {name}", f"{gain:.2f}x", f"{paper}x")


def page_sizes(scale: float, seed: int) -> Iterable[str]:
    header = ("latency a token, of that with 16", *map(str, PAGE_SIZES), "paper: as good up to")
    yield from ("", row(*header), row(*["---"] * len(header)))
    for dataset, rate in RATES.items():
        count = int(ARRIVING[dataset] * scale)
        found = [page_size_latency(dataset, size, count, seed) for size in PAGE_SIZES]
        ratios = (f"{one / found[0]:.2f}x" for one in found)
        yield row(f"{dataset}, {rate:g} req/s", *ratios, LARGEST[dataset])


def savings(samples: int, beams: int, seed: int) -> Iterable[str]:
    yield from ("", row("pages saved", "here", "paper", "points"), row(*["---"] * 4))
    for number, paper in zip(SAMPLES, SAMPLES_SAVE):
        found = 100 * samples_save("Alpaca", number, samples, seed)
        yield compared(f"samples on Alpaca, n = {number}", found, paper)
    for number in SAMPLES:
        found = 100 * samples_save("ShareGPT", number, samples // 5, seed)
        yield row(f"samples on ShareGPT, n = {number}", f"{found:.2f}%", SHAREGPT_SAMPLES_SAVE, "-")
    for width, paper in zip(SAMPLES, BEAMS_SAVE):
        if beams:
            found = 100 * beams_save(width, beams, seed)
            yield compared(f"beams on Alpaca, width {width}, in the engine", found, paper)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of requests")
    parser.add_argument(
        "--beams", type=int, default=0, help="requests of the beam searches; slow without a GPU"
    )
    args = parser.parse_args()
    found = loads(args.seed, args.scale, args.jobs)
    for part in (memory, batches, gains):
        print(*part(found), sep="\n", flush=True)
    for line in prefixes(int(2000 * args.scale), args.seed):
        print(line, flush=True)
    for line in page_sizes(args.scale, args.seed):
        print(line, flush=True)
    for line in savings(int(1500 * args.scale), args.beams, args.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
