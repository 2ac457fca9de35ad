"""/v1/chat/completions through the openai client. The embedded model's template joins contents."""

import openai
import pytest

SETTINGS = {
    "model": "stories",
    "messages": [{"role": "user", "content": "Once upon a time"}],
    "max_completion_tokens": 5,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def answer(client) -> str:
    made = client.chat.completions.create(**SETTINGS)
    assert made.choices[0].message.role == "assistant"
    assert (made.choices[0].finish_reason, made.usage.completion_tokens) == ("length", 5)
    return made.choices[0].message.content


def test_a_chat_is_its_template_completed(client, answer):
    made = client.completions.create(
        model="stories", prompt="Once upon a time", max_tokens=5, temperature=0
    )
    assert answer == made.choices[0].text


def test_a_stream_begins_with_the_role_and_joins(client, answer):
    chunks = list(client.chat.completions.create(stream=True, **SETTINGS))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_clients_stream_helper_works(client, answer):
    with client.chat.completions.stream(**SETTINGS) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
    assert "".join(pieces) == answer


def test_parts_of_text_are_one_content(client, answer):
    parts = [{"type": "text", "text": "Once upon a time"}]
    made = client.chat.completions.create(
        **(SETTINGS | {"messages": [{"role": "user", "content": parts}]})
    )
    assert made.choices[0].message.content == answer


def test_logprobs_carry_bytes(client, answer):
    made = client.chat.completions.create(logprobs=True, top_logprobs=2, **SETTINGS)
    content = made.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer
    assert "".join(token.token for token in content) == answer
    for token in content:  # greedy: the drawn token is the most probable
        first, second = token.top_logprobs
        assert (first.token, first.logprob) == (token.token, token.logprob)
        assert second.logprob <= first.logprob <= 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f", "parameters": {}}]),
        ("response_format", {"type": "xml"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("prompt_cache_retention", "24h"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(client, field, value):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**SETTINGS, **{field: value})
    assert refused.value.param == field
    assert field in refused.value.message


def test_neutral_values_pass(client, answer):
    made = client.chat.completions.create(
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        store=False,
        user="someone",
        prompt_cache_key="a key",
        safety_identifier="someone",
        extra_body={"prompt_cache_retention": "in_memory"},
        **SETTINGS,
    )
    assert made.choices[0].message.content == answer


def test_images_are_refused(client):
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(openai.BadRequestError, match="only text parts"):
        client.chat.completions.create(
            model="stories", messages=[{"role": "user", "content": [part]}]
        )
