"""How families of models write tool calls.

A call is a JSON object of a name and its arguments, between marks of the family.
"""

from dataclasses import dataclass
from typing import Any

from paged.arguments import did_you_mean


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes calls.

    Args:
        begin: in front of calls; "" if nothing is.
        end: behind them; "" if nothing is.
        bare: an answer that begins with a brace or a bracket is a call, without `begin`.
        named_in_front: a call may be its name followed by its arguments.
        short_ids: ids of calls must have 9 letters and digits: the family's template insists.
    """

    begin: str
    end: str = ""
    bare: bool = False
    named_in_front: bool = False
    short_ids: bool = False


FORMATS = {
    "hermes": ToolFormat("<tool_call>", "</tool_call>"),  # and Qwen
    "llama3_json": ToolFormat("<|python_tag|>", bare=True),
    "mistral": ToolFormat("[TOOL_CALLS]", named_in_front=True, short_ids=True),
}
# What the server has a model write that must call: a JSON list of calls, by a grammar.
FORCED = ToolFormat("", bare=True)


def format_named(setting: str | dict[str, Any] | None) -> ToolFormat | None:
    """The format that the setting `tool_parser` names, or describes by the fields of ToolFormat.

    Raises ValueError if there is no such format or field.
    """
    if setting is None:
        return None
    if isinstance(setting, str):
        if setting not in FORMATS:
            raise ValueError(
                f"task.tool_parser must name a format, or be a dictionary with begin and end, "
                f"got {setting!r}{did_you_mean(setting, FORMATS)}"
            )
        return FORMATS[setting]
    try:
        return ToolFormat(**setting)
    except TypeError as error:
        raise ValueError(f"task.tool_parser: {error}") from error


def format_of_template(template: object) -> ToolFormat | None:
    """The format that a chat template teaches its model; None if it is none of ours."""
    text = str(template or "")
    if "[TOOL_CALLS]" in text:
        return FORMATS["mistral"]
    if "<tool_call>" in text and "<function=" not in text:
        return FORMATS["hermes"]
    if "<|python_tag|>" in text or "Environment: ipython" in text:
        return FORMATS["llama3_json"]
    return None
