"""Answers that must follow a grammar, by every name clients have for it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import openai
import pydantic
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
COMPACT = {"structured_outputs": {"disable_any_whitespace": True}}
SETTINGS = {"model": "stories", "max_tokens": 40, "temperature": 0}
CHAT = SETTINGS | {"messages": [{"role": "user", "content": "Once"}]}


class Answer(pydantic.BaseModel):
    a: Literal["x", "y"]
    b: bool


@pytest.fixture(scope="module")
def answers(client, http) -> dict:
    """All asked for at once, so that they share the engine's steps."""
    body = {"prompt": "}", "add_special_tokens": False}
    (brace,) = http.post("/tokenize", json=body).json()["tokens"]
    strict = {"name": "answer", "strict": True, "schema": SCHEMA}

    def chat(**more) -> str:
        choice = client.chat.completions.create(**CHAT, **more).choices[0]
        assert choice.finish_reason == "stop"
        return choice.message.content

    def text(**more) -> str:
        made = client.completions.create(prompt="Once", extra_body=more, **SETTINGS)
        assert made.choices[0].finish_reason == "stop"
        return made.choices[0].text

    asked = {
        "schema": lambda: chat(
            response_format={"type": "json_schema", "json_schema": strict}, extra_body=COMPACT
        ),
        "parse": lambda: client.chat.completions.parse(
            response_format=Answer, extra_body=COMPACT, **CHAT
        ),
        "object": lambda: chat(
            response_format={"type": "json_object"}, logit_bias={str(brace): 100}
        ),
        "guided_json": lambda: text(guided_json=SCHEMA, **COMPACT),
        "guided_regex": lambda: text(guided_regex="[0-9]{2}-[a-c]"),
        "guided_choice": lambda: text(guided_choice=["zebra", "yak"]),
        "guided_grammar": lambda: text(guided_grammar='start: "no" | "yes"'),
        "regex": lambda: text(structured_outputs={"regex": "x[0-9]"}),
    }
    with ThreadPoolExecutor(4) as threads:
        futures = {name: threads.submit(ask) for name, ask in asked.items()}
    return {name: future.result() for name, future in futures.items()}


@pytest.mark.parametrize("name", ["schema", "guided_json"])
def test_json_follows_its_schema(answers, name):
    Answer.model_validate_json(answers[name], strict=True)
    assert " " not in answers[name]


def test_the_clients_parse_helper_works(answers):
    assert isinstance(answers["parse"].choices[0].message.parsed, Answer)


def test_a_json_object_is_one(answers):
    assert isinstance(json.loads(answers["object"]), dict)


def test_guided_answers(answers):
    assert re.fullmatch("[0-9]{2}-[a-c]", answers["guided_regex"])
    assert re.fullmatch("x[0-9]", answers["regex"])
    assert answers["guided_choice"] in ("zebra", "yak")
    assert answers["guided_grammar"] in ("no", "yes")


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"guided_regex": "("}, "guided_regex", "structured_outputs.regex"),
        ({"guided_choice": []}, "guided_choice", "must hold a string"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex", "together"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml", "unknown parameter"),
        (COMPACT, "structured_outputs", "needs a grammar"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_grammar_is_refused_before_anything_runs(client, more, param, message, stream):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(prompt="Once", extra_body=more, stream=stream, **SETTINGS)
    assert refused.value.param == param
    assert message in refused.value.message
