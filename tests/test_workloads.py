"""Workloads read their files, and say what is wrong with them by line."""

import pytest

from paged.workloads.lengths import Lengths
from paged.workloads.prompts import DEFAULT_PROMPTS, Prompts, WorkItem


def test_the_built_in_prompts():
    assert [item.prompt for item in Prompts()] == list(DEFAULT_PROMPTS)
    assert len(Prompts(limit=2)) == 2
    assert list(Prompts(prompt="Hello")) == [WorkItem("Hello")]


def test_text_and_jsonl_files(tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\ntwo, three\n")
    assert [item.prompt for item in Prompts(path=str(text))] == ["one", "two, three"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "one", "max_tokens": 3}\n{"prompt_token_ids": [1, 2]}\n')
    assert list(Prompts(path=str(lines))) == [WorkItem("one", {"max_tokens": 3}), WorkItem([1, 2])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('"text"', "line 2 must be an object with 'prompt' or 'prompt_token_ids'"),
        ('{"prompt": 3}', "line 2: prompt must be a string, got 3"),
        ('{"prompt_token_ids": ["a"]}', "prompt_token_ids must be a list of ints"),
        ('{"prompt": "a", "max_token": 3}', "line 2: no such key max_token"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"workload\.path") as caught:
        Prompts(path=str(path))
    assert message in str(caught.value)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        Prompts(path=str(path))


def test_lengths_are_as_asked_and_every_pass_is_new(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text("[[3, 2], [5, 7], [1, 1]]")
    workload = Lengths(path=str(path), limit=2, vocab_size=1000)
    first, second = list(workload), list(workload)
    assert [(len(item.prompt), item.sampling) for item in first] == [
        (3, {"max_tokens": 2}), (5, {"max_tokens": 7}),
    ]  # fmt: skip
    assert [item.prompt for item in first] != [item.prompt for item in second]
    assert first == list(Lengths(path=str(path), limit=2, vocab_size=1000))
    drawn = Lengths(num_requests=50, input_len=[3, 5], output_len=4)
    assert {len(item.prompt) for item in drawn} == {3, 4, 5}
    assert {item.sampling["max_tokens"] for item in drawn} == {4}


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot read"), ("[]", "must hold a list"), ("[[1, 2], [3]]", "entry 1 must be two"),
     ("[[0, 2]]", "entry 0 must be two lengths from 1 up")],
)  # fmt: skip
def test_files_of_lengths_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "pairs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Lengths(path=str(path))


def test_lengths_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"workload.input_len must be .* got \[5, 3\]"):
        Lengths(input_len=[5, 3])
    with pytest.raises(ValueError, match=r"workload\.output_len must be"):
        Lengths(output_len=0)
