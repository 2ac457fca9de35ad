"""Answers of each family to content and calls, cut anywhere."""

import json
import random

import pytest

from paged.server.tool_formats import FORCED, FORMATS, format_of_template
from paged.server.tool_parser import ToolParser

HERMES, LLAMA, MISTRAL = FORMATS["hermes"], FORMATS["llama3_json"], FORMATS["mistral"]
TRICKY = '{"a": "}]</tool_call>\\"{", "b": [1, {"c": null}]}'
CASES = {
    "text only": (HERMES, "Hello <tool> you", "Hello <tool> you", []),
    "space stays": (HERMES, "\n Hello \n", "\n Hello \n", []),
    "one": (
        HERMES,
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
        "",
        [("f", '{"x": 1}')],
    ),
    "text in front, two, text behind": (
        HERMES,
        'Let me see.\n<tool_call>{"name":"f","arguments":{}}</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": ' + TRICKY + "}\n</tool_call>\nDone",
        "Let me see.\n\nDone",
        [("f", "{}"), ("g", TRICKY)],
    ),
    "keys the other way round": (
        HERMES,
        '<tool_call>{"arguments": {"x": "\\u00e9"}, "name": "f"}</tool_call>',
        "",
        [("f", '{"x": "\\u00e9"}')],
    ),
    "arguments as a string": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        "",
        [("f", '{"x": 1}')],
    ),
    "not a call": (
        HERMES,
        'a <tool_call> {"x": 1}</tool_call> b',
        'a <tool_call> {"x": 1}</tool_call> b',
        [],
    ),
    "cut before the name": (HERMES, '<tool_call>{"name": "f', '<tool_call>{"name": "f', []),
    "cut in the arguments": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"x": [1, ',
        "",
        [("f", '{"x": [1, ')],
    ),
    "cut in the end": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {}}</tool',
        "",
        [("f", "{}")],
    ),
    "bare": (LLAMA, '{"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
    "bare, two": (
        LLAMA,
        '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"y": "z"}}',
        "",
        [("f", "{}"), ("g", '{"y": "z"}')],
    ),
    "python tag": (
        LLAMA,
        '<|python_tag|>{"name": "f", "parameters": {}}',
        "",
        [("f", "{}")],
    ),
    "JSON that is no call": (LLAMA, ' {"x": [1, 2]} yes', ' {"x": [1, 2]} yes', []),
    "a list that is no call": (LLAMA, "[1, 2] yes", "[1, 2] yes", []),
    "braces later": (LLAMA, 'Say {"name": "f"}', 'Say {"name": "f"}', []),
    "list": (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]',
        "",
        [("f", '{"x": 1}'), ("g", "{}")],
    ),
    "name in front": (
        MISTRAL,
        'Well.[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]get_it{"y": 2}',
        "Well.",
        [("f", '{"x": 1}'), ("get_it", '{"y": 2}')],
    ),
    "an empty list": (MISTRAL, "[TOOL_CALLS] []", "[TOOL_CALLS] []", []),
    "forced": (
        FORCED,
        '[{"name":"f","arguments":{"x":1}},{"name":"g","arguments":{}}]',
        "",
        [("f", '{"x":1}'), ("g", "{}")],
    ),
}  # fmt: skip


def read(form, pieces, parallel=True) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolParser(form, parallel=parallel)
    content, calls = "", []
    for text, found in [*(parser.feed(piece) for piece in pieces), parser.finish()]:
        content += text
        for piece in found:
            assert (piece.name is not None) == (piece.index == len(calls))
            if piece.name is not None:
                calls.append((piece.name, piece.arguments))
            else:
                calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
    return content, calls


@pytest.mark.parametrize("case", CASES)
def test_any_cut_gives_the_same_content_and_calls(case):
    form, text, content, calls = CASES[case]
    assert read(form, [text]) == (content, calls)
    assert read(form, list(text)) == (content, calls)
    draw = random.Random(0)
    for _ in range(200):
        cuts = sorted(draw.sample(range(len(text)), k=min(4, len(text))))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        assert read(form, pieces) == (content, calls), pieces


def test_a_name_goes_out_before_its_arguments_end():
    parser = ToolParser(HERMES)
    assert parser.feed("Hm <tool_") == ("Hm ", [])
    _, pieces = parser.feed('call>{"name": "f", "arguments": {')
    assert [(piece.name, piece.arguments) for piece in pieces] == [("f", ""), (None, "{")]
    _, pieces = parser.feed('"x": "ab')
    assert [piece.arguments for piece in pieces] == ['"x": "ab']


def test_without_parallel_calls_the_first_remains():
    form, text, content, calls = CASES["list"]
    assert read(form, [text], parallel=False) == (content, calls[:1])


def test_arguments_that_were_read_are_json():
    for _, _, _, calls in CASES.values():
        for _, arguments in calls:
            if arguments.endswith("}"):
                assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ '<tool_call>' }}", HERMES),
        ("... Environment: ipython ...", LLAMA),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", MISTRAL),
        ("<tool_call>\n<function=f>", None),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_a_template_tells_its_format(template, form):
    assert format_of_template(template) is form
