"""Beam search in the engine equals transformers', also under famine, prefix hits and in company.

SmolLM2 takes part where PAGED_SMOLLM2 names its GGUF file: PAGED_SMOLLM2=smollm2.gguf pytest --slow
tests/test_beam_search.py (transformers needs accelerate to read one).
"""

import os
from dataclasses import replace
from itertools import product

import pytest
import torch

from paged.beams import BeamSearchParams
from paged.intake import beam_search_output
from paged.kv.contiguous_max import reserve_len as whole_model_length
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.models.config import find_model
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.testing.engines import oracle_engine

OPENING = "Once upon a time there was a little dog named Max. Max loved to play in the park. "
PROMPTS = [OPENING + "One day", "The girl"]
NUM_TOKENS = 10
SMOLLM2 = os.environ.get("PAGED_SMOLLM2")
MODELS = [
    "stories",
    pytest.param(
        SMOLLM2,
        id="smollm2",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not SMOLLM2, reason="PAGED_SMOLLM2 names no GGUF file of SmolLM2"),
        ],
    ),
]


def make_llm(model: str = "stories", **knobs) -> LLM:
    num_pages = knobs.pop("num_pages", 600)
    rows = knobs.setdefault("max_num_seqs", 96)
    knobs = {"max_num_batched_tokens": 256, "watermark": 0.0} | knobs
    llm = LLM(
        model, dtype="float32", kv=PagedKV(page_size=16, num_pages=num_pages), max_model_len=128,
        scheduler=RankScheduler(**knobs), num_slots=rows,
    )  # fmt: skip
    llm.engine.limits = replace(llm.engine.limits, eos_ids=(0, *sentence_ends(llm)))
    return llm


def sentence_ends(llm: LLM) -> list[int]:
    """Tokens that end a sequence here, so that some end soon."""
    return sorted({llm.tokenizer.encode(f"dog{mark}")[-1] for mark in ".,"})


def search(llm: LLM, prompt: str, each: list[BeamSearchParams]):
    """Run searches of one prompt at once; [(tokens, score)] of each."""
    ids = llm.tokenizer.encode(prompt)
    requests = [llm.engine.submit_beams(ids, params) for params in each]
    while llm.engine.has_unfinished:
        llm.engine.step()
        llm.engine.kv.check(llm.engine.requests)
    llm.engine.ledger.check_empty()
    outputs = [beam_search_output(live, llm.tokenizer.decode) for live in requests]
    return [[(one.tokens, one.score) for one in output.sequences] for output in outputs]


def assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        other = [(one, two) for one, two in zip(mine, theirs, strict=True) if one[0] != two[0]]
        assert not other, other  # with their scores: a tie would be seen
        scores = [torch.tensor([score for _, score in one]) for one in (mine, theirs)]
        torch.testing.assert_close(*scores, atol=2e-4, rtol=1e-4)


@pytest.fixture
def expected(device):
    """`expected(llm, prompt, params)`: what transformers finds."""
    return finder("stories", device)


def finder(name: str, device: str):
    """`find(llm, prompt, params)`: what the model of transformers finds, [(tokens, score)]."""
    from transformers import AutoModelForCausalLM

    path = find_model(name, with_weights=True)
    given = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given).to(device)

    def find(llm: LLM, prompt: str, params: BeamSearchParams):
        ids = torch.tensor([llm.tokenizer.encode(prompt)], device=device)
        eos = list(llm.engine.limits.eos_ids)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=params.max_tokens,
            num_beams=params.beam_width, num_return_sequences=params.beam_width, do_sample=False,
            length_penalty=params.length_penalty, early_stopping=params.early_stopping,
            eos_token_id=eos, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        sequences = []
        for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist()):
            drawn = row[ids.shape[1] :]
            ends = [at for at, token in enumerate(drawn) if token in eos]
            sequences.append((row[: ids.shape[1] + (ends[0] + 1 if ends else len(drawn))], score))
        return sequences

    return find


@pytest.mark.parametrize("model", MODELS)
def test_equals_transformers(device, model):
    llm, expected = make_llm(model), finder(model, device)
    each = [
        BeamSearchParams(width, NUM_TOKENS, length_penalty=penalty, early_stopping=early)
        for width, penalty, early in product((2, 4, 8), (0.5, 1.0, 2.0), (True, False))
    ]
    found = search(llm, PROMPTS[0], each)
    assert_same(found, [expected(llm, PROMPTS[0], params) for params in each])
    drawn = [tokens for sequences in found for tokens, _ in sequences]
    ended = [tokens for tokens in drawn if tokens[-1] in llm.engine.limits.eos_ids]
    assert len(ended) > 10, "sequences that end before the limit are part of this test"


def test_famine_prefix_hits_and_company_change_nothing(device, expected):
    each = [BeamSearchParams(4, 12, length_penalty=2.0), BeamSearchParams(3, 12, ignore_eos=True)]
    plenty = search(make_llm(), PROMPTS[0], each)
    llm = make_llm(num_pages=12, max_num_seqs=12, chunk=7)
    # On a GPU the first search waits until nothing else runs, for its graphs.
    search(llm, PROMPTS[1], [BeamSearchParams(1, 1)])
    counts = {"preempted": 0, "cached": 0}

    def note(stats):
        counts["preempted"] += stats.num_preempted
        counts["cached"] += stats.cached_tokens

    llm.engine.on_step = note
    ids = llm.tokenizer.encode(PROMPTS[0])
    params = SamplingParams(n=3, temperature=0.9, seed=3, max_tokens=12, ignore_eos=True)
    company = llm.engine.submit(ids, params)
    assert_same(search(llm, PROMPTS[0], each), plenty)
    assert counts["preempted"] > 0
    assert_same(search(llm, PROMPTS[0], each), plenty)
    assert counts["cached"] > 0
    (alone,) = make_llm().generate([ids], params)
    drawn = [[one.token_ids for one in output.outputs] for output in (company.output, alone)]
    assert drawn[0] == drawn[1]


def test_texts_and_scores_of_the_offline_api(device):
    llm = make_llm(max_num_seqs=4)
    outputs = llm.beam_search(PROMPTS[1], BeamSearchParams(2, 6, ignore_eos=True))
    (output,) = outputs
    assert output.error is None
    assert [one.finish_reason for one in output.sequences] == ["length"] * 2
    best, second = output.sequences
    assert best.text.startswith(PROMPTS[1])
    assert best.tokens[:2] == llm.tokenizer.encode(PROMPTS[1])[:2]
    assert best.score > second.score
    assert best.score == pytest.approx(best.cum_logprob / 6)
    greedy = llm.generate(PROMPTS[1], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    (one_beam,) = llm.beam_search(PROMPTS[1], BeamSearchParams(1, 6, ignore_eos=True))
    assert one_beam.sequences[0].tokens[-6:] == greedy[0].outputs[0].token_ids


def test_abort_frees_all_beams(device):
    engine = oracle_engine(device)
    searches = [engine.submit_beams([token] * 20, BeamSearchParams(3, 40)) for token in (1, 2, 3)]
    for _ in range(4):
        engine.step()
    for live in searches:
        engine.abort(live.output.request_id)
    while engine.has_unfinished:
        engine.step()
        engine.kv.check(engine.requests)
    assert int((engine.pool.ref_count > 0).sum()) == 0
    engine.ledger.check_empty()
    assert not beam_search_output(searches[0], None).sequences


def test_refusals(device):
    for fields, rule in (
        ({"beam_width": 17, "max_tokens": 4}, "beam_width must be from 1 to 16"),
        ({"beam_width": 2, "max_tokens": 4, "early_stopping": "never"}, "early_stopping"),
        ({"beam_width": 2, "max_tokens": 4, "length_penalty": float("nan")}, "length_penalty"),
    ):
        with pytest.raises(ValueError, match=rule):
            BeamSearchParams(**fields)
    engine = oracle_engine(device, num_pages=6, num_slots=4, max_num_seqs=4)
    for params, rule in (
        (BeamSearchParams(5, 4), "at most num_slots"),
        (BeamSearchParams(4, 60), "4 beams need up to 20 pages"),
        (BeamSearchParams(2, 0), "max_tokens"),
    ):
        with pytest.raises(ValueError, match=rule):
            engine.submit_beams([1] * 10, params)
    kv = PagedKV(page_size=16, reserve_len=whole_model_length, prefix_caching=False)
    with pytest.raises(ValueError, match="kv=paged"):
        oracle_engine(device, kv=kv).submit_beams([1], BeamSearchParams(2, 4))
    assert not engine.has_unfinished
