"""Errors in OpenAI's shape, with the right status."""

import json

import openai
import pytest

from tests.server.conftest import KEY

GOOD = {"model": "stories", "prompt": "Once", "max_tokens": 1}


DEEP: dict = {}
for _ in range(200):
    DEEP = {"a": DEEP}


def refused(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0, got -1"),
        ({"temperature": "hot"}, "temperature", "valid number, got 'hot'"),
        ({"max_tokens": "3"}, "max_tokens", "valid integer"),
        ({"top_p": 0}, "top_p", "top_p must be in (0, 1], got 0"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 100, "prompt": ["a", "b"]}, "n", "128 choices at most"),
        ({"prompt": []}, "prompt", "at least one token"),
        ({"prompt": [[]]}, "prompt", "at least one token"),
        ({"prompt": [2**30]}, "prompt", "the vocabulary"),
        ({"prompt": [-1]}, "prompt", "prompt.0: Input should be greater than or equal to 0"),
        ({"prompt": None}, "prompt", "got None"),
        ({"stop": ["", "a"]}, "stop", "must not be empty"),
        ({"logit_bias": {"five": 3}}, "logit_bias", "keys must be token ids"),
        ({"logit_bias": {"99999": 3}}, "logit_bias", "99999"),
        ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "must allow a token"),
        ({"best_of": 2, "n": 3}, "best_of", "must be at least n (3)"),
        ({"best_of": 3, "stream": True}, "best_of", "needs stream=false"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logprobs": 1, "echo": True, "stream": True, "n": 2}, "echo", "needs n=1"),
        ({"suffix": "end"}, "suffix", "not supported"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "needs stream=false"),
        ({"temprature": 1}, "temprature", "unknown parameter; did you mean temperature?"),
        ({"prompt": "\ud800"}, "prompt", "no character"),
        ({"stop": ["a", "\udfff"]}, "stop", "no character"),
        ({"user": "\ud800"}, "user", "no character"),
        ({"guided_json": DEEP}, "guided_json", "nested more than 100 levels"),
        ({"guided_json": "{"}, "guided_json", "structured_outputs.json"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream=true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown parameter"),
        ({"min_tokens": 5}, "min_tokens", "at most max_tokens"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must be positive"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(http, change, param, message):
    body = json.dumps(GOOD | change)  # in ASCII: half characters come through
    kind = {"Content-Type": "application/json"}
    error = refused(http.post("/v1/completions", content=body, headers=kind), 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert message in error["message"]


@pytest.mark.parametrize("max_tokens", [1024, 1020])
def test_too_long_a_context_is_refused(http, max_tokens):
    error = refused(
        http.post("/v1/completions", json=GOOD | {"prompt": [9] * 20, "max_tokens": max_tokens}),
        400,
    )
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 1024" in error["message"]


def test_a_hopelessly_long_text_is_not_tokenized(http):
    error = refused(http.post("/v1/completions", json=GOOD | {"prompt": "a" * 90_000}), 400)
    assert error["code"] == "context_length_exceeded"
    assert "90000 characters" in error["message"]


def test_a_large_body_is_refused_however_it_is_sent(http):
    body = b'{"prompt": "' + b"a" * 100_001 + b'"}'
    assert refused(http.post("/v1/completions", content=body), 413)["code"] == "body_too_large"

    def pieces():
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    assert refused(http.post("/v1/completions", content=pieces()), 413)


def test_several_faults_are_named_with_their_places(http):
    tool = {"type": "function", "function": {}}
    body = {"messages": [{"role": "user", "content": 3}], "tools": [tool], "x": 1}
    error = refused(http.post("/v1/chat/completions", json=body), 400)
    assert "messages.0.content: Input should be a valid string or " in error["message"]
    assert "valid list, got 3; tools.0.function.name: Field required; " in error["message"]
    assert "x: unknown parameter" in error["message"]
    assert (error["param"], error["code"]) == ("messages", "unknown_parameter")


@pytest.mark.parametrize(("content", "kind"), [(json.dumps(GOOD), "text/plain"), ("[]", None)])
def test_a_body_that_is_no_object_is_told_how_to_be_sent(http, content, kind):
    kind = {"Content-Type": kind or "application/json"}
    error = refused(http.post("/v1/completions", content=content, headers=kind), 400)
    assert "sent with Content-Type: application/json" in error["message"]


def test_broken_json_is_said_to_be(http):
    answer = http.post(
        "/v1/completions", content=b"{", headers={"Content-Type": "application/json"}
    )
    assert refused(answer, 400)["code"] == "invalid_json"


def test_paths_methods_and_models_that_are_not_there(http, client):
    assert "/v1/nothing: Not Found; see /docs" in refused(http.get("/v1/nothing"), 404)["message"]
    assert "GET /v1/completions" in refused(http.get("/v1/completions"), 405)["message"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(**(GOOD | {"model": "gpt-9"}))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    refused(http.get("/v1/models/gpt-9"), 404)
    refused(http.get("/v1/models/%ff"), 404)


def test_a_key_is_asked_for_but_by_probes(http, server):
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    for path in ("/v1/models", "/debug/state"):
        answer = http.get(path, headers={"Authorization": ""})
        assert refused(answer, 401)["code"] == "invalid_api_key"
    for path in ("/health", "/version", "/metrics"):
        assert http.get(path, headers={"Authorization": ""}).status_code == 200
    assert http.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200


def test_a_full_queue_says_when_to_come_back(http, until):
    nine = GOOD | {"prompt": ["Once"] * 9}  # 4 run, 4 may wait
    error = refused(http.post("/v1/completions", json=nine), 400)
    assert "takes 8 at most" in error["message"]
    many = {"prompt": ["Once"] * 7, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=many) as stream:
        lines = stream.iter_lines()  # held: a dropped iterator closes the connection
        assert next(lines).startswith("data: ")
        answer = http.post("/v1/completions", json=GOOD | {"n": 2})
    error = refused(answer, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert int(answer.headers["Retry-After"]) >= 1
    state = until(lambda state: not state["slots"] and not state["queue"])
    assert state["pages"]["in_use"] == 0
