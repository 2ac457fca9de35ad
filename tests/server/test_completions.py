"""/v1/completions through the openai client."""

import asyncio

import openai
import pytest

from tests.server.conftest import KEY

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def greedy(client) -> str:
    """What the model continues PROMPT with."""
    made = client.completions.create(model="stories", prompt=PROMPT, max_tokens=4, temperature=0)
    assert made.choices[0].finish_reason == "length"
    assert (made.usage.completion_tokens, made.object) == (4, "text_completion")
    return made.choices[0].text


@pytest.mark.slow
def test_the_text_is_the_engines(greedy):
    from paged.llm import LLM
    from paged.request import SamplingParams
    from paged.schedulers.base import RankScheduler

    llm = LLM("stories", scheduler=RankScheduler(max_num_seqs=1, max_num_batched_tokens=32))
    output = llm.generate(PROMPT, SamplingParams(max_tokens=4, temperature=0))[0]
    assert greedy == output.outputs[0].text


def test_a_stream_joins_to_the_text(client, greedy):
    chunks = list(
        client.completions.create(
            model="stories",
            prompt=PROMPT,
            max_tokens=4,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == greedy
    assert len(chunks) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 4
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert len({chunk.id for chunk in chunks}) == 1


def test_continuous_usage_counts_up(client):
    chunks = client.completions.create(
        model="stories",
        prompt=PROMPT,
        max_tokens=3,
        stream=True,
        extra_body={"stream_options": {"continuous_usage_stats": True}, "ignore_eos": True},
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_async_clients_share_a_batch(server, greedy):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:

            async def one(stream: bool) -> str:
                made = await client.completions.create(
                    model="stories", prompt=PROMPT, max_tokens=4, temperature=0, stream=stream
                )
                if not stream:
                    return made.choices[0].text
                return "".join([chunk.choices[0].text async for chunk in made])

            return await asyncio.gather(*(one(stream) for stream in (False, True, False, True)))

    assert asyncio.run(run()) == [greedy] * 4


def test_batches_of_texts_and_ids_keep_their_order(client, http, greedy):
    other = "The little dog"
    tokens = [
        http.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in (other, PROMPT)
    ]
    settings = {"model": "stories", "max_tokens": 4, "temperature": 0}
    texts = client.completions.create(prompt=[other, PROMPT], **settings)
    ids = client.completions.create(prompt=tokens, **settings)
    assert [choice.index for choice in texts.choices] == [0, 1]
    assert [choice.text for choice in texts.choices] == [choice.text for choice in ids.choices]
    assert ids.choices[1].text == greedy
    assert ids.usage.prompt_tokens == sum(map(len, tokens))
    assert client.completions.create(prompt=tokens[1], **settings).choices[0].text == greedy


def test_n_samples_have_seeds_of_their_own(client):
    settings = {"model": "stories", "prompt": PROMPT, "max_tokens": 3, "temperature": 1.5}
    first = client.completions.create(n=5, seed=7, **settings)
    again = client.completions.create(n=5, seed=7, **settings)
    alone = client.completions.create(seed=7, **settings)
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) > 1
    assert texts == [choice.text for choice in again.choices]
    assert texts[0] == alone.choices[0].text
    assert first.usage.prompt_tokens == alone.usage.prompt_tokens
    assert first.usage.completion_tokens == 15


def test_best_of_shows_the_samples_with_the_best_mean_logprob(client):
    settings = {"model": "stories", "max_tokens": 3, "temperature": 1.5, "seed": 7}
    settings |= {"prompt": [PROMPT, "The little dog"], "logprobs": 0}
    drawn = client.completions.create(n=4, **settings).choices
    made = client.completions.create(n=2, best_of=4, **settings)

    def mean(choice) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    best = [sorted(drawn[first : first + 4], key=mean, reverse=True)[:2] for first in (0, 4)]
    assert [choice.text for choice in made.choices] == [one.text for two in best for one in two]
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert made.usage.completion_tokens == 8 * 3


def test_greedy_samples_are_equal(client, greedy):
    made = client.completions.create(
        model="stories", prompt=PROMPT, max_tokens=2, temperature=0, n=2
    )
    assert len({choice.text for choice in made.choices}) == 1
    assert greedy.startswith(made.choices[0].text)


def test_parameters_reach_the_engine(client, http, greedy):
    token = http.post("/tokenize", json={"prompt": " dog"}).json()["tokens"][-1]
    settings = {"model": "stories", "prompt": PROMPT, "max_tokens": 2, "temperature": 0}
    for name, value in (
        ("logit_bias", {str(token): 100}),
        ("allowed_token_ids", [token]),
        ("forced_token_ids", [token, token]),
    ):
        made = client.completions.create(extra_body={name: value}, **settings)
        assert (
            made.choices[0].text
            == http.post("/detokenize", json={"tokens": [token, token]}).json()["prompt"]
        )
    banned = client.completions.create(extra_body={"bad_words": [greedy.split()[1]]}, **settings)
    assert banned.choices[0].text != greedy


def test_a_stop_string_across_tokens_ends_the_text(client, greedy):
    stop = greedy[3:9]
    assert " " in stop.strip()  # more than one token
    settings = {"model": "stories", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    made = client.completions.create(stop=[stop, "zebra"], **settings)
    assert made.choices[0].text == greedy[: greedy.find(stop)]
    assert made.choices[0].finish_reason == "stop"
    assert made.choices[0].stop_reason == stop
    assert made.usage.completion_tokens < 4
    chunks = client.completions.create(
        stop=stop, stream=True, extra_body={"include_stop_str_in_output": True}, **settings
    )
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == greedy[: greedy.find(stop) + len(stop)]


def test_echo_and_logprobs(client, greedy):
    settings = {"model": "stories", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    stream = client.completions.create(echo=True, stream=True, **settings)
    assert "".join(chunk.choices[0].text for chunk in stream) == PROMPT + greedy
    only = client.completions.create(echo=True, **(settings | {"max_tokens": 0}))
    assert (only.choices[0].text, only.usage.completion_tokens) == (PROMPT, 0)

    logprobs = client.completions.create(logprobs=0, **settings).choices[0].logprobs
    assert "".join(logprobs.tokens) == greedy
    assert all(value <= 0 for value in logprobs.token_logprobs)
    assert [list(top.values()) for top in logprobs.top_logprobs] == [
        [value] for value in logprobs.token_logprobs
    ]
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]
    chunks = list(client.completions.create(logprobs=2, stream=True, **settings))
    streamed = [token for chunk in chunks for token in chunk.choices[0].logprobs.tokens]
    assert streamed == logprobs.tokens
    for chunk in chunks:
        for token, top in zip(
            chunk.choices[0].logprobs.tokens, chunk.choices[0].logprobs.top_logprobs
        ):
            assert len(top) == 2
            assert max(top, key=top.get) == token  # greedy


def test_cached_tokens_are_reported(client, http):
    http.post("/debug/reset_prefix_cache")
    prompt = [[5 + i for i in range(40)]]
    settings = {"model": "stories", "prompt": prompt, "max_tokens": 1, "temperature": 0}
    cached = [
        client.completions.create(**settings).usage.prompt_tokens_details.cached_tokens
        for _ in range(2)
    ]
    assert cached == [0, 32]
    assert http.post("/debug/reset_prefix_cache").json()["evicted_pages"] >= 2
    usage = client.completions.create(**settings).usage
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_truncated_prompts_keep_their_end(client):
    settings = {"model": "stories", "max_tokens": 3, "temperature": 0}
    made = client.completions.create(
        prompt=list(range(10, 40)), extra_body={"truncate_prompt_tokens": 4}, **settings
    )
    short = client.completions.create(prompt=list(range(36, 40)), **settings)
    assert made.usage.prompt_tokens == 4
    assert made.choices[0].text == short.choices[0].text
