"""Compile every policy function inside its kernel; prints those compiled for both targets.

Run with TRITON_INTERPRET=0, in a process of its own: Triton reads it when kernels are decorated.
"""

from importlib import import_module

import torch

import paged  # noqa: F401 - has a say in TRITON_INTERPRET
from paged.kernels.control.evict import evict
from paged.kernels.control.order import order
from paged.kernels.control.schedule import schedule
from paged.kernels.page_scores import page_scores, page_scores_inputs
from paged.state import PagePool, RequestTable, Sizes, StepPlan
from paged.testing.compiling import GFX942, SM90, compiled_launches
from paged.testing.contracts.test_compression import FUNCTIONS as COMPRESSIONS
from paged.testing.contracts.test_eviction import FUNCTIONS as SCORES
from paged.testing.contracts.test_scheduler import FUNCTIONS as RANKS

RESERVES = ("contiguous_max", "contiguous_pow2", "contiguous_oracle")


def main() -> None:
    sizes = Sizes(
        num_slots=60, max_num_seqs=32, max_num_batched_tokens=128, max_model_len=1000,
        page_size=16, num_pages=300,
    )  # fmt: skip
    state = (RequestTable(sizes, "cpu"), PagePool(sizes, "cpu"), StepPlan(sizes, "cpu"))
    launches = {}
    for name in RANKS:
        rank = import_module(f"paged.schedulers.{name}").rank
        launches[f"rank.{name}"] = lambda rank=rank: order(*state, rank)
    for name in SCORES:
        score = import_module(f"paged.eviction.{name}").score
        launches[f"score.{name}"] = lambda score=score: evict(state[1], 3, score)
    for name in RESERVES:
        reserve = import_module(f"paged.kv.{name}").reserve_len
        launches[f"reserve.{name}"] = lambda reserve=reserve: schedule(
            *state, budget=7, chunk=3, reserve=reserve
        )
    for name in COMPRESSIONS:
        score = import_module(f"paged.kv.compression.{name}").score
        given = {"with_means": True, "with_attention": True}
        inputs = page_scores_inputs(dtype=torch.bfloat16, head_dim=128, **given)
        inputs["score"] = score
        launches[f"compression.{name}"] = lambda inputs=inputs: page_scores(**inputs)
    for name, launch in launches.items():
        with compiled_launches(SM90, GFX942) as compiled:
            launch()
        if all(backends == {"cuda", "hip"} for backends in compiled.values()):
            print(name)


if __name__ == "__main__":
    main()
