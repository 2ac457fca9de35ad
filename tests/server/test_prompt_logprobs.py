"""Log-probabilities of prompts: `echo` with `logprobs`, and vLLM's `prompt_logprobs`."""

import pytest

PROMPT = "Once upon a time"
SETTINGS = {"model": "stories", "temperature": 0}


@pytest.fixture(scope="module")
def drawn(client, http) -> tuple[list[int], list[float], list[int]]:
    """(prompt and greedy continuation, the continuation's logprobs, the prompt alone)."""
    prompt = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    made = client.completions.create(prompt=prompt, max_tokens=4, logprobs=0, **SETTINGS)
    text = made.choices[0].text
    tokens = http.post(
        "/tokenize", json={"prompt": PROMPT + text, "add_special_tokens": True}
    ).json()["tokens"]
    assert tokens[: len(prompt)] == prompt
    assert len(tokens) == len(prompt) + 4
    return tokens, made.choices[0].logprobs.token_logprobs, prompt


def test_a_prompts_logprobs_are_those_its_tokens_were_drawn_with(client, drawn):
    """As lm-eval's local-completions asks: token ids, a token to generate, the top one."""
    tokens, logprobs, prompt = drawn
    other = [*prompt[:-1], tokens[-1]]
    made = client.completions.create(
        prompt=[tokens, other], max_tokens=1, logprobs=1, echo=True, seed=1234, **SETTINGS
    )
    first, second = (choice.logprobs for choice in made.choices)
    assert first.token_logprobs[0] is None
    assert first.top_logprobs[0] is None
    assert first.token_logprobs[len(prompt) : -1] == pytest.approx(logprobs, abs=1e-5)
    assert len(first.tokens) == len(tokens) + 1
    for own, top in zip(first.token_logprobs[len(prompt) :], first.top_logprobs[len(prompt) :]):
        assert own == max(top.values())  # greedy
    assert second.token_logprobs[len(other) - 1] < max(
        second.top_logprobs[len(other) - 1].values()
    )  # another token was the most probable one
    assert made.choices[0].text.startswith(PROMPT)
    assert first.text_offset == sorted(first.text_offset)
    assert made.usage.completion_tokens == 2


def test_only_the_prompt(client, drawn):
    tokens, _, _ = drawn
    settings = SETTINGS | {"echo": True, "logprobs": 2, "prompt": tokens}
    more = client.completions.create(max_tokens=1, **settings)
    only = client.completions.create(max_tokens=0, **settings)
    assert only.choices[0].logprobs.token_logprobs == more.choices[0].logprobs.token_logprobs[:-1]
    assert only.choices[0].logprobs.top_logprobs == more.choices[0].logprobs.top_logprobs[:-1]
    assert (only.usage.completion_tokens, only.choices[0].finish_reason) == (0, "length")
    assert more.choices[0].text.startswith(only.choices[0].text)


def test_a_cached_prompt_has_its_logprobs_all_the_same(client):
    prompt = [5 + i for i in range(17)]
    client.completions.create(prompt=prompt, max_tokens=1, **SETTINGS)  # a page is cached
    made = client.completions.create(prompt=prompt, max_tokens=0, echo=True, logprobs=0, **SETTINGS)
    assert len(made.choices[0].logprobs.token_logprobs) == 17
    assert made.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_begins_with_the_prompt(client, drawn):
    tokens, logprobs, prompt = drawn
    chunks = list(
        client.completions.create(
            prompt=prompt, max_tokens=4, logprobs=1, echo=True, stream=True, **SETTINGS
        )
    )
    first = chunks[0].choices[0]
    assert first.text.startswith(PROMPT)
    assert first.logprobs.token_logprobs[0] is None
    shown = [value for chunk in chunks for value in chunk.choices[0].logprobs.token_logprobs]
    assert shown[len(prompt) :] == pytest.approx(logprobs, abs=1e-5)
    offsets = [value for chunk in chunks for value in chunk.choices[0].logprobs.text_offset]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(tokens)


def test_samples_share_the_prompts_logprobs(client):
    made = client.completions.create(
        model="stories", prompt=PROMPT, max_tokens=2, n=2, seed=3, echo=True, logprobs=0
    )
    first, second = (choice.logprobs for choice in made.choices)
    assert first.token_logprobs[:-2] == second.token_logprobs[:-2]


def test_vllms_prompt_logprobs(client, drawn):
    tokens, logprobs, _ = drawn
    made = client.completions.create(
        prompt=tokens, max_tokens=1, extra_body={"prompt_logprobs": 1}, **SETTINGS
    )
    known = made.choices[0].prompt_logprobs
    assert (len(known), known[0]) == (len(tokens), None)
    for token, logprob, found in zip(tokens[-4:], logprobs, known[-4:]):
        own = found[str(token)]
        assert (own["rank"], own["logprob"]) == (1, pytest.approx(logprob, abs=1e-5))
    assert made.choices[0].logprobs is None
    chat = client.chat.completions.create(
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=1,
        extra_body={"prompt_logprobs": 0},
        **SETTINGS,
    )
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens
    assert len(chat.prompt_logprobs[1]) == 1
