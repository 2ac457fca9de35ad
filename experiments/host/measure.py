"""What a step costs the host: microseconds of Python around launch and events, at steady decode.

    python experiments/host/measure.py --model stories --batches 1 64 256 1000
    python experiments/host/measure.py --model qwen3-0.6b --dummy --profile 256

Host time is what `Engine.step` takes less what it waits: the time in `Mailbox.wait` counts as
waiting, but for the poll that brings the events. "busy" is the share of a core the thread uses,
waiting included.
"""

import argparse
import cProfile
import pstats
import random
import statistics
import time

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler

STEPS = 100


class Meter:
    """Times the parts of `engine.step` from outside, whatever they do inside."""

    def __init__(self, engine) -> None:
        self.engine, self.mailbox = engine, engine.mailbox
        self._wait, self._poll = self.mailbox.wait, self.mailbox.poll
        self.mailbox.wait, self.mailbox.poll = self.wait, self.poll
        self.polls = 0

    def wait(self, *args, **kwargs):
        began = time.perf_counter()
        report = self._wait(*args, **kwargs)
        self.waited = time.perf_counter() - began - self.read
        return report

    def poll(self, step):
        self.polls += 1
        began = time.perf_counter()
        report = self._poll(step)
        self.read = time.perf_counter() - began
        return report

    def step(self) -> tuple[float, float, float]:
        """(whole step, of it host work, of that the poll that brought the events), in us."""
        began = time.perf_counter()
        self.engine.step()
        whole = time.perf_counter() - began
        return 1e6 * whole, 1e6 * (whole - self.waited), 1e6 * self.read


def fill(llm: LLM, batch: int) -> None:
    """Start `batch` requests and run until all of them decode."""
    rng = random.Random(batch)
    params = SamplingParams(temperature=0, max_tokens=STEPS + 100, ignore_eos=True)
    live = [llm.submit([rng.randrange(10, 1000) for _ in range(16)], params) for _ in range(batch)]
    while not all(request.output.outputs[0].token_ids for request in live):
        llm.engine.step()
    for _ in range(5):
        llm.engine.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="stories")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256, 1000])
    parser.add_argument("--profile", type=int, help="this batch once more, under cProfile")
    args = parser.parse_args()
    seqs = max(args.batches)
    llm = LLM(
        args.model,
        load="dummy" if args.dummy else "auto",
        scheduler=RankScheduler(max_num_seqs=seqs, max_num_batched_tokens=max(2048, 2 * seqs)),
        kv=PagedKV(num_pages=seqs * 16),
        max_model_len=256,
        num_slots=max(1024, seqs),
    )
    print(f"{args.model}; microseconds a step, medians (p90) of {STEPS}")
    print("batch |   whole |     host (   p90) | of it reading | polls | busy")
    for batch in args.batches:
        fill(llm, batch)
        meter = Meter(llm.engine)
        cpu, began = time.thread_time(), time.perf_counter()
        rows = [meter.step() for _ in range(STEPS)]
        busy = (time.thread_time() - cpu) / (time.perf_counter() - began)
        whole, host, read = (statistics.median(column) for column in zip(*rows))
        p90 = statistics.quantiles([row[1] for row in rows], n=10)[-1]
        print(
            f"{batch:5d} | {whole:7.0f} | {host:8.1f} ({p90:6.1f}) | {read:13.1f} |"
            f" {meter.polls / STEPS:5.1f} | {busy:.0%}",
            flush=True,
        )
        drain(llm, meter)
    if args.profile:
        fill(llm, args.profile)
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(STEPS // 2):
            llm.engine.step()
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(16)


def drain(llm: LLM, meter: Meter) -> None:
    llm.engine.mailbox.wait, llm.engine.mailbox.poll = meter._wait, meter._poll
    while llm.engine.has_unfinished:
        llm.engine.step()


if __name__ == "__main__":
    main()
