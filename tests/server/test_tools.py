"""Tool calls through the openai client.

The embedded model follows no instructions, so an answer by its own choice is a recorded one, which
`forced_token_ids` replays; required calls are its own, bound by the grammar.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.server.conftest import KEY

F = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/Side"}},
            "required": ["x"],
            "additionalProperties": False,
            "$defs": {"Side": {"enum": ["a", "b"]}},
        },
    },
}
G = {"type": "function", "function": {"name": "g"}}
WRONG = {"type": "object", "properties": {"x": {"type": 5}}}
NAMED = {"type": "function", "function": {"name": "f"}}
SETTINGS = {
    "model": "stories",
    "messages": [{"role": "user", "content": "Once"}],
    "tools": [F, G],
    "max_tokens": 60,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def written(http) -> dict[str, list[int]]:
    """An answer with a call, as tokens to replay; 0 ends it."""
    text = 'Hm<tool_call>{"name":"f","arguments":{"x":"a"}}</tool_call>'
    body = {"prompt": text, "add_special_tokens": False}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    return {"forced_token_ids": [*tokens, 0]}


@pytest.fixture(scope="module")
def answers(client, server, written) -> dict:
    """Answers to all ways to ask, asked for at once, so that they share the engine's steps."""
    create = client.chat.completions.create

    async def in_async_stream() -> list:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as other:
            made = await other.chat.completions.create(
                stream=True, tool_choice="required", parallel_tool_calls=False, **SETTINGS
            )
            return [chunk async for chunk in made]

    asked = {
        "auto": lambda: create(extra_body=written, **SETTINGS),
        "auto stream": lambda: list(create(extra_body=written, stream=True, **SETTINGS)),
        "named": lambda: create(tool_choice=NAMED, **SETTINGS),
        "required stream": lambda: asyncio.run(in_async_stream()),
    }
    with ThreadPoolExecutor(len(asked)) as threads:
        futures = {name: threads.submit(ask) for name, ask in asked.items()}
    return {name: future.result() for name, future in futures.items()}


def joined(chunks: list) -> tuple[str, dict[int, list], str]:
    """(content, {index: [id, name, arguments]}, finish reason) of a stream."""
    content, calls, reason = "", {}, ""
    for chunk in chunks:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for piece in choice.delta.tool_calls or ():
            if piece.id is not None:
                assert piece.index == len(calls)
                assert piece.type == "function"
                calls[piece.index] = [piece.id, piece.function.name, ""]
            calls[piece.index][2] += piece.function.arguments
    return content, calls, reason


def test_a_call_by_the_models_own_choice(answers):
    choice = answers["auto"].choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Hm")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "f")
    assert json.loads(call.function.arguments) == {"x": "a"}
    assert call.id.startswith("call_")


def test_a_stream_has_the_name_first_and_then_the_arguments(answers):
    chunks = answers["auto stream"]
    content, calls, reason = joined(chunks)
    assert (content, reason) == ("Hm", "tool_calls")
    assert [call[1:] for call in calls.values()] == [["f", '{"x":"a"}']]
    assert sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks) > 2


def test_a_named_function_is_called(answers):
    choice = answers["named"].choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert call.function.name == "f"
    assert json.loads(call.function.arguments)["x"] in ("a", "b")


def test_a_required_call_streams(answers):
    content, calls, reason = joined(answers["required stream"])
    assert (content, reason, len(calls)) == ("", "tool_calls", 1)
    _, name, arguments = calls[0]
    assert name in ("f", "g")
    assert set(json.loads(arguments)) == ({"x"} if name == "f" else set())


def test_results_of_calls_go_into_the_prompt(client, http):
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    history = [
        {"role": "user", "content": "Once"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "upon a time"},
    ]
    settings = {"model": "stories", "max_tokens": 1, "temperature": 0, "tools": [F]}
    made = client.chat.completions.create(messages=history, tool_choice="none", **settings)
    shown = http.post("/tokenize", json={"messages": history}).json()["count"]
    assert made.usage.prompt_tokens == shown
    assert made.choices[0].message.tool_calls is None
    history[1]["tool_calls"][0]["function"]["arguments"] = "{"
    with pytest.raises(openai.BadRequestError, match="must be a JSON object"):
        client.chat.completions.create(messages=history, tool_choice="none", **settings)


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"tool_choice": "required", "tools": []}, "tool_choice", "needs tools"),
        ({"tool_choice": "sometimes"}, "tool_choice", "'none', 'auto' or 'required'"),
        (
            {"tool_choice": NAMED | {"function": {"name": "h"}}},
            "tool_choice",
            "none of the tools",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "pattern"),
        (
            {"tools": [F, F | {"function": F["function"] | {"parameters": {"type": "array"}}}],
             "tool_choice": "required"},
            "tools",
            "must be of type object",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": WRONG}}],
             "tool_choice": "required", "stream": True},
            "tool_choice",
            "structured_outputs.json",
        ),
        ({"response_format": {"type": "json_object"}}, "response_format", "tool_choice none"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(http, change, param, message):
    answer = http.post("/v1/chat/completions", json=SETTINGS | change)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
