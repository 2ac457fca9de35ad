"""Compile every control kernel, in every variant; prints those compiled for both targets.

Run with TRITON_INTERPRET=0, in a process of its own: Triton reads it when kernels are decorated.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

import paged  # noqa: F401 - has a say in TRITON_INTERPRET
from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score
from paged.intake import Limits
from paged.kernels.control.beam_repoint import beam_repoint
from paged.kernels.control.beam_select import beam_select
from paged.kernels.control.budget import PageBudget
from paged.kernels.control.compress import Drops, compress_rows, drop_pages
from paged.kernels.control.drafts import grant_drafts, verify_drafts
from paged.kernels.control.evict import evict
from paged.kernels.control.ingest import ingest
from paged.kernels.control.lookup import lookup
from paged.kernels.control.order import order
from paged.kernels.control.prepare import prepare
from paged.kernels.control.publish import publish
from paged.kernels.control.release import release
from paged.kernels.control.schedule import schedule
from paged.kernels.control.swap import swap
from paged.kernels.control.update import update
from paged.kv.contiguous_max import reserve_len
from paged.kv.paged import PagedKV
from paged.mailbox import Mailbox
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.schedulers.fcfs import rank
from paged.simulator.device import DeviceSimulation
from paged.simulator.script import write_script
from paged.simulator.simulation import arrivals
from paged.simulator.step_time import StepTime
from paged.state import PagePool, RequestTable, Sizes, StepPlan
from paged.testing.compiling import GFX942, SM90, compiled_launches
from paged.workloads.request import Request


def control_compile_cases(sizes: Sizes) -> Iterator[Callable[[], None]]:
    """Launches that reach every kernel and every compile-time branch."""
    requests, pool = RequestTable(sizes, "cpu"), PagePool(sizes, "cpu")
    mailbox = Mailbox(sizes, torch.device("cpu"))
    state = (requests, pool, StepPlan(sizes, "cpu"))
    with_beams = StepPlan(sizes, "cpu")
    with_beams.beams = True
    beams = (requests, pool, with_beams)
    drafted = replace(sizes, num_draft_tokens=5)
    speculative = RequestTable(drafted, "cpu"), pool, StepPlan(drafted, "cpu")
    drops, compressed = Drops(sizes, "cpu"), RequestTable(sizes, "cpu")
    compressed.page_budget = PageBudget(pages=20, share=512, sink_pages=1, recent=64)
    holes = (compressed, pool, state[2])
    attended, asked = Drops(sizes, "cpu"), RequestTable(sizes, "cpu")
    attended.attention = torch.zeros_like(asked.block_table, dtype=torch.int64)
    asked.page_budget = compressed.page_budget._replace(uncached=32)
    swapping = (requests, PagePool(replace(sizes, num_host_pages=1000), "cpu"), state[2])
    yield lambda: ingest(requests, pool, mailbox.commands, 3)
    yield lambda: lookup(requests, pool)
    yield lambda: order(*state, rank)
    yield lambda: order(*state, preemptive=True)
    yield lambda: schedule(*state, budget=7, chunk=3)
    yield lambda: schedule(*state, budget=1, chunk=16, reserve=reserve_len, static_batch=True)
    yield lambda: order(*beams, rank)
    yield lambda: schedule(*beams, budget=7, chunk=3)
    yield lambda: grant_drafts(*speculative, budget=64)
    yield lambda: prepare(*state)
    yield lambda: prepare(*speculative)
    yield lambda: verify_drafts(speculative[0], speculative[2])
    yield lambda: beam_select(requests, with_beams)
    yield lambda: beam_repoint(*beams)
    yield lambda: update(*state, mailbox.events)
    yield lambda: update(*beams, mailbox.events)
    yield lambda: update(*speculative, Mailbox(drafted, torch.device("cpu")).events)
    yield lambda: publish(*state)
    yield lambda: release(*state, mailbox.events)
    yield lambda: evict(pool, 3, score)
    yield lambda: evict(pool, 3)
    yield lambda: lookup(compressed, pool)
    yield lambda: schedule(*holes, budget=7, chunk=3)
    yield lambda: prepare(*holes)
    yield lambda: compress_rows(compressed, drops)
    yield lambda: drop_pages(compressed, pool, drops)
    yield driven(sizes, PagedKV(page_size=16), in_flight=1).step
    yield driven(sizes, PagedKV(page_size=16, reserve_len=reserve_len), in_flight=3).step
    yield lambda: drop_pages(compressed, pool, attended)
    yield lambda: lookup(asked, pool)
    yield lambda: schedule(*swapping, budget=7, chunk=3)
    yield lambda: swap(*swapping)


def driven(sizes: Sizes, kv: PagedKV, in_flight: int) -> DeviceSimulation:
    """Steps without a model, which the device drives by itself."""
    item = Request(arrival=0.0, spans=((1, 40),), output_len=3, output=2)
    limits = Limits(sizes, item.vocab_size, (), kv.peak_pages)
    script = write_script(
        arrivals([item], SamplingParams()), limits, lambda *why: None, shares=True
    )
    return DeviceSimulation(
        script, sizes=sizes, scheduler=RankScheduler(), kv=kv, eviction=ScoreEviction(score),
        step_time=StepTime(0.01), device=torch.device("cpu"), in_flight=in_flight,
    )  # fmt: skip


def main() -> None:
    sizes = Sizes(
        num_slots=300, max_num_seqs=100, max_num_batched_tokens=2048, max_model_len=1000,
        page_size=16, num_pages=3000,
    )  # fmt: skip
    with compiled_launches(SM90, GFX942) as compiled:
        for launch in control_compile_cases(sizes):
            launch()
    print(*sorted(name for name, backends in compiled.items() if backends == {"cuda", "hip"}))


if __name__ == "__main__":
    main()
