"""What the engine's loop sends, message by message, against the outputs it speaks of."""

from array import array
from types import SimpleNamespace

import pytest

from paged.request import SamplingParams
from paged.samplers.stochastic import StochasticSampler
from paged.server.engine_process import EngineLoop
from paged.server.wire import Progress, Submit, Tokens, unpacked
from paged.testing.engines import oracle_engine
from paged.testing.proposals import KnowingProposer


class Reader:
    """Puts the messages together, as the HTTP process does."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float]] = {}
        self.tops: dict[int, int] = {}
        self.reasons: dict[int, str] = {}
        self.num_columns = 0  # tokens that came as columns

    def put(self, *messages: object) -> None:
        for message in messages:
            if isinstance(message, Tokens):
                for key, token, logprob in unpacked(message):
                    self.num_columns += 1
                    self.take(Progress(key, [token], [logprob]))
            elif isinstance(message, Progress):
                self.take(message)

    def take(self, news: Progress) -> None:
        key = news.key
        assert key not in self.reasons, f"output {key} grows after its end"
        self.tokens.setdefault(key, []).extend(news.token_ids)
        self.logprobs.setdefault(key, []).extend(news.logprobs)
        self.tops[key] = self.tops.get(key, 0) + len(news.top_logprobs or ())
        if news.finish_reason is not None:
            self.reasons[key] = news.finish_reason
            assert news.times is not None


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_every_token_is_sent_once_and_in_order(device, num_draft_tokens):
    drafts = {}
    if num_draft_tokens:
        known = oracle_engine(device).model.continuation
        drafts["proposer"] = KnowingProposer(known, num_draft_tokens=num_draft_tokens, wrong=0.3)
    engine = oracle_engine(device, sampler=StochasticSampler(), in_flight=2, **drafts)
    reader = Reader()
    loop = EngineLoop(SimpleNamespace(engine=engine, tokenizer=None), None, reader, None)
    asked = {
        0: SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
        1: SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, logprobs=2),
        2: SamplingParams(max_tokens=7, ignore_eos=True, n=2, seed=1),
        4: SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
        5: SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, prompt_logprobs=1),
        6: SamplingParams(temperature=0, max_tokens=1, ignore_eos=True),
    }
    for key, params in asked.items():
        ids = array("i", [7, 8, 9, key]).tobytes()
        loop._submit(Submit(key, ids, params))
    outputs = {key: tracked.live for key, tracked in loop.tracked.items()}
    assert list(outputs) == [0, 1, 2, 3, 4, 5, 6]
    while engine.has_unfinished:
        loop._report(engine.step())
        if 4 in loop.tracked and len(reader.tokens.get(4, ())) >= 5:
            loop._abort(4)  # draws on in the steps in flight, and nobody hears of it
    loop._submit(Submit(7, array("i", [7, 8]).tobytes(), asked[0]))  # takes a slot of the others
    outputs[7] = loop.tracked[7].live
    while engine.has_unfinished:
        loop._report(engine.step())

    for key, live in outputs.items():
        assert reader.tokens[key] == live.completion.token_ids
        assert reader.logprobs[key] == live.completion.logprobs
    assert [len(reader.tokens[key]) for key in (0, 1, 2, 3, 5, 6, 7)] == [12, 9, 7, 7, 3, 1, 12]
    assert 5 <= len(reader.tokens[4]) < 40
    assert reader.tops[1] == 9
    assert set(reader.reasons.values()) == {"length", "stop"}
    assert list(reader.reasons.values()).count("stop") == 1, "the one that was given up"
    assert reader.num_columns > 0
    assert loop.tracked == {}
    assert (loop._plain_keys == -1).all()
