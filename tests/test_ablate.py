"""Ablations: what they run and in which order, on which GPU, and what becomes of failures."""

import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from paged import build, cli
from paged.tasks.ablate.grid import Job, arms_over, folder_name, plan, words
from paged.tasks.ablate.jobs import Runner, finished
from paged.tasks.ablate.task import passed_on, run_all, visible_gpus
from paged.tasks.report.runs import arms_of, find_runs

ARMS = [("x=1",), ("x=2",), ("x=3",)]
# Stands for `python -m paged`: writes a run folder, or fails as its arm asks.
CHILD = """
    import json, os, sys, time
    from pathlib import Path

    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder = Path(arguments["hydra.run.dir"].strip("'"))
    if arguments["x"] == "refused":
        print("error: x: no choice 'refused'")
        sys.exit(2)
    if arguments["x"] == "broken" or arguments.get("y") == "broken":
        raise KeyError("broken")
    began = time.time()
    time.sleep(60 if arguments["x"] == "slow" else 0.2)
    manifest = {"overrides": sys.argv[1:-1], "seed": int(arguments["seed"]), "status": "done"}
    manifest["span"] = (began, time.time())
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HYDRA_FULL_ERROR"):
        manifest[name] = os.environ.get(name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.json").write_text(json.dumps({"x": 1.5}))
"""


@pytest.fixture
def command(tmp_path) -> list[str]:
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    return [sys.executable, str(script)]


def test_arms_are_every_combination():
    arms = arms_over("scheduler=fcfs,sjf kv.page_size=16,64 seed2='[1,2]'", build.choices)
    assert arms == [
        (f"scheduler={scheduler}", f"kv.page_size={size}", "seed2=[1,2]")
        for scheduler in ("fcfs", "sjf")
        for size in (16, 64)
    ]
    assert arms_over("a=range(1,4)", build.choices) == [("a=1",), ("a=2",), ("a=3",)]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("scheduler=fcfs", "expected choices to compare"),
        ("scheduler", "expected overrides like scheduler=fcfs, got 'scheduler'"),
        ("scheduler='fcfs", "does not read as overrides"),
        ("scheduler=fcfs,fcfs", "appears twice"),
    ],
)
def test_an_axis_must_be_one(over, message):
    with pytest.raises(ValueError, match=message):
        arms_over(over, build.choices)


def test_all_arms_of_a_seed_run_beside_each_other(tmp_path):
    jobs = plan(["task=simulate"], ARMS, [7, 8], tmp_path)
    assert [(job.arm, job.seed) for job in jobs] == [
        (("x=1",), 7), (("x=2",), 7), (("x=3",), 7), (("x=2",), 8), (("x=3",), 8), (("x=1",), 8),
    ]  # fmt: skip
    assert jobs[0].overrides == ("task=simulate", "x=1", "seed=7")
    assert len({job.folder for job in jobs}) == 6


def test_arms_have_folders_of_their_own():
    assert folder_name(["scheduler=fcfs", "kv.page_size=16"]) == "scheduler=fcfs,kv.page_size=16"
    assert folder_name(["a=x/y"]) != folder_name(["a=x_y"])
    assert len(folder_name(["a=" + "x" * 300])) < 120


def test_what_is_not_ours_goes_to_every_run():
    overrides = ["task=ablate", "task.over='x=1,2'", "seed=3", "workload=azure", "+a=b"]
    searchpath = "hydra.searchpath=[pkg://mylab.conf]"
    manifest = {"overrides": overrides, "command": ["paged", "ablate", searchpath, "seed=3"]}
    assert passed_on(manifest) == [searchpath, "workload=azure", "+a=b"]


def test_texts_pass_through_the_command_line():
    over = "scheduler=fcfs,sjf kv.page_size=16,64"
    arguments = cli.task_arguments("ablate", [f"over={over}", "seeds=3", "out=a=b,c"])
    assert arguments == [
        "task=ablate",
        f"task.over={over}",
        "task.seeds=3",
        "hydra.run.dir='a=b,c'",
    ]
    assert cli.quote_text(arguments[1]) == f"task.over='{over}'"


def test_a_report_takes_folders_whatever_their_names(tmp_path):
    folder = tmp_path / "scheduler=fcfs" / "0"
    folder.mkdir(parents=True)
    arguments = cli.task_arguments("report", ["traces=2", "outputs/a", str(folder)])
    assert arguments == ["task=report", f"task.runs=['outputs/a','{folder}']", "task.traces=2"]


def test_a_failure_is_recorded_and_the_others_go_on(tmp_path, command):
    jobs = plan([], [("x=1",), ("x=refused",), ("x=broken",)], [0, 1], tmp_path / "out")
    outcomes = {
        (outcome.job.arm[0], outcome.job.seed): outcome
        for outcome in Runner(command=command).run(jobs)
    }
    assert all(outcomes["x=1", seed].run.metrics == {"x": 1.5} for seed in (0, 1))
    assert outcomes["x=refused", 0].error == "x: no choice 'refused'"
    assert outcomes["x=refused", 1].error == "not run: x: no choice 'refused'"
    assert not outcomes["x=refused", 1].job.log.exists()
    for seed in (0, 1):  # this one may not fail for every seed, so it is tried
        assert outcomes["x=broken", seed].error == "KeyError: 'broken'"


def test_what_has_a_result_is_not_run_again(tmp_path, command):
    runner = Runner(command=command)
    runner.run(plan([], ARMS[:2], [0], tmp_path))
    began = []
    outcomes = runner.run(plan([], ARMS, [0, 1], tmp_path), began.append)
    assert {job.name for job in began} == {
        "x=3, seed 0", "x=2, seed 1", "x=3, seed 1", "x=1, seed 1",
    }  # fmt: skip
    assert all(outcome.run is not None for outcome in outcomes)
    assert [outcome.seconds == 0 for outcome in outcomes] == [True, True, *[False] * 4]
    assert finished(plan(["y=1"], ARMS, [0], tmp_path)[0]) is None  # another configuration


def test_a_failure_does_not_pass_for_the_result_of_an_older_run(tmp_path, command):
    runner = Runner(command=command)
    (before,) = runner.run(plan([], ARMS[:1], [0], tmp_path))
    (after,) = runner.run(plan(["y=broken"], ARMS[:1], [0], tmp_path))
    assert before.job.folder == after.job.folder
    assert before.run is not None
    assert after.run is None


def test_each_run_at_once_has_a_gpu_of_its_own(tmp_path, command, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcomes = Runner(["3", "5"], 2, command=command).run(plan([], ARMS, [0, 1], tmp_path))
    runs = [outcome.run.manifest for outcome in outcomes]
    assert {run["CUDA_VISIBLE_DEVICES"] for run in runs} == {"3", "5"}
    assert all(int(run["OMP_NUM_THREADS"]) >= 1 for run in runs)
    assert all(run["HYDRA_FULL_ERROR"] is None for run in runs)
    for gpu in ("3", "5"):
        spans = sorted(run["span"] for run in runs if run["CUDA_VISIBLE_DEVICES"] == gpu)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_two_runs_never_share_a_gpu(monkeypatch):
    with pytest.raises(ValueError, match=r"jobs=3 runs would share 2 GPUs.*gpus=\[\]"):
        Runner(["0", "1"], 3)
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        Runner([], 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f")
    assert visible_gpus() == ["2", "GPU-8f"]


def test_a_run_that_takes_too_long_is_ended(tmp_path, command):
    jobs = plan([], [("x=slow",), ("x=1",)], [0], tmp_path)
    slow, quick = Runner(timeout=3, command=command).run(jobs)
    assert slow.error == "took more than timeout=3 seconds"
    assert slow.seconds < 30
    assert quick.run is not None


def test_an_interrupt_ends_what_runs(tmp_path, command):
    started = []

    def interrupt(outcome):
        raise KeyboardInterrupt

    runner = Runner(jobs=2, command=command)
    jobs = plan([], [("x=1",), ("x=slow",), ("x=2",)], [0, 1], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runner.run(jobs, started.append, interrupt)
    assert len(started) < len(jobs)
    assert not runner._running


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """A real one: two schedulers in the simulator, at once."""
    folder = tmp_path_factory.mktemp("ablation") / "out=1"
    over = "over=scheduler=fcfs,sjf_oracle"
    # Every seed has a workload of its own, by a key that names it.
    base = (
        "base=task=simulate workload=synthetic_alpaca workload.num_requests=30 workload.rate=500 "
        "workload.num_clients=${seed}"
    )
    arguments = [base, over, "seeds=[3]", "jobs=2", "gpus=[]", "scheduler.max_num_seqs=4"]
    command = [sys.executable, "-m", "paged", "ablate", *arguments, f"out={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done, folder


def test_a_whole_ablation(ablation):
    done, folder = ablation
    jobs = json.loads((folder / "ablation.json").read_text())["jobs"]
    assert [(job["arm"], job["seed"], job["status"]) for job in jobs] == [
        (["scheduler=fcfs"], 3, "done"),
        (["scheduler=sjf_oracle"], 3, "done"),
    ]
    for job in jobs:
        config = (Path(job["folder"]) / "config.yaml").read_text()
        assert "max_num_seqs: 4" in config
        assert f"\nseed: {job['seed']}\n" in config
    text = (folder / "table.md").read_text()
    assert "| scheduler=sjf_oracle | e2e_mean, s | 1 |" in text
    assert "scheduler=sjf_oracle" in done.stdout


def test_arms_of_a_seed_get_the_same_requests(ablation):
    _, folder = ablation

    def arrivals(arm: str) -> list[tuple]:
        lines = (folder / "runs" / f"scheduler={arm}" / "3" / "requests.jsonl").open()
        fields = ("request_id", "arrival_time", "prompt_len", "output_len")
        return sorted(tuple(json.loads(line)[field] for field in fields) for line in lines)

    assert len(arrivals("fcfs")) == 30
    assert arrivals("fcfs") == arrivals("sjf_oracle")


def test_runs_are_known_by_what_was_typed(ablation):
    _, folder = ablation
    jobs = json.loads((folder / "ablation.json").read_text())["jobs"]
    for one in jobs:
        job = Job(tuple(one["arm"]), one["seed"], tuple(one["overrides"]), Path(one["folder"]))
        assert "workload.num_clients=${seed}" in job.overrides
        assert finished(job) is not None
        assert "num_clients: 3" in (job.folder / "config.yaml").read_text()
    arms = arms_of(find_runs([folder / "runs"]))
    assert {arm.name for arm in arms} == {"scheduler=fcfs", "scheduler=sjf_oracle"}


def test_the_bar_counts_the_runs_and_names_failures(tmp_path, command):
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    jobs = plan([], [("x=1",), ("x=broken",), ("x=2",)], [0], tmp_path)
    outcomes = run_all(Runner(command=command), jobs, screen)
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", screen.file.getvalue())
    assert "3/3" in shown
    assert "x=2, seed 0" in shown
    assert "failed: x=broken, seed 0: KeyError: 'broken'" in shown
    assert [outcome.run is None for outcome in outcomes] == [False, True, False]


def test_words_are_split_as_by_a_shell():
    assert words("base", shlex.join(["a=b c", "d=[1,2]"])) == ["a=b c", "d=[1,2]"]
