"""What the HTTP process and the engine's process spend on a streamed token, without a model.

    python experiments/server/http_cost.py [streams] [tokens]

The engine is a stand-in: every step takes 6 ms and gives every request a token. All else is the
server as it is: the loop, the pipe, detokenization, SSE, uvicorn. Processor time is what
/proc/PID/stat says, so a busy machine changes the result little.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np

from paged.engine import StepStats
from paged.intake import Limits
from paged.kernels.control.columns import REASON_ABORT, REASON_LENGTH
from paged.kv.paged import PagedKV
from paged.ledger import Ledger
from paged.mailbox import Header, Report
from paged.models.config import find_model
from paged.request import SamplingParams
from paged.server.runner import ServerSettings, serve_forever
from paged.state import Sizes
from paged.structured.base import Constraints
from paged.tokenizer import load_tokenizer

STEP_SECONDS = 0.006
SIZES = Sizes(
    num_slots=1024,
    max_num_seqs=1024,
    max_num_batched_tokens=8192,
    max_model_len=1024,
    page_size=16,
    num_pages=4096,
)


class StandInEngine:
    """As much of an engine as the loop uses: the host's books, and a device that draws anything."""

    def __init__(self, vocab_size: int) -> None:
        self.sizes, self.limits = SIZES, Limits(SIZES, vocab_size, (), PagedKV().peak_pages)
        self.constraints = Constraints(None, vocab_size)
        self.ledger = Ledger(SIZES, (SIZES.max_num_batched_tokens,))
        self.on_step = lambda stats: None
        self.report: Report | None = None
        self.num_steps = 0
        self._left = np.zeros(SIZES.num_slots, np.int64)  # tokens to draw, by slot
        self._entered: list[int] = []
        self._aborted: list[int] = []
        self._random = np.random.default_rng(0)

    @property
    def has_unfinished(self) -> bool:
        return len(self.ledger) > 0

    def submit(self, ids: list[int], params: SamplingParams, *, request_id: str):
        live = self.limits.accept(ids, params, request_id, None, self.num_steps)
        for one in live.group:
            self.ledger.enter(one)
            self._left[one.slot] = one.max_len - len(ids)
            self._entered.append(one.slot)
        return live

    def stop(self, live, num_tokens: int, stop: str) -> None:
        live.cut(num_tokens, stop)
        self._left[live.slot] = 0
        self._aborted.append(live.slot)

    def step(self) -> list:
        time.sleep(STEP_SECONDS)
        slots = np.flatnonzero(self._left)
        self._left[slots] -= 1
        ended = slots[self._left[slots] == 0].tolist()
        self.report = Report(
            Header(*[0] * len(Header._fields)),
            slots,
            self._random.integers(300, 1000, len(slots), dtype=np.int32),
            np.full(len(slots), -1, np.float32),
            admitted_slots=self._entered,
            cached_tokens=[0] * len(self._entered),
            end_slots=ended + self._aborted,
            end_reasons=[REASON_LENGTH.value] * len(ended)
            + [REASON_ABORT.value] * len(self._aborted),
        )
        self._entered, self._aborted = [], []
        self.num_steps += 1
        counts = dict.fromkeys(StepStats.__dataclass_fields__, 0)
        self.on_step(StepStats(**counts | {"num_tokens": len(slots)}))
        return self.ledger.apply(self.report, SIZES.max_num_batched_tokens, time.perf_counter())


class StandIn:
    """As much of an LLM."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(find_model("stories", with_weights=False))
        self.engine = StandInEngine(len(self.tokenizer.hf))


def serve(port: int) -> None:
    settings = ServerSettings(
        names=("stand-in",), host="127.0.0.1", port=port, api_keys=(), max_queued=4096,
        max_body_bytes=2**20, drain_seconds=5.0, chat_template=None, tool_parser=None,
        metrics_alias=None, profile_dir=None, num_tokenizer_threads=2, debug=True, access_log=False,
    )  # fmt: skip
    serve_forever(StandIn, settings)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def one(port: int, num_tokens: int, stream: bool) -> int:
    """One request; returns the number of events or 1."""
    body = json.dumps(
        {"prompt": [5, 6, 7], "max_tokens": num_tokens, "stream": stream, "ignore_eos": True}
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    events = 0
    while data := await reader.read(65536):
        events += data.count(b"data: ")
    writer.close()
    return events


async def load(port: int, streams: int, num_tokens: int, stream: bool) -> tuple[float, int]:
    began = time.perf_counter()
    events = await asyncio.gather(*(one(port, num_tokens, stream) for _ in range(streams)))
    return time.perf_counter() - began, sum(events)


def main() -> None:
    streams, num_tokens = (int(value) for value in (*sys.argv[1:], "256", "200")[:2])
    port = 8765
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port,))
    process.start()
    while True:
        try:
            asyncio.run(one(port, 2, True))
            break
        except OSError:
            time.sleep(0.2)
    engine = max(children(process.pid), key=processor_seconds)
    print("| request | streams | tokens/s | events | HTTP us/token | engine loop us/token |")
    print("|---|---|---|---|---|---|")
    for stream in (True, False):
        before = processor_seconds(process.pid), processor_seconds(engine)
        seconds, events = asyncio.run(load(port, streams, num_tokens, stream))
        after = processor_seconds(process.pid), processor_seconds(engine)
        total = streams * num_tokens
        http, loop = ((b - a) / total * 1e6 for a, b in zip(before, after))
        kind = "stream" if stream else "whole"
        print(
            f"| {kind} | {streams} | {total / seconds:.0f} | {events} | {http:.1f} | {loop:.1f} |"
        )
    process.terminate()
    process.join()


if __name__ == "__main__":
    main()
