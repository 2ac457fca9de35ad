"""The main job, as a user runs it: texts, a table, and a run folder; a sweep; refused prompts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paged.simulator.fitting import steps_of_run

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run over prompts of which one cannot be served."""
    folder = tmp_path_factory.mktemp("run")
    shared = "Once upon a time there was a little girl who had a red ball and a small dog. "
    prompts = [
        {"prompt": shared * 2 + "She"},
        {"prompt": ""},
        {"prompt": "The dog", "max_tokens": 2, "n": 2},
        {"prompt_token_ids": [5, 6, 7]},
    ]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, prompts)))
    done = run(
        f"workload.path={path}", "sampling.max_tokens=4", "sampling.ignore_eos=true", "seed=3",
        f"hydra.run.dir={folder}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, folder / "out"


def test_it_prints_texts_and_a_table(finished):
    done, folder = finished
    assert "The dog" in done.stdout
    for row in ("requests", "ttft", "tpot", "prefix hits", "preemptions", "peak pages"):
        assert row in done.stdout
    assert "1 refused" in done.stdout
    assert str(folder) in done.stdout


def test_the_run_folder_tells_what_ran(finished):
    _, folder = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["seed"] == 3
    assert manifest["command"][0] == "run.py"
    assert set(manifest["versions"]) >= {"paged", "torch", "triton", "transformers", "python"}
    assert {"git_commit", "git_dirty", "device", "interpreter", "started", "ended"} <= set(manifest)
    config = (folder / "config.yaml").read_text()
    assert "_target_: paged.schedulers.fcfs.rank" in config
    assert "${" not in config


def test_every_request_and_step_is_recorded(finished):
    _, folder = finished
    requests = {line["request_id"]: line for line in lines(folder / "requests.jsonl")}
    assert sorted(requests) == ["0", "1", "2", "3"]
    assert "at least one token" in requests["1"]["error"]
    assert [len(requests[name]["token_ids"]) for name in "023"] == [4, 2, 4]
    assert requests["2"]["finish_reason"] == "length"
    assert [len(one["token_ids"]) for one in requests["2"]["outputs"]] == [2, 2]
    assert requests["3"]["prompt_token_ids"] == [5, 6, 7]
    metrics = json.loads((folder / "metrics.json").read_text())
    steps = lines(folder / "steps.jsonl")
    assert metrics["steps"] == len(steps)
    assert metrics["output_tokens"] == 12
    assert metrics["prefix_hit_rate"] <= 1
    assert metrics["computed_tokens"] == sum(step["num_tokens"] for step in steps)
    served = [
        (requests[name]["prompt_token_ids"], one["token_ids"])
        for name in "023"
        for one in requests[name].get("outputs", [requests[name]])
    ]
    keys = sum(len(prompt) + drawn for prompt, out in served for drawn in range(len(out)))
    # Outputs part in front of the last token of their prompt; what is before takes its own step.
    keys += len(requests["2"]["prompt_token_ids"]) - 1
    assert sum(step["num_keys"] for step in steps) == keys
    assert len(steps_of_run(folder)) == len(steps) - 1  # a step-time model can be fitted from it
    assert metrics["requests"] == 3
    assert sum(metrics["memory_split"].values()) == pytest.approx(1)


def test_a_sweep_has_a_folder_a_run_and_one_table(tmp_path):
    done = run(
        "-m", "scheduler=fcfs,sjf", "prompt=It's one, Tom", "sampling.max_tokens=2",
        f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number, name in enumerate(("fcfs", "sjf")):
        assert f"schedulers.{name}.rank" in (tmp_path / str(number) / "config.yaml").read_text()
        assert f"scheduler={name}" in done.stdout


def test_a_prompt_that_cannot_be_served_alone_is_an_error(tmp_path):
    done = run("prompt=", f"hydra.run.dir={tmp_path}/out")
    assert done.returncode == 2
    assert "error: prompt must hold at least one token" in done.stderr
    assert "Traceback" not in done.stderr
