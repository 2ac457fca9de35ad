"""What a step costs the host, without a device: launches go to a stub that writes the events.

    python experiments/host/stub.py --batches 1 64 256 1000
    python experiments/host/stub.py --step-ms 0.8 1.5 5

The first measures the Python of a step: commands, guess of the capacity, decoding of the events,
what is done with them. What a device adds is the launch itself (a graph's replay). The second has
a thread write the events of a step late, and measures how late the host sees them and which share
of a core it uses while it waits.
"""

import argparse
import statistics
import threading
import time

import numpy as np
import torch
from measure import Meter

from paged.engine import Engine
from paged.kernels.control.update import EVENT_ADMITTED, EVENT_TOKEN, HEADER_WORDS
from paged.request import SamplingParams
from paged.testing.engines import oracle_engine

STEPS = 200


class StubDevice:
    """Admits all requests at once in its first step; from then on each draws token 5."""

    def __init__(self, engine: Engine, batch: int) -> None:
        self.words = engine.mailbox.events.words.numpy()
        self.depth, self.batch, self.step = engine.mailbox.depth, batch, 0
        self.seconds = 0.0  # spent here, which a device would not take from the host

    def run(self, *args) -> None:
        began = time.perf_counter()
        self.write()
        self.seconds += time.perf_counter() - began

    def write(self) -> None:
        tag = np.array([self.step + 1], dtype=np.uint64) << np.uint64(48)
        slots = np.arange(self.batch, dtype=np.uint64) << np.uint64(24)
        tokens = slots | np.uint64(EVENT_TOKEN.value << 44 | 5)
        admitted = slots | np.uint64(EVENT_ADMITTED.value << 44)
        events = tokens if self.step else np.concatenate((admitted, tokens))
        entry = self.words[self.step % self.depth].view(np.uint64)
        first, end = HEADER_WORDS.value, HEADER_WORDS.value + 2 * len(events)
        entry[first:end:2] = tag | events
        entry[first + 1 : end : 2] = tag | np.uint64(0xBF000000)  # -0.5
        header = [len(events), self.batch, self.batch, 1000, 0, 0, self.batch, *[0] * 8]
        entry[: len(header)] = tag | np.array(header, dtype=np.uint64)
        self.step += 1

    def maintain(self) -> None:
        raise AssertionError("the stub is never short of pages")


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


def make(batch: int) -> Engine:
    engine = oracle_engine(
        "cpu", num_slots=1024, max_num_seqs=1024, max_num_batched_tokens=8192, num_pages=16384,
        max_model_len=1024, rings={"max_commands": 1024},
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
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("batch | host, us | of it reading")
    for batch in args.batches:
        print(measure(batch), flush=True)
    print("step, ms | seen late, us (p90) | of a core")
    for milliseconds in args.step_ms:
        print(measure_late(milliseconds, lambda device: lambda: device), flush=True)


if __name__ == "__main__":
    main()
