"""Speculation changes no output, whatever happens around it; it only takes fewer steps."""

import pytest
import torch

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.logits_processors import logits_processor
from paged.proposers.ngram import NgramProposer
from paged.proposers.none import NoProposer
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.testing.engines import answer_all, oracle_engine, ragged_prompts, run_to_end
from paged.testing.proposals import KnowingProposer

ON_GPU = torch.cuda.is_available()
PROMPTS = [
    "She was happy. She was happy. She was happy. She was happy. She was",
    '"Hello," said Tom. "Hello," said Sam. "Hello," said',
    "Tom saw the cat. Tom saw the dog. Tom saw the",
]


class Tally:
    """Sums over the steps of an engine."""

    def __init__(self, engine):
        self.steps = self.drafted = self.accepted = self.preempted = 0
        engine.on_step = self.count

    def count(self, stats):
        self.steps += 1
        self.drafted += stats.num_draft_tokens
        self.accepted += stats.num_accepted_tokens
        self.preempted += stats.num_preempted


def knowing_engine(device, num_draft_tokens=3, wrong=0.25, **options):
    """An oracle engine whose drafts are the oracle's, some of them wrong."""
    plain = oracle_engine(device)
    proposer = KnowingProposer(
        plain.model.continuation, num_draft_tokens=num_draft_tokens, wrong=wrong
    )
    return oracle_engine(device, proposer=proposer, **options)


@pytest.mark.parametrize(
    ("options", "num_tokens"),
    [
        ({"in_flight": 3}, 9),
        ({"num_draft_tokens": 16, "wrong": 0.05}, 24),
        ({"num_pages": 9, "num_draft_tokens": 5}, 20),
    ],
    ids=str,
)
def test_every_answer_is_the_oracles(device, options, num_tokens):
    engine = knowing_engine(device, **options)
    tally = Tally(engine)
    shared = 33 if "num_pages" in options else 0
    live = answer_all(engine, ragged_prompts(7, shared=shared)[:5], num_tokens=num_tokens)
    assert 0 < tally.accepted < tally.drafted
    assert sum(one.output.metrics.num_output_tokens for one in live) == 5 * num_tokens
    assert ("num_pages" in options) == (tally.preempted > 0)
    assert all(one.output.metrics.num_output_tokens == num_tokens for one in live)
    engine.ledger.check_empty()


def test_right_proposals_save_their_steps(device):
    counts = []
    for drafts in (1, 4):
        engine = knowing_engine(device, num_draft_tokens=drafts, wrong=0.0)
        engine.device_step.drafts.proposer.rng.randint = lambda low, high: high
        tally = Tally(engine)
        answer_all(engine, [[5] * 20], num_tokens=10)
        counts.append((tally.steps, tally.accepted))
    assert counts == [(5, 5), (2, 8)]


def ranks(reports):
    """Of each report the ranks by token: the interpreter's sums differ by batch in the last bit."""
    return [{token: one.rank for token, one in (report or {}).items()} for report in reports]


def outcomes(engine, requests):
    """What each request gets."""
    live = [engine.submit(prompt, params) for prompt, params in requests]
    run_to_end(engine)
    outputs = [one.output for one in live]
    return [
        [(one.token_ids, one.finish_reason, one.stop_reason, ranks(one.top_logprobs))
         for one in output.outputs] + [ranks(output.prompt_logprobs or [])]
        for output in outputs
    ]  # fmt: skip


def test_ends_are_where_they_are_without_it(device):
    plain = oracle_engine(device, eos_ids=(9,))
    requests = []
    for index, prompt in enumerate(ragged_prompts(3)):
        answer = plain.model.continuation(prompt, 12)
        stops = {"stop_token_ids": [answer[3 + index % 5]], "ignore_eos": index % 2 == 0}
        requests.append((prompt, SamplingParams(max_tokens=5 + index, **stops)))
        requests.append((prompt, SamplingParams(max_tokens=20, min_tokens=6, **stops)))
    expected = outcomes(plain, requests)
    reasons = {one[0][1] for one in expected}
    assert reasons == {"stop", "length"}
    engine = knowing_engine(device, num_draft_tokens=6, wrong=0.1, eos_ids=(9,))
    tally = Tally(engine)
    assert outcomes(engine, requests) == expected
    assert tally.accepted > 0


def test_requests_that_take_no_drafts_are_served_among_others(device):
    edited = [
        {"repetition_penalty": 2.0, "presence_penalty": 0.5}, {"logprobs": 2},
        {"prompt_logprobs": 1}, {"logit_bias": {3: 20.0}}, {"bad_words": [[5], [7, 8]]},
        {"forced_token_ids": [4, 4, 4]}, {"allowed_token_ids": [3, 9]},
    ]  # fmt: skip
    requests = [
        ([5, 6, 7], SamplingParams(max_tokens=5, ignore_eos=True, **own))
        for own in (*edited, {}, {"n": 2, "seed": 3})
    ]
    plain = oracle_engine(device)
    expected = outcomes(plain, requests)
    engine = knowing_engine(device)
    tally = Tally(engine)
    assert outcomes(engine, requests[: len(edited)]) == expected[: len(edited)]
    assert tally.drafted == 0
    assert outcomes(engine, requests) == expected
    assert tally.accepted > 0


def test_an_abort_in_the_middle_leaves_the_others(device):
    engine = knowing_engine(device, in_flight=2)
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    live = [engine.submit(prompt, params) for prompt in ragged_prompts(4)]
    while len(live[1].token_ids) < 6:
        engine.step()
    engine.abort(live[1].output.request_id)
    run_to_end(engine)
    reasons = [one.output.outputs[0].finish_reason for one in live]
    assert reasons == ["length", "abort", "length", "length"]
    for one in live:
        answer = engine.model.continuation(one.output.prompt_token_ids, 16)
        assert one.output.outputs[0].token_ids == answer[: len(one.output.outputs[0].token_ids)]


def test_refusals(device):
    for fields, rule in (
        ({"num_draft_tokens": 0}, "num_draft_tokens must be from 1 to 16, got 0"),
        ({"prompt_lookup_max": 1}, "must be from 1 to 127, the least first, got 2 and 1"),
    ):
        with pytest.raises(ValueError, match=rule):
            NgramProposer(**fields)
    processors = [logits_processor(lambda logits, requests: logits)]
    with pytest.raises(ValueError, match="logits_processors must be empty with a proposer"):
        oracle_engine(device, proposer=NgramProposer(), logits_processors=processors)
    engine = oracle_engine(device, proposer=NoProposer(), logits_processors=processors)
    assert engine.device_step.drafts.proposer is None


def make_llm(proposer=None, **knobs) -> LLM:
    knobs = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "watermark": 0.0} | knobs
    return LLM(
        dtype="float32", kv=PagedKV(page_size=16, num_pages=32), max_model_len=64,
        scheduler=RankScheduler(**knobs), num_slots=4, proposer=proposer,
    )  # fmt: skip


def test_the_model_draws_the_same_texts_from_drafts(device):
    params = [
        SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True),
        SamplingParams(max_tokens=8, temperature=0.7, seed=3, stop="zzz", ignore_eos=True),
        SamplingParams(max_tokens=8, temperature=0.9, top_p=0.9, top_k=20, min_p=0.01, seed=5),
    ]
    expected, known = answers(make_llm(), params)

    def continuation(tokens, count):
        whole = next(one for one in known if one[: len(tokens)] == tokens)
        return whole[len(tokens) :][:count]

    llm = make_llm(NgramProposer(num_draft_tokens=3, prompt_lookup_min=1))
    tally = Tally(llm.engine)
    assert answers(llm, params)[0] == expected
    assert 0 < tally.accepted < tally.drafted
    # Drafts that are mostly right, also where the draws are random.
    proposer = KnowingProposer(continuation, num_draft_tokens=3, wrong=0.2, vocab_size=100)
    llm = make_llm(proposer)
    tally = Tally(llm.engine)
    assert answers(llm, params)[0] == expected
    assert tally.accepted >= 6
    assert tally.steps < 8


def answers(llm, params):
    """(tokens, text and bits of each, all tokens of each)."""
    outputs = llm.generate(PROMPTS, params)
    first = [output.outputs[0] for output in outputs]
    return (
        [(one.token_ids, one.text, one.logprobs if ON_GPU else []) for one in first],
        [output.prompt_token_ids + output.outputs[0].token_ids for output in outputs],
    )
