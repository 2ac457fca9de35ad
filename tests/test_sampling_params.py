"""Random mixes of sampling parameters in one batch, against a plain simulation of each request.

The model's logits are a row of a random table, chosen by a hash of all tokens so far: they are
known without the engine, and differ if one token was lost, repeated or taken from another request.
"""

import random

import pytest
import torch

from paged.edits import edits_of
from paged.kernels.control.columns import LOGIT_EDITS, NUM_COLUMNS, PROMPT_LEN, TOTAL_LEN
from paged.kernels.control.hashing import mix_ref
from paged.kernels.floor_search import keep_ref
from paged.kernels.logits_ref import edit_logits_ref
from paged.kernels.philox import gumbel_noise_ref
from paged.kernels.sampling_ref import drawn_strand, is_filtered
from paged.request import SamplingParams
from paged.samplers.stochastic import StochasticSampler
from paged.testing.engines import VOCAB_SIZE, oracle_engine, ragged_prompts, run_to_end
from paged.testing.oracle import OracleModel

NUM_TOKENS = 12
EOS = 5


class TableModel(OracleModel):
    """Logits are row `hash of the tokens so far` of a table."""

    table: torch.Tensor

    def forward(self, plan, meta, attention, capacity):
        super().forward(plan, meta, attention, capacity)
        self.logits.copy_(self.table[self.logits.argmax(dim=1)])
        return self.logits

    def row(self, tokens: list[int]) -> torch.Tensor:
        words = mix_ref(torch.tensor(tokens), torch.arange(len(tokens)))
        return self.table[int(words.sum() % self.vocab_size)].cpu()


def build(device, **options):
    engine = oracle_engine(device, sampler=StochasticSampler(), eos_ids=(EOS,), **options)
    engine.model.__class__ = TableModel
    table = 2 * torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    engine.model.table = table.to(device)
    return engine


def simulate(model: TableModel, prompt: list[int], params: SamplingParams):
    """(tokens, logprobs, tops) of one request, a token at a time."""
    tokens, logprobs, tops = list(prompt), [], []
    edits = edits_of(params, VOCAB_SIZE)
    columns = torch.zeros(NUM_COLUMNS, 1, dtype=torch.int32)
    columns[LOGIT_EDITS.value] = edits.asked
    columns[PROMPT_LEN.value] = len(prompt)
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    sampling = torch.tensor([0.0, 0.0, 0.0, *penalties])[:, None]
    words = torch.from_numpy(edits.words)[None] if edits.words is not None else torch.zeros(1, 0)
    mask = torch.from_numpy(edits.mask)[None] if edits.mask is not None else None
    one = torch.ones(1, dtype=torch.int32)
    ends = {*params.stop_token_ids} if params.ignore_eos else {EOS, *params.stop_token_ids}
    for number in range(params.max_tokens):
        raw = model.row(tokens)
        columns[TOTAL_LEN.value] = len(tokens)
        ids = torch.tensor([tokens], dtype=torch.int32)
        logits = edit_logits_ref(raw[None], one - 1, one, columns, sampling, ids, words, mask)[0]
        if number < params.min_tokens:
            logits[list(ends)] = float("-inf")
        if params.temperature:
            filters = (params.top_k, params.top_p, params.min_p)
            kept = keep_ref(logits, params.temperature, *filters)
            noise = gumbel_noise_ref(params.seed, len(tokens), VOCAB_SIZE)
            if not is_filtered(*filters, VOCAB_SIZE):
                kept = drawn_strand(logits / params.temperature, params.seed, len(tokens))
            scores = (logits / params.temperature + noise).where(kept, float("-inf"))
            token = int(scores.argmax())
        else:
            token = int(logits.argmax())
        if number < len(params.forced_token_ids):
            token = params.forced_token_ids[number]
        known = raw.log_softmax(0)
        tokens.append(token)
        logprobs.append(float(known[token]))
        best = known.sort(descending=True, stable=True).indices[: params.logprobs or 0].tolist()
        tops.append({token: float(known[token])} | {place: float(known[place]) for place in best})
        if token in ends:
            break
    return tokens[len(prompt) :], logprobs, tops if params.logprobs is not None else []


def mixed_params(rng: random.Random, outputs: list[int]) -> SamplingParams:
    """Each parameter is asked for by about a third of the requests."""

    def sometimes(value, default):
        return value if rng.random() < 0.35 else default

    ids = range(VOCAB_SIZE)
    return SamplingParams(
        max_tokens=NUM_TOKENS,
        min_tokens=sometimes(rng.randrange(1, 8), 0),
        temperature=sometimes(0.0, rng.choice((0.5, 1.0, 1.5))),
        top_k=sometimes(rng.choice((1, 3, 20)), 0),
        top_p=sometimes(rng.choice((0.5, 0.9)), 1.0),
        min_p=sometimes(0.1, 0.0),
        repetition_penalty=sometimes(rng.choice((0.7, 1.3, 2.0)), 1.0),
        presence_penalty=sometimes(rng.choice((-1.0, 0.5, 2.0)), 0.0),
        frequency_penalty=sometimes(rng.choice((-0.5, 1.5)), 0.0),
        logit_bias=sometimes({rng.choice(ids): rng.choice((-3.0, 2.5)) for _ in range(9)}, None),
        allowed_token_ids=sometimes(rng.sample(ids, 40), None),
        bad_words=sometimes([[rng.choice(outputs)], outputs[2:4], rng.sample(ids, 3)], ()),
        forced_token_ids=sometimes(rng.sample([token for token in ids if token != EOS], 3), ()),
        logprobs=sometimes(rng.choice((0, 1, 4, 20)), None),
        stop_token_ids=sometimes((7, 9), ()),
        ignore_eos=sometimes(True, False),
        seed=rng.randrange(2**40),
    )


def check(engine, requests, prompts, mixes):
    for request, prompt, params in zip(requests, prompts, mixes):
        tokens, logprobs, tops = simulate(engine.model, prompt, params)
        completion = request.output.outputs[0]
        assert completion.token_ids == tokens, params
        assert completion.logprobs == pytest.approx(logprobs, rel=1e-4, abs=1e-4)
        found = [
            {token: one.logprob for token, one in top.items()} for top in completion.top_logprobs
        ]
        assert [list(top) for top in found] == [list(top) for top in tops]
        for mine, known in zip(found, tops):
            assert mine == pytest.approx(known, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_mixes_in_one_batch_equal_a_plain_simulation(seed, device):
    rng = random.Random(seed)
    engine = build(device)
    prompts = ragged_prompts(14, seed=seed)
    outputs = simulate(engine.model, prompts[0], SamplingParams(temperature=0, ignore_eos=True))[0]
    mixes = [mixed_params(rng, outputs) for _ in prompts]
    requests = [engine.submit(prompt, params) for prompt, params in zip(prompts, mixes)]
    run_to_end(engine)
    check(engine, requests, prompts, mixes)


def test_famine_with_preemption_gives_the_same(device):
    rng = random.Random(5)
    engine = build(device, num_pages=10)
    prompts = ragged_prompts(10, seed=5)
    mixes = [mixed_params(rng, [1, 2, 3, 4]) for _ in prompts]
    requests = [engine.submit(prompt, params) for prompt, params in zip(prompts, mixes)]
    run_to_end(engine)
    assert sum(request.output.metrics.num_preemptions for request in requests) > 0
    check(engine, requests, prompts, mixes)


def test_a_slot_given_on_keeps_nothing_of_the_last_request(device):
    engine = build(device, num_slots=1)
    prompts = ragged_prompts(3)
    changed = SamplingParams(
        temperature=0, max_tokens=6, ignore_eos=True, repetition_penalty=2.0, presence_penalty=1.0,
        logit_bias={3: 9.0}, bad_words=[[4]], allowed_token_ids=[3, 4, 9], logprobs=3,
        forced_token_ids=[9, 9],
    )  # fmt: skip
    plain = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    mixes = [changed, plain, changed]
    requests = [engine.submit(prompt, params) for prompt, params in zip(prompts, mixes)]
    run_to_end(engine)
    check(engine, requests, prompts, mixes)
    assert requests[0].output.outputs[0].token_ids[:2] == [9, 9]


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_tokens_of_the_prompt_are_reported_and_change_nothing(n, device):
    engine = build(device, num_pages=24)
    prompts = [[7], *ragged_prompts(5)[1:]]
    prompts[1][3] = EOS
    params = SamplingParams(
        max_tokens=5, n=n, prompt_logprobs=3, presence_penalty=1.5, stop_token_ids=[9], seed=4,
        forced_token_ids=[12],
    )  # fmt: skip
    requests = [engine.submit(prompt, params) for prompt in prompts]
    run_to_end(engine)
    for request, prompt in zip(requests, prompts):
        output = request.output
        tokens, logprobs, _ = simulate(engine.model, prompt, params)
        assert output.outputs[0].token_ids == tokens
        assert output.outputs[0].logprobs == pytest.approx(logprobs, rel=1e-4, abs=1e-4)
        assert output.outputs[0].top_logprobs == []
        num_drawn = sum(len(completion.token_ids) for completion in output.outputs)
        assert output.metrics.num_output_tokens == num_drawn
        assert output.prompt_logprobs[0] is None
        for place in range(1, len(prompt)):
            known = engine.model.row(prompt[:place]).log_softmax(0)
            best = known.sort(descending=True, stable=True).indices[:3].tolist()
            found = output.prompt_logprobs[place]
            assert list(found) == list(dict.fromkeys([prompt[place], *best]))
            for token, (logprob, rank) in found.items():
                assert logprob == pytest.approx(float(known[token]), rel=1e-4, abs=1e-4)
                assert rank == int((known >= known[token]).sum())
        assert len(output.prompt_logprobs) == len(prompt)


def test_a_row_without_a_token_to_draw_ends_with_an_error(device):
    engine = build(device)
    params = SamplingParams(allowed_token_ids=[1, 2], bad_words=[[1], [2]])
    request = engine.submit([1, 2, 3], params)
    run_to_end(engine)
    assert request.output.outputs[0].finish_reason == "error"
    assert "every token" in request.output.error


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty must be positive"),
        ({"presence_penalty": 3}, r"presence_penalty must be in \[-2, 2\]"),
        ({"frequency_penalty": "a"}, "frequency_penalty must be a number"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias must hold finite numbers"),
        ({"logit_bias": dict.fromkeys(range(600), 1.0)}, "at most 512 tokens, got 600"),
        ({"logit_bias": {64: 1.0}}, r"logit_bias must be token ids in \[0, 64\)"),
        ({"allowed_token_ids": []}, "allowed_token_ids must allow a token"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids must be token ids"),
        ({"bad_words": "dog"}, "bad_words must be a list"),
        ({"bad_words": ["dog"]}, "bad_words must be token ids where there is no tokenizer"),
        ({"bad_words": [[1] * 17]}, "a bad word must have from 1 to 16 tokens"),
        ({"bad_words": [[1]] * 129}, "at most 128 sequences of tokens"),
        ({"forced_token_ids": [70]}, "forced_token_ids must be token ids"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be from 0 to 20"),
    ],
)
def test_what_cannot_be_served_is_refused(params, message, device):
    with pytest.raises(ValueError, match=message):
        oracle_engine(device).submit([1], SamplingParams(**params))
