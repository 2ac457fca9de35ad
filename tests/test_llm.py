"""The whole engine on the embedded model: equal to transformers, and equal to itself however run.

On a GPU 16 prompts and 64 tokens, and log-probabilities to the bit in every precision; in the
interpreter fewer of both, and tokens only: its matrix products are BLAS calls, whose rounding
depends on the tile.
"""

import pytest
import torch

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.models.config import find_model
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler

ON_GPU = torch.cuda.is_available()
NUM_PROMPTS, NUM_TOKENS = (16, 64) if ON_GPU else (4, 10)
OPENING = "Once upon a time there was a little dog named Max. Max loved to play in the park. "
PROMPTS = [
    OPENING + "One day", OPENING + "His friend Lily", "The girl", "Tom and his mother went to",
    "Once upon a time", OPENING, "The old bear was", "A", "In the garden there was a small",
    "It was raining and Mia could not", OPENING + "One day he found a", "The sun", "Ben had a red",
    "Every night the moon", "The cat and the bird", "Sara was sad because",
][:NUM_PROMPTS]  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


def make_llm(dtype="float32", *, kv=None, **knobs) -> LLM:
    knobs = {"max_num_seqs": 16, "max_num_batched_tokens": 256} | knobs
    kv = {"num_pages": 512, "page_size": 16} | (kv or {})
    return LLM(
        dtype=dtype,
        kv=PagedKV(**kv),
        scheduler=RankScheduler(**knobs),
        max_model_len=256,
        num_slots=32,
    )


def answers(llm: LLM, params=GREEDY) -> list[tuple[list[int], list[float]]]:
    outputs = [request.outputs[0] for request in llm.generate(PROMPTS, params)]
    return [(output.token_ids, output.logprobs if ON_GPU else []) for output in outputs]


@pytest.fixture(scope="module")
def expected():
    """Answers of a plain run, by precision."""
    known: dict[str, list] = {}

    def get(dtype: str):
        if dtype not in known:
            known[dtype] = answers(make_llm(dtype))
        return known[dtype]

    return get


def precisions():
    return ["float32", "bfloat16", "float16"] if ON_GPU else ["float32"]


VARIANTS = {
    "chunks_of_1": {"chunk": 1},
    "chunks_of_7": {"chunk": 7},
    "chunks_of_64": {"chunk": 64},
    "two_at_a_time": {"max_num_seqs": 2},
    "small_budget": {"max_num_batched_tokens": 24},
    "no_prefix_cache": {"kv": {"prefix_caching": False}},
    "page_32": {"kv": {"page_size": 32}},
    "page_64": {"kv": {"page_size": 64}},
    "page_128": {"kv": {"page_size": 128}},
}


@pytest.mark.parametrize("precision", precisions())
@pytest.mark.parametrize(
    "variant",
    [pytest.param(one, marks=[pytest.mark.slow] * (one == "chunks_of_1")) for one in VARIANTS],
)
def test_answers_do_not_depend_on_how_they_are_served(device, expected, variant, precision):
    assert answers(make_llm(precision, **VARIANTS[variant])) == expected(precision)


@pytest.mark.parametrize("precision", precisions())
def test_answers_survive_famine(device, expected, precision):
    pages = 24 if ON_GPU else 6
    llm = make_llm(precision, kv={"num_pages": pages}, watermark=0.0)
    preempted = []
    llm.engine.on_step = lambda stats: preempted.append(stats.num_preempted)
    assert answers(llm) == expected(precision)
    assert sum(preempted) > 0
    llm.engine.kv.check(llm.engine.requests)


@pytest.mark.parametrize("precision", precisions())
def test_a_warm_prefix_cache_changes_nothing_but_the_work(device, expected, precision):
    llm = make_llm(precision)
    assert answers(llm) == expected(precision)
    again = llm.generate(PROMPTS, GREEDY)
    assert sum(request.metrics.num_cached_tokens for request in again) > 0
    assert [request.outputs[0].token_ids for request in again] == [
        tokens for tokens, _ in expected(precision)
    ]
    if ON_GPU:
        assert [request.outputs[0].logprobs for request in again] == [
            logprobs for _, logprobs in expected(precision)
        ]


def test_equal_to_transformers(device, expected):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_model("stories", with_weights=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    for prompt, (tokens, _) in zip(PROMPTS, expected("float32")):
        ids = tokenizer(prompt, return_tensors="pt").input_ids.to(device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )
        assert out[0, ids.shape[1] :].tolist() == tokens, prompt


def test_draws_do_not_depend_on_the_batch(device):
    params = [SamplingParams(temperature=0.8, top_p=0.9, max_tokens=8, seed=s) for s in range(3)]
    together = make_llm().generate(PROMPTS[:3], params)
    alone = make_llm(max_num_seqs=1).generate(PROMPTS[2], params[2])[0]
    assert alone.outputs[0].token_ids == together[2].outputs[0].token_ids
    again = make_llm().generate(PROMPTS[:3], params)
    assert [r.outputs[0].text for r in again] == [r.outputs[0].text for r in together]


def test_stream_chat_and_refusals(device):
    llm = make_llm()
    text = ""
    for update in llm.stream("Once upon a time", SamplingParams(temperature=0, max_tokens=6)):
        assert update.outputs[0].text.startswith(text)
        text = update.outputs[0].text
    assert update.finished
    assert text
    for prompts, message in (
        ("", "at least one token"),
        ([PROMPTS[0], [1, 10**6]], "vocabulary"),
        ([1] * 300, "shorter than max_model_len"),
    ):
        with pytest.raises(ValueError, match=message):
            llm.generate(prompts, SamplingParams(max_tokens=2))
    assert not llm.engine.has_unfinished
    with pytest.raises(ValueError, match="temperature"):
        SamplingParams(temperature=-1)
    with pytest.raises(ValueError, match="one or as many"):
        llm.generate(PROMPTS[:3], [GREEDY])
