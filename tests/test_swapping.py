"""Preemption by swapping in the engine: the answers of a run with plenty of memory."""

import pytest
import torch

from paged.kv.compression.streaming_llm import StreamingLLM
from paged.kv.contiguous_max import reserve_len
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.schedulers.priority import rank as priority
from paged.sizing import choose_num_host_pages
from paged.testing.engines import answer_all, oracle_engine, ragged_prompts
from paged.testing.proposals import KnowingProposer

ON_GPU = torch.cuda.is_available()


class Tally:
    """Sums over the steps of an engine."""

    def __init__(self, engine):
        self.preempted = self.out = self.back = self.computed = 0
        engine.on_step = self.count

    def count(self, stats):
        self.preempted += stats.num_preempted
        self.out += stats.swapped_out_tokens
        self.back += stats.swapped_in_tokens
        self.computed += stats.num_tokens


def swapping_engine(device, num_host_pages=40, **options):
    kv = PagedKV(page_size=16, num_host_pages=num_host_pages)
    return oracle_engine(device, kv=kv, preemption="swap", **options)


PROMPTS = ragged_prompts(5)[2:]
TOKENS = 24


def test_nothing_is_computed_twice(device):
    engine = swapping_engine(device, num_pages=6, in_flight=3)
    tally = Tally(engine)
    live = answer_all(engine, PROMPTS, num_tokens=TOKENS)
    assert tally.preempted == sum(one.output.metrics.num_preemptions for one in live) > 0
    assert tally.out == tally.back > 0
    assert tally.computed == sum(len(prompt) + TOKENS - 1 for prompt in PROMPTS)


@pytest.mark.slow
def test_what_finds_no_host_page_is_computed_again(device):
    engine = swapping_engine(device, num_host_pages=1, num_pages=6)
    tally = Tally(engine)
    answer_all(engine, PROMPTS, num_tokens=TOKENS)
    assert tally.preempted > 0
    assert tally.computed > sum(len(prompt) + TOKENS - 1 for prompt in PROMPTS)


def test_rows_that_gave_way_to_urgent_ones(device):
    engine = swapping_engine(device, rank=priority, preemptive=True, max_num_seqs=2)
    low = engine.submit([3] * 40, SamplingParams(max_tokens=20, ignore_eos=True, priority=2))
    for _ in range(6):
        engine.step()
    tally = Tally(engine)
    answer_all(engine, ragged_prompts(2), num_tokens=5, priority=1)
    assert tally.out == 45
    assert tally.back == 45 - 32, "two pages had been published and are shared again"
    assert low.output.outputs[0].token_ids == engine.model.continuation([3] * 40, 20)


@pytest.mark.slow
def test_samples_behind_a_shared_prefix(device):
    engine = swapping_engine(device, num_pages=11)
    tally = Tally(engine)
    answer_all(engine, ragged_prompts(3, shared=33), num_tokens=TOKENS, n=3)
    assert tally.back > 0


@pytest.mark.slow
def test_drafts(device):
    proposer = KnowingProposer(
        oracle_engine(device).model.continuation, num_draft_tokens=5, wrong=0.25
    )
    engine = swapping_engine(device, num_pages=7, proposer=proposer)
    tally = Tally(engine)
    answer_all(engine, ragged_prompts(5, shared=33), num_tokens=20)
    assert tally.back > 0


def test_a_model_answers_as_with_plenty_of_memory(device):
    pages, prompts, tokens = (24, 16, 64) if ON_GPU else (6, 4, 10)
    opening = "Once upon a time there was a little dog named Max. Max loved to play in the park. "
    ends = ("One day", "His friend Lily", "The girl", "Tom and his mother went to")
    texts = [opening * (at % 2) + ends[at % 4] + " and" * (at // 4) for at in range(prompts)]
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)

    def answers(tallies=None, **options) -> list:
        kv = PagedKV(page_size=16, **options)
        swaps = "swap" if kv.num_host_pages else "recompute"
        scheduler = RankScheduler(
            max_num_seqs=16, max_num_batched_tokens=256, watermark=0.0, preemption=swaps
        )
        llm = LLM(kv=kv, scheduler=scheduler, max_model_len=256, num_slots=32)
        if tallies is not None:
            tallies.append(Tally(llm.engine))
        outputs = [request.outputs[0] for request in llm.generate(texts, params)]
        return [(one.token_ids, one.logprobs if ON_GPU else []) for one in outputs]

    tallies: list[Tally] = []
    expected = answers(num_pages=512)
    assert answers(tallies, num_pages=pages, num_host_pages=64) == expected
    assert tallies[0].back > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"scheduler\.preemption=swap needs kv\.num_host_pages"),
        ({"num_host_pages": 4, "compression": StreamingLLM(pages=8)}, "kv/compression=none"),
        ({"num_host_pages": 4, "reserve_len": reserve_len}, "use kv=paged"),
    ],
    ids=["no host pages", "compression", "reserving"],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        choose_num_host_pages(RankScheduler(preemption="swap"), PagedKV(**options))


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match=r"scheduler\.preemption must be recompute or swap"):
        RankScheduler(preemption="drop")
    with pytest.raises(ValueError, match=r"kv\.num_host_pages must be positive, got 0"):
        PagedKV(num_host_pages=0)


def test_host_pages_cost_nothing_where_preempted_rows_compute_again():
    assert choose_num_host_pages(RankScheduler(), PagedKV(num_host_pages=9)) == 0
    assert oracle_engine("cpu", kv=PagedKV(num_host_pages=9)).pool.swaps is None
