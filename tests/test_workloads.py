"""Workloads read their files, and say what is wrong with them by line."""

import pytest

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
