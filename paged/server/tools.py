"""Tools of a chat request: what the template is told, and what a model that must call may write."""

import json
import secrets
import string
from typing import Any

from paged.server.errors import ApiError
from paged.server.protocol import ChatRequest, MessageToolCall, NamedToolChoice, Tool
from paged.server.tool_formats import FORCED, ToolFormat

NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_format(body: ChatRequest, form: ToolFormat | None) -> ToolFormat | None:
    """How to read the answer; None if it can hold no calls. `form` is that of the model's family.

    Raises ApiError if the request asks for what cannot be had.
    """
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise ApiError("tool_choice needs tools", param="tool_choice")
        return None
    if choice == "none":
        return None
    if choice == "required" or isinstance(choice, NamedToolChoice):
        chosen_tools(body)
        return FORCED
    if form is None:
        raise ApiError(
            "tool_choice: auto needs to know how this model writes calls, and its chat template "
            "does not tell; start the server with tool_parser=hermes, llama3_json or mistral, or "
            "ask for tool_choice required, a named function, or none",
            param="tool_choice",
            code="unsupported_parameter",
        )
    return form


def template_tools(body: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools that the chat template is told of."""
    if not body.tools or body.tool_choice == "none":
        return None
    return [tool.model_dump(exclude_none=True) for tool in body.tools]


def chosen_tools(body: ChatRequest) -> list[Tool]:
    """The tools of which one must be called."""
    tools, choice = body.tools or [], body.tool_choice
    if not isinstance(choice, NamedToolChoice):
        return tools
    chosen = [tool for tool in tools if tool.function.name == choice.function.name]
    if not chosen:
        raise ApiError(
            f"tool_choice names {choice.function.name!r}, which is none of the tools",
            param="tool_choice",
        )
    return chosen[:1]


def forced_calls(body: ChatRequest) -> dict[str, Any] | None:
    """JSON schema of the calls that the answer must consist of; None if it need not.

    Definitions that parameters refer to (`#/$defs/...`) move to the top of the schema.
    """
    named = isinstance(body.tool_choice, NamedToolChoice)
    if not body.tools or not (named or body.tool_choice == "required"):
        return None
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for tool in chosen_tools(body):
        parameters = dict(tool.function.parameters or NOTHING)
        if parameters.setdefault("type", "object") != "object":
            raise ApiError(
                f"tools: parameters of {tool.function.name!r} must be of type object, got "
                f"{parameters['type']!r}",
                param="tools",
            )
        for name, definition in parameters.pop("$defs", {}).items():
            if definitions.setdefault(name, definition) != definition:
                raise ApiError(f"tools: two of them define $defs/{name} differently", param="tools")
        properties = {"name": {"const": tool.function.name}, "arguments": parameters}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    schema: dict[str, Any] = {"type": "array", "items": one, "minItems": 1}
    if named or body.parallel_tool_calls is False:
        schema["maxItems"] = 1
    return schema | ({"$defs": definitions} if definitions else {})


def new_call_id(form: ToolFormat) -> str:
    if form.short_ids:
        alphabet = string.ascii_letters + string.digits
        return "".join(secrets.choice(alphabet) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


def plain_tool_call(call: MessageToolCall) -> dict[str, Any]:
    """A call of the history as chat templates take it: its arguments as a dictionary."""
    plain = call.model_dump()
    arguments: object = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise ApiError(
                f"messages: arguments of the call of {call.function.name!r} must be a JSON object",
                param="messages",
            )
    plain["function"]["arguments"] = arguments
    return plain
