"""What a user sees who asks for something wrong: one line, exit code 2, and no run folder."""

import socket

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from paged import cli


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the arguments, which must be refused; returns the line on stderr."""

    def run(*arguments: str) -> str:
        folder = tmp_path / "out"
        assert cli.run([*arguments, f"hydra.run.dir={folder}"]) == 2
        assert not folder.exists()
        lines = [line for line in capsys.readouterr().err.splitlines() if "interpreter" not in line]
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scheduler=nope"], "scheduler: no choice 'nope' (one of edf, fcfs, hrrn"),
        (["model=storys"], "model: no choice 'storys'; did you mean stories?"),
        (["schedulr=fcfs"], "schedulr: no such key; did you mean scheduler?"),
        (["scheduler.max_seqs=3"], "scheduler.max_seqs: no such key; did you mean max_num_seqs?"),
        (["scheduler.max_num_seqs=banana"], "scheduler.max_num_seqs: expected int, got 'banana'"),
        (["sampling.temperature=-1"], "temperature must be 0 (greedy) or a positive"),
        (["sampling.max_tokens=ten"], "sampling.max_tokens: expected int or null, got 'ten'"),
        (["workload.path=no/such.txt"], "workload.path: cannot read no/such.txt"),
        (["workload.path=a.txt", "prompt=b"], "workload.path and prompt cannot both be given"),
        (["nonsense"], "'nonsense'"),
        (["task._target_=paged.nothing.run"], "task._target_: cannot import"),
    ],
)
def test_wrong_arguments_end_in_one_line(refused, arguments, message):
    assert message in refused(*arguments)


def test_full_error_shows_where(monkeypatch, tmp_path):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="banana"):
        cli.run(["scheduler.max_num_seqs=banana", f"hydra.run.dir={tmp_path}"])


@pytest.mark.parametrize(
    "text",
    ["Once upon a time", "It's late, Tom: come!", "a\\", "quo\\'te", "${x} $y", "a=b=[c", "", "#1"],
)
def test_any_prompt_passes_through_the_grammar(text):
    override = OverridesParser.create().parse_override(cli.quote_text(f"prompt={text}"))
    assert override.value() == text.replace("${", "\\${")  # OmegaConf takes the backslash away


def test_quoted_prompts_and_other_arguments_are_left_alone():
    for argument in (
        "prompt='a, b'", "prompt=null", "scheduler=sjf", "-m", "kv.page_size=16,32",
        "task.api_key=[one,two]",
    ):  # fmt: skip
        assert cli.quote_text(argument) == argument


def test_keys_are_texts_whatever_they_look_like():
    assert cli.quote_text("task.api_key=123") == "task.api_key='123'"
    assert cli.quote_text("task.api_key=a=b") == "task.api_key='a=b'"


def test_the_console_command_alone_prints_help(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["paged"])
    cli.main()
    assert "paged generate" in capsys.readouterr().out


def test_a_task_needs_no_prefix_for_its_settings(tmp_path):
    arguments = ["port=9", "model=facebook/opt-125m", "kv=paged", "seed=3", "-m", "model=gpt2"]
    assert cli.task_arguments("serve", arguments) == [
        "task=serve",
        "task.port=9",
        "model.path=facebook/opt-125m",
        *arguments[2:],
    ]
    assert cli.task_arguments("serve", [f"model={tmp_path}"])[1] == f"model.path={tmp_path}"


def test_settings_of_a_task_may_be_spelled_as_options():
    arguments = ["--api-key", "a=b", "--port=9", "--model", "facebook/opt-125m", "--multirun"]
    assert cli.task_arguments("serve", [*arguments, "seed=3", "--host"]) == [
        "task=serve",
        "task.api_key=a=b",
        "task.port=9",
        "model.path=facebook/opt-125m",
        "--multirun",
        "seed=3",
        "task.host=",
    ]


def test_a_port_that_is_taken_is_one_line(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"task.port: cannot listen on 127.0.0.1:{port}" in refused(
            "task=serve", f"task.port={port}"
        )
