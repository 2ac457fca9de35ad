"""Answers against the core of OpenAI's own specification, where its file is at hand."""

import copy
import json
from collections.abc import Callable

import pytest

from paged.workloads.trace import find_file

jsonschema = pytest.importorskip("jsonschema")

CHAT = {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 2}
TEXT = {"prompt": "Once", "max_tokens": 2, "logprobs": 1}
TOOLS = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": 40,
    "temperature": 0,
}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def nullable(schema: object) -> object:
    """The file says `nullable: true` here and there, which JSON schema has not."""
    if isinstance(schema, list):
        return [nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: nullable(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def add_completion_chunk(schemas: dict[str, dict]) -> None:
    """The type of streamed completions, which the file gives as that of whole ones: but usage is
    null until the last chunk (`ChatCompletionStreamOptions`), and a reason until there is one."""
    chunk = copy.deepcopy(schemas["CreateCompletionResponse"])
    chunk["properties"]["usage"]["nullable"] = True
    reason = chunk["properties"]["choices"]["items"]["properties"]["finish_reason"]
    reason["nullable"] = True
    schemas["CompletionChunk"] = chunk


@pytest.fixture(scope="module")
def check() -> Callable[[dict, str], None]:
    """Raises if an answer is not of the type that the specification names so."""
    try:
        path = find_file(None, "openai/openapi_core.json", "github.com/openai/openai-openapi")
    except ValueError as error:
        pytest.skip(str(error))
    specification = json.loads(path.read_text())
    add_completion_chunk(specification["components"]["schemas"])
    specification = nullable(specification)

    def validate(answer: dict, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": specification["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer)

    return validate


def test_completions(http, check):
    check(http.post("/v1/completions", json=TEXT).json(), "CreateCompletionResponse")


@pytest.mark.parametrize(
    "more", [{"logprobs": True, "top_logprobs": 1}, pytest.param(TOOLS, marks=pytest.mark.slow)]
)
def test_chats(http, check, more):
    made = http.post("/v1/chat/completions", json=CHAT | more).json()
    assert ("tool_calls" in made["choices"][0]["message"]) == (more is TOOLS)
    check(made, "CreateChatCompletionResponse")


@pytest.mark.parametrize("more", [{}, {"n": 2, "prompt": ["Once", "The"], "logprobs": None}])
def test_completion_streams(http, check, more):
    events = streamed(http, "/v1/completions", TEXT | more)
    for event in events:
        check(event, "CompletionChunk")
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
    assert reasons.count("length") == (4 if more else 1)
    assert [event["usage"] is None for event in events] == [True] * (len(events) - 1) + [False]


@pytest.mark.parametrize("more", [{"logprobs": True}, pytest.param(TOOLS, marks=pytest.mark.slow)])
def test_chat_streams(http, check, more):
    for event in streamed(http, "/v1/chat/completions", CHAT | more):
        check(event, "CreateChatCompletionStreamResponse")


def streamed(http, path: str, body: dict) -> list[dict]:
    with http.stream("POST", path, json=body | STREAM) as stream:
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def test_models_and_errors(http, check):
    check(http.get("/v1/models").json(), "ListModelsResponse")
    check(http.get("/v1/models/stories").json(), "Model")
    check(http.post("/v1/completions", json={}).json(), "ErrorResponse")
    check(http.get("/v1/models/none").json(), "ErrorResponse")
