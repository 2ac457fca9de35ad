"""Any sampler: draws for live rows only, survives NaN, and does not look at the batch."""

import inspect
from dataclasses import replace

import torch

from paged.interfaces import Sampler
from paged.samplers.base import ScoreSampler
from paged.state import RequestTable, Sizes, StepPlan

BUILT_IN = ["paged.samplers.stochastic.StochasticSampler", "paged.samplers.greedy.GreedySampler"]
SIZES = Sizes(
    num_slots=8, max_num_seqs=6, max_num_batched_tokens=16, max_model_len=64, page_size=16,
    num_pages=8,
)  # fmt: skip
UNTOUCHED = -77


def build(component) -> Sampler:
    return component() if inspect.isclass(component) else ScoreSampler(component)


def draw(component, device, logits, slots, total_len=5, offsets=None) -> torch.Tensor:
    """Tokens [B] for rows of `logits` that belong to `slots`."""
    sizes = SIZES if offsets is None else replace(SIZES, num_draft_tokens=1)
    requests, plan = RequestTable(sizes, device), StepPlan(sizes, device)
    requests.temperature.fill_(0.8)
    requests.top_p.fill_(1.0)
    requests.seed.copy_(torch.arange(8))
    requests.total_len.fill_(total_len)
    plan.sample_slots[: len(slots)] = torch.tensor(slots, dtype=torch.int32, device=device)
    plan.num_samples.fill_(len(slots))
    if offsets is not None:
        plan.sample_offsets[: len(slots)] = torch.tensor(offsets, dtype=torch.int32, device=device)
    plan.sampled_tokens.fill_(UNTOUCHED)
    build(component).sample(logits, requests, plan)
    return plan.sampled_tokens


def test_draws_for_live_rows_and_only_those(device, sampler_component):
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).to(device)
    tokens = draw(sampler_component, device, logits, [3, 1, 6])
    assert ((tokens[:3] >= 0) & (tokens[:3] < 50)).all()
    assert (tokens[3:] == UNTOUCHED).all()


def test_a_row_with_nan_draws_minus_one(device, sampler_component):
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)).to(device)
    logits[1, 7] = float("nan")
    tokens = draw(sampler_component, device, logits, [0, 1, 2])
    assert tokens[1] == -1
    assert (tokens[[0, 2]] >= 0).all()


def test_a_draw_does_not_depend_on_the_batch(device, sampler_component):
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(2)).to(device)
    together = draw(sampler_component, device, logits, [0, 1, 2, 3])[:4].clone()
    for row in range(4):
        alone = draw(sampler_component, device, logits.roll(-row, 0), [row])
        assert alone[0] == together[row]


def test_a_row_behind_drafts_draws_what_it_would_without_them(device, sampler_component):
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(3)).to(device)
    offsets = [0, 1, 2, 0, 1, 2]
    together = draw(sampler_component, device, logits, [2, 2, 2, 4, 4, 4], offsets=offsets)
    for row, (slot, offset) in enumerate(zip([2, 2, 2, 4, 4, 4], offsets)):
        alone = draw(sampler_component, device, logits.roll(-row, 0), [slot], 5 + offset)
        assert alone[0] == together[row]
