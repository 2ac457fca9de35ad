"""One policy, three levels: Triton, torch and host Python make the same decisions."""

import torch
import triton
import triton.language as tl

from paged.eviction.base import HostEviction, ScoreEviction
from paged.request import SamplingParams
from paged.schedulers.base import HostScheduler, RankScheduler
from paged.testing.engines import oracle_engine, ragged_prompts, run_to_end

KNOBS = {"max_num_seqs": 3, "max_num_batched_tokens": 48, "preemptive": True}


@triton.jit
def short_and_old_first(row, now, weight):
    return row.total_len * weight - tl.minimum(now.step, 9) - row.running


def short_and_old_first_torch(row, now, weight):
    return row.total_len * weight - torch.clamp(now.step, max=9) - row.running


class ShortAndOldFirst(HostScheduler):
    def rank(self, request, now):
        return request.total_len * 2 - min(now.step, 9) - request.running


@triton.jit
def cold_and_deep(page, now):
    return tl.where(page.hits > 0, 1000, 0) + page.last_used - page.depth - now.step


def cold_and_deep_torch(page, now):
    return torch.where(page.hits > 0, 1000, 0) + page.last_used - page.depth - now.step


class ColdAndDeep(HostEviction):
    def score(self, page, now):
        return (1000 if page.hits > 0 else 0) + page.last_used - page.depth - now.step


def decisions(device, **parts) -> list:
    engine = oracle_engine(device, num_pages=14, num_slots=8, **parts)
    steps = []
    engine.on_step = lambda stats: steps.append(
        (stats.num_tokens, stats.num_seqs, stats.num_preempted, stats.free_pages,
         stats.cached_pages, engine.requests.block_table.tolist())
    )  # fmt: skip
    for seed in range(2):
        for prompt in ragged_prompts(5, seed=seed, shared=20):
            engine.submit(prompt, SamplingParams(max_tokens=6, ignore_eos=True))
        run_to_end(engine)
    return steps


def test_schedulers_of_all_levels_decide_alike(device):
    kernel = decisions(device, scheduler=RankScheduler(short_and_old_first, args=(2,), **KNOBS))
    torch_level = RankScheduler(short_and_old_first_torch, args=(2,), **KNOBS)
    assert decisions(device, scheduler=torch_level) == kernel
    assert decisions(device, scheduler=ShortAndOldFirst(**KNOBS)) == kernel
    assert sum(step[2] for step in kernel) > 0


def test_evictions_of_all_levels_decide_alike(device):
    kernel = decisions(device, eviction=ScoreEviction(cold_and_deep))
    assert decisions(device, eviction=ScoreEviction(cold_and_deep_torch)) == kernel
    assert decisions(device, eviction=ColdAndDeep()) == kernel
