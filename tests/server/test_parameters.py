"""Bodies to sampling parameters."""

import pytest

from paged.server.errors import ApiError
from paged.server.parameters import output_limit, sampling_params
from paged.server.protocol import ChatRequest, CompletionRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def chat(**fields) -> ChatRequest:
    return ChatRequest(messages=[{"role": "user", "content": "hi"}], **fields)


def test_every_field_arrives_by_its_name():
    given = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "min_tokens": 2, "seed": -3,
        "ignore_eos": True, "stop_token_ids": [5], "frequency_penalty": 0.5,
        "presence_penalty": -0.5, "repetition_penalty": 1.2, "bad_words": ["dog"],
        "allowed_token_ids": [1, 2], "priority": 2, "client": 4, "predicted_tokens": 6,
        "deadline": 1.5, "include_stop_str_in_output": True,
    }  # fmt: skip
    params = sampling_params(CompletionRequest(prompt="a", **given), 9, 3)
    assert {name: getattr(params, name) for name in given} == given
    assert (params.max_tokens, params.n) == (9, 3)


def test_null_and_absent_fields_are_the_engines_defaults():
    names = ("temperature", "top_p", "seed", "logit_bias", "stop", "user", "min_p")
    empty = CompletionRequest(prompt="a", **dict.fromkeys(names))
    assert sampling_params(empty, 5, 1) == sampling_params(CompletionRequest(prompt="a"), 5, 1)


def test_a_user_is_a_client_to_the_scheduler():
    users = [sampling_params(chat(user=name), 5, 1).client for name in ("ann", "bob", "ann")]
    assert users[0] == users[2] != users[1]
    assert sampling_params(chat(user="ann", client=3), 5, 1).client == 3
    assert sampling_params(chat(safety_identifier="ann"), 5, 1).client == users[0]


def test_logprobs_ask_for_the_most_probable_only_where_they_are_shown():
    assert sampling_params(chat(logprobs=True, top_logprobs=4), 5, 1).logprobs == 4
    assert sampling_params(chat(logprobs=True), 5, 1).logprobs is None
    assert sampling_params(CompletionRequest(prompt="a", logprobs=3), 5, 1).logprobs == 3


@pytest.mark.parametrize(
    ("response_format", "kind", "value"),
    [
        ({"type": "json_object"}, "json_object", True),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, "json", SCHEMA),
    ],
)
def test_a_response_format_is_a_grammar(response_format, kind, value):
    grammar = sampling_params(chat(response_format=response_format), 5, 1).structured_outputs
    assert (grammar.kind, getattr(grammar, kind)) == (kind, value)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
    ],
)
def test_a_wrong_response_format_is_refused(fields):
    with pytest.raises(ApiError, match="response_format"):
        sampling_params(chat(**fields), 5, 1)


def test_the_output_takes_what_the_prompt_leaves():
    assert output_limit(chat(), None, 60, 100) == (60, 40)
    assert output_limit(chat(truncate_prompt_tokens=10), 20, 60, 100) == (10, 20)
    assert output_limit(chat(truncate_prompt_tokens=-1), 30, 200, 100) == (70, 30)
    for asked, num_prompt in ((41, 60), (None, 100), (1, 100)):
        with pytest.raises(ApiError, match="maximum context length is 100"):
            output_limit(chat(), asked, num_prompt, 100)
