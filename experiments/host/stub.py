"""What a step costs the host, without a device: launches go to a stub that writes the events.

    python experiments/host/stub.py --batches 1 64 256 1000
    python experiments/host/stub.py --step-ms 0.8 1.5 5
    python experiments/host/stub.py --run 1000

The first measures the Python of a step: commands, guess of the capacity, decoding of the events,
what is done with them. What a device adds is the launch itself (a graph's replay). The second has
a thread write the events of a step late, and measures how late the host sees them and which share
of a core it uses while it waits. The third is a whole run: requests enter, draw and end.
"""

import argparse
import random
import statistics
import threading
import time

import numpy as np
import torch
from measure import Meter

from paged.engine import Engine
from paged.kernels.control.columns import REASON_LENGTH
from paged.kernels.control.update import EVENT_ADMITTED, EVENT_END, EVENT_TOKEN, HEADER_WORDS
from paged.request import SamplingParams
from paged.testing.engines import oracle_engine

STEPS = 200


class StubDevice:
    """Admits all requests at once in its first step; from then on each draws token 5."""

    def __init__(self, engine: Engine, batch: int) -> None:
        self.words = engine.mailbox.events.words.numpy()
        self.depth, self.step = engine.mailbox.depth, 0
        self.slots = np.arange(batch)
        self.seconds = self.cpu_seconds = 0.0  # which a device would not take from the host

    def run(self, *args) -> None:
        began, cpu = time.perf_counter(), time.thread_time()
        self.write()
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.thread_time() - cpu

    def write(self) -> None:
        self.report([] if self.step else self.slots, self.slots, [])

    def report(self, admitted, drawn, ended) -> None:
        """The words of a step, of the slots that each kind of event is about."""
        tag = np.array([self.step + 1], dtype=np.uint64) << np.uint64(48)
        kinds = ((EVENT_ADMITTED, 0, admitted), (EVENT_TOKEN, 5, drawn))
        kinds += ((EVENT_END, REASON_LENGTH.value, ended),)
        events = np.concatenate(
            [
                np.array(slots, np.uint64) << np.uint64(24) | np.uint64(kind.value << 44 | value)
                for kind, value, slots in kinds
            ]
        )
        entry = self.words[self.step % self.depth].view(np.uint64)
        first, end = HEADER_WORDS.value, HEADER_WORDS.value + 2 * len(events)
        entry[first:end:2] = tag | events
        entry[first + 1 : end : 2] = tag | np.uint64(0xBF000000)  # -0.5
        running = len(drawn)
        header = [len(events), running, running, 1000, 0, 0, running, 0, 0, len(admitted), *[0] * 5]
        entry[: len(header)] = tag | np.array(header, dtype=np.uint64)
        self.step += 1

    def maintain(self) -> None:
        raise AssertionError("the stub is never short of pages")


class WholeDevice(StubDevice):
    """Admits every request when it comes, and each draws a token a step until it is full."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, 0)
        self.ledger = engine.ledger
        self.left = np.zeros(engine.sizes.num_slots, np.int64)

    def write(self) -> None:
        admitted = sorted(self.ledger._waiting)
        for slot in admitted:
            live = self.ledger._by_slot[slot]
            self.left[slot] = live.max_len - len(live.prompt_ids)
        drawn = np.flatnonzero(self.left)
        self.left[drawn] -= 1
        self.report(admitted, drawn, drawn[self.left[drawn] == 0])


class LateDevice(StubDevice):
    """Writes the events of a step some time after its launch, from a thread of its own."""

    def __init__(self, engine: Engine, batch: int, delay: float) -> None:
        super().__init__(engine, batch)
        self.delay = delay
        self.launched = threading.Semaphore(0)
        threading.Thread(target=self.work, daemon=True).start()

    def run(self, *args) -> None:
        self.launched.release()

    def work(self) -> None:
        while True:
            self.launched.acquire()
            time.sleep(self.delay)
            self.write()
            self.written = time.perf_counter()

    def query(self) -> bool:
        return False


def make(batch: int, max_commands: int = 1024) -> Engine:
    engine = oracle_engine(
        "cpu", num_slots=1024, max_num_seqs=1024, max_num_batched_tokens=8192, num_pages=16384,
        max_model_len=1024, rings={"max_commands": max_commands},
    )  # fmt: skip
    params = SamplingParams(max_tokens=1000, ignore_eos=True)
    for _ in range(batch):
        engine.submit([1] * 16, params)
    return engine


def measure(batch: int) -> str:
    engine = make(batch)
    engine.steps = device = StubDevice(engine, batch)
    engine.step()
    meter, rows = Meter(engine), []
    for _ in range(STEPS):
        device.seconds = 0.0
        _, host, read = meter.step()
        rows.append((host - 1e6 * device.seconds, read))
    assert engine.ledger.num_running == batch
    host, read = (statistics.median(column) for column in zip(*rows))
    return f"{batch:5d} | {host:8.1f} | {read:13.1f}"


def measure_run(num_requests: int) -> str:
    """All requests at once, as `task=bench` has them; lengths are spread around 300."""
    engine = make(0, max_commands=64)
    engine.steps = device = WholeDevice(engine)
    rng, began = random.Random(0), time.thread_time()
    for _ in range(num_requests):
        num_tokens = min(900, 1 + int(rng.expovariate(1 / 300)))
        engine.submit([1] * 110, SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    submit = (time.thread_time() - began) / num_requests
    live, seconds = [], []  # of the processor: other work on the machine does not count
    while engine.has_unfinished:
        device.cpu_seconds, began = 0.0, time.thread_time()
        engine.step()
        seconds.append(time.thread_time() - began - device.cpu_seconds)
        live.append(len(engine.ledger))
    mean, median = 1e6 * statistics.mean(seconds), 1e6 * statistics.median(seconds)
    return (
        f"{num_requests} | {len(live)} | {statistics.mean(live):.0f} | {mean:.1f} | {median:.1f} | "
        f"{1e6 * submit:.1f}"
    )


def measure_late(milliseconds: float, torch_stream) -> str:
    engine = make(1)
    engine.steps = device = LateDevice(engine, 1, milliseconds / 1000)
    engine._stream = torch_stream(device)
    engine.step()
    late = []
    cpu, began = time.thread_time(), time.perf_counter()
    for _ in range(STEPS):
        engine.step()
        late.append(1e6 * (time.perf_counter() - device.written))
    share = (time.thread_time() - cpu) / (time.perf_counter() - began)
    p90 = statistics.quantiles(late, n=10)[-1]
    return f"{milliseconds:5.1f} | {statistics.median(late):9.0f} ({p90:5.0f}) | {share:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256, 1000])
    parser.add_argument("--step-ms", type=float, nargs="*", default=[0.8, 1.5, 5.0])
    parser.add_argument("--run", type=int, help="so many requests from first to last instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.run:
        print("requests | steps | live, mean | host us: mean | median | submit, us each")
        print(measure_run(args.run), flush=True)
        return
    print("batch | host, us | of it reading")
    for batch in args.batches:
        print(measure(batch), flush=True)
    print("step, ms | seen late, us (p90) | of a core")
    for milliseconds in args.step_ms:
        print(measure_late(milliseconds, lambda device: lambda: device), flush=True)


if __name__ == "__main__":
    main()
