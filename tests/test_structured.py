"""Structured output: a held row waits for its mask, and what comes out follows the grammar."""

import json
import re

import numpy as np
import pytest

from paged.edits import mask_of
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams, StructuredOutputsParams
from paged.schedulers.base import RankScheduler
from paged.structured.base import Grammar, GrammarCompiler
from paged.structured.llguidance import LLGuidance
from paged.structured.xgrammar import XGrammar
from paged.testing.engines import VOCAB_SIZE, oracle_engine, ragged_prompts, run_to_end

EOS = 0


class Countdown(Grammar):
    """Allows `length - token` after a token, each time one token only, then the end."""

    def __init__(self, first: int) -> None:
        self.next, self.ended = first, False

    def accept(self, token: int) -> bool:
        if token != (EOS if self.next < 1 else self.next):
            return False
        self.next -= 1
        return True

    def mask(self) -> np.ndarray:
        return mask_of([max(self.next, EOS)], VOCAB_SIZE)


class Countdowns(GrammarCompiler):
    def compile(self, wanted):
        return Countdown(int(wanted.regex))


def counting(first: int, **params) -> SamplingParams:
    wanted = StructuredOutputsParams(regex=str(first))
    return SamplingParams(structured_outputs=wanted, max_tokens=20, **params)


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("num_pages", [64, 9])
def test_masks_follow_the_tokens_however_far_ahead_the_host_is(in_flight, num_pages, device):
    engine = oracle_engine(
        device, in_flight=in_flight, num_pages=num_pages, grammars=Countdowns(), eos_ids=(EOS,)
    )
    prompts = ragged_prompts(8)
    plain = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    mixes = [counting(3 + number) if number % 2 else plain for number in range(8)]
    requests = [engine.submit(prompt, params) for prompt, params in zip(prompts, mixes)]
    run_to_end(engine)
    for number, (request, prompt) in enumerate(zip(requests, prompts)):
        completion = request.output.outputs[0]
        if number % 2:
            assert completion.token_ids == list(range(3 + number, -1, -1))
            assert completion.finish_reason == "stop"
        else:
            assert completion.token_ids == engine.model.continuation(prompt, 12)
    preempted = sum(request.output.metrics.num_preemptions for request in requests)
    assert (preempted > 0) == (num_pages == 9)
    engine.ledger.check_empty()


def test_a_held_row_holds_up_nobody(device):
    engine = oracle_engine(device, in_flight=3, grammars=Countdowns(), eos_ids=(EOS,))
    bound = engine.submit([1, 2, 3], counting(9))
    free = engine.submit([4, 5, 6], SamplingParams(max_tokens=9, temperature=0, ignore_eos=True))
    while not free.output.finished:
        engine.step()
    assert not bound.output.finished
    engine.abort(bound.output.request_id)
    run_to_end(engine)
    assert bound.output.outputs[0].finish_reason == "abort"


def test_allowed_tokens_narrow_a_grammar(device):
    engine = oracle_engine(device, grammars=Countdowns(), eos_ids=(EOS,))
    request = engine.submit([1], counting(4, allowed_token_ids=[4, 3]))
    run_to_end(engine)
    assert request.output.outputs[0].token_ids == [4, 3]
    assert request.output.outputs[0].finish_reason == "error"


@pytest.fixture(scope="module", params=[LLGuidance, XGrammar], ids=["llguidance", "xgrammar"])
def llm(request):
    pytest.importorskip(request.param.__module__.rpartition(".")[2])
    return LLM(
        grammars=request.param,
        kv=PagedKV(num_pages=64),
        scheduler=RankScheduler(max_num_seqs=8, max_num_batched_tokens=64),
        max_model_len=128,
    )


def test_outputs_follow_their_grammars(device, llm):
    schema = {
        "type": "object",
        "properties": {"happy": {"type": "boolean"}, "pets": {"enum": [0, 1, 12]}},
        "required": ["happy", "pets"],
        "additionalProperties": False,
    }
    wanted = [
        {"json": schema, "disable_any_whitespace": True},
        {"regex": "[a-c]{3,5}-[0-9]{2}"},
        {"choice": ["a dog", "a cat and a bird"]},
        {"grammar": 'root ::= "<" ("x" | "y") ("x" | "y") ">"'},
    ]
    params = [
        SamplingParams(
            max_tokens=40, seed=7, structured_outputs=StructuredOutputsParams(**one), n=2
        )
        for one in wanted
    ]
    answers = llm.generate(["Tom and his mother went to"] * 4, params)
    texts = [[output.text for output in answer.outputs] for answer in answers]
    ends = {output.finish_reason for answer in answers for output in answer.outputs}
    assert ends == {"stop"}, texts
    for text in texts[0]:
        value = json.loads(text)
        assert sorted(value) == ["happy", "pets"]
        assert type(value["happy"]) is bool
        assert type(value["pets"]) is int
    assert all(re.fullmatch("[a-c]{3,5}-[0-9]{2}", text) for text in texts[1])
    assert set(texts[2]) <= {"a dog", "a cat and a bird"}
    assert all(re.fullmatch("<[xy]{2}>", text) for text in texts[3])


def test_what_cannot_be_served_is_refused(device, llm):
    for wanted, message in (
        ({"json": {"type": "banana"}}, r"structured_outputs\.json"),
        ({"regex": "("}, r"structured_outputs\.regex"),
    ):
        params = SamplingParams(structured_outputs=StructuredOutputsParams(**wanted))
        with pytest.raises(ValueError, match=message):
            llm.generate("A", params)
    assert not llm.engine.has_unfinished
    engine = oracle_engine(device)
    with pytest.raises(ValueError, match="structured_outputs needs a tokenizer"):
        engine.submit([1], counting(3))
    with pytest.raises(ValueError, match="exactly one of json, regex"):
        StructuredOutputsParams(json="{}", regex="a")
    with pytest.raises(ValueError, match="ignore_eos must be False"):
        counting(3, ignore_eos=True)
