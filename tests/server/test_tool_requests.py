"""What a request with tools becomes: a prompt, and a grammar of the calls that it requires."""

import json

import pytest

from paged.models.config import find_model
from paged.request import StructuredOutputsParams
from paged.server.errors import ApiError
from paged.server.grammars import output_grammar
from paged.server.prompts import PromptReader
from paged.server.protocol import ChatRequest
from paged.server.tool_formats import FORCED, FORMATS, format_named
from paged.server.tools import forced_calls, new_call_id, template_tools, tool_format
from paged.state import Sizes
from paged.tokenizer import Tokenizer, load_tokenizer

SIDE = {"$defs": {"Side": {"enum": ["a", "b"]}}, "properties": {"x": {"$ref": "#/$defs/Side"}}}
F = {"type": "function", "function": {"name": "f", "parameters": SIDE | {"required": ["x"]}}}
G = {"type": "function", "function": {"name": "g"}}
NAMED = {"type": "function", "function": {"name": "g"}}
TEMPLATE = (
    "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments.x }}{% endfor %}"
    ";{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(find_model("stories", with_weights=False))


def asking(**more) -> ChatRequest:
    return ChatRequest(messages=[{"role": "user", "content": "Hi"}], tools=[F, G], **more)


@pytest.mark.parametrize(
    ("more", "text", "accepted"),
    [
        ({"tool_choice": "required"}, '[{"name":"f","arguments":{"x":"b"}}]', True),
        ({"tool_choice": "required"}, '[{"name":"g","arguments":{}}]', True),
        ({"tool_choice": "required"}, "[]", False),
        ({"tool_choice": "required"}, '[{"name":"f","arguments":{"x":"c"}}]', False),
        ({"tool_choice": "required"}, '[{"name":"f","arguments":{}}]', False),
        ({"tool_choice": "required"}, '[{"name":"g","arguments":{"y":1}}]', False),
        ({"tool_choice": "required"}, '[{"name":"h","arguments":{}}]', False),
        ({"tool_choice": NAMED}, '[{"name":"g","arguments":{}}]', True),
        ({"tool_choice": NAMED}, '[{"name":"f","arguments":{"x":"a"}}]', False),
        (
            {"tool_choice": "required"},
            '[{"name":"g","arguments":{}},{"name":"f","arguments":{"x":"a"}}]',
            True,
        ),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            '[{"name":"g","arguments":{}},{"name":"g","arguments":{}}]',
            False,
        ),
    ],
)
def test_the_grammar_of_required_calls(tokenizer, more, text, accepted):
    pytest.importorskip("llguidance")
    from paged.structured.llguidance import LLGuidance

    wanted = StructuredOutputsParams(**output_grammar(asking(**more)))
    compiler = LLGuidance(tokenizer, len(tokenizer.hf), [tokenizer.eos_id])
    grammar = compiler.compile(wanted)
    tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_id]
    assert all(grammar.accept(token) for token in tokens) == accepted


def test_calls_of_its_own_choice_are_bound_by_nothing():
    assert forced_calls(asking()) is None
    assert output_grammar(asking(tool_choice="none")) is None
    assert tool_format(asking(), FORMATS["mistral"]) is FORMATS["mistral"]
    assert tool_format(asking(tool_choice="required"), None) is FORCED
    assert tool_format(asking(tool_choice="none"), FORMATS["hermes"]) is None
    with pytest.raises(ApiError, match="tool_parser=hermes"):
        tool_format(asking(), None)


def test_different_definitions_of_one_name_are_refused():
    other = json.loads(json.dumps(F).replace('"b"', '"c"'))
    body = ChatRequest(
        messages=[{"role": "user"}], tools=[F, other | {"type": "function"}], tool_choice="required"
    )
    with pytest.raises(ApiError, match=r"\$defs/Side"):
        forced_calls(body)


def test_the_template_hears_of_tools_and_calls(tokenizer):
    sizes = Sizes(
        num_slots=1, max_num_seqs=1, max_num_batched_tokens=16, max_model_len=1024, page_size=16,
        num_pages=64,
    )  # fmt: skip
    reader = PromptReader(tokenizer, sizes, len(tokenizer.hf), TEMPLATE)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 7}'}}
    body = ChatRequest(
        messages=[
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "done", "tool_call_id": "1"},
        ],
        tools=[F, G],
    )
    ids = reader.conversation(body.messages, tools=template_tools(body))
    assert tokenizer.decode(ids) == "<f><g>assistant: 7;tool: done;"
    assert template_tools(asking(tool_choice="none")) is None


def test_settings_name_or_describe_a_format():
    assert format_named("mistral") is FORMATS["mistral"]
    assert format_named({"begin": "<fn>", "end": "</fn>"}).end == "</fn>"
    with pytest.raises(ValueError, match="did you mean hermes"):
        format_named("hermez")
    with pytest.raises(ValueError, match="start"):
        format_named({"start": "<fn>"})
    assert len(new_call_id(FORMATS["mistral"])) == 9
