"""What an answer must be, from all the ways to ask for it, as one grammar of the engine's."""

from typing import Any

from paged.server.errors import ApiError
from paged.server.protocol import ChatRequest, Generate
from paged.server.tools import forced_calls

# vLLM's older names, and what they are in structured_outputs.
GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
COMPACT = "disable_any_whitespace"  # goes with any way to ask for JSON


def output_grammar(body: Generate) -> dict[str, Any] | None:
    """Arguments of StructuredOutputsParams; None if the answer may be anything.

    Raises ApiError if the request asks for it in two ways.
    """
    asked, options = _asked(body)
    if len(asked) > 1:
        raise ApiError(
            f"{' and '.join(asked)} cannot be given together: each says what the answer must be",
            param=next(iter(asked)),
        )
    if not asked:
        if options:
            raise ApiError(f"structured_outputs.{COMPACT} needs a grammar or a response_format",
                           param="structured_outputs")  # fmt: skip
        return None
    return options | next(iter(asked.values()))


def grammar_field(body: Generate) -> str | None:
    """The field of the request that asks for a grammar."""
    return next(iter(_asked(body)[0]), None)


def _asked(body: Generate) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """({field: the grammar it asks for}, options of all of them)."""
    asked: dict[str, dict[str, Any]] = {}
    options: dict[str, Any] = {}
    if body.structured_outputs is not None:
        given = body.structured_outputs.model_dump(by_alias=True, exclude_none=True)
        options = {COMPACT: given.pop(COMPACT)} if COMPACT in given else {}
        if given:
            asked["structured_outputs"] = given
    for name, kind in GUIDED.items():
        value = getattr(body, name)
        if value is not None:
            asked[name] = {kind: value}
    if isinstance(body, ChatRequest):
        if (wanted := _response_format(body.response_format)) is not None:
            asked["response_format"] = wanted
        if (schema := forced_calls(body)) is not None:
            asked["tool_choice"] = {"json": schema, COMPACT: True}
        elif body.tools and body.tool_choice != "none" and asked:
            name = next(iter(asked))
            raise ApiError(f"{name}: with tools it needs tool_choice none, got auto", param=name)
    return asked, options


def _response_format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = (given or {"type": "text"}).get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    described = given.get("json_schema")
    if kind == "json_schema" and isinstance(described, dict):
        schema = described.get("schema")
        if isinstance(schema, dict):
            return {"json": schema}
    raise ApiError(
        "response_format must be of type text, json_object or json_schema (with "
        f"json_schema.schema), got {given!r}",
        param="response_format",
    )
