"""docs/tutorial.md works as it is written: its files are written, its commands are run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paged.tasks.report.runs import read_run
from paged.tasks.report.trace import write_trace

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> tuple[Path, str]:
    """The folder after all of it, and what the commands printed."""
    folder = tmp_path_factory.mktemp("lab")
    for text in (*blocks("python"), *blocks("yaml")):
        path = folder / text.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    done = subprocess.run(
        ["bash", "-ex"], input="\n".join(blocks("sh")), cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return folder, done.stdout


def test_it_takes_one_file_and_one_yaml():
    assert len(blocks("python")) == len(blocks("yaml")) == 1
    assert "paged" not in blocks("python")[0]  # no import of ours, nothing to register


def test_the_policy_keeps_the_contract(lab):
    passed = re.search(r"(\d+) passed", lab[1])
    assert passed
    assert int(passed[1]) >= 3
    assert "failed" not in lab[1]


def test_simulator_and_engine_ran_the_policy(lab):
    folder, _ = lab
    for run, count in (("simulated", 60), ("generated", 3)):
        assert "_target_: mylab.patient.rank" in (folder / run / "config.yaml").read_text()
        assert json.loads((folder / run / "metrics.json").read_text())["requests"] == count


def test_the_ablation_ends_in_a_table_with_intervals(lab):
    folder, _ = lab
    jobs = json.loads((folder / "ablation" / "ablation.json").read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["done"] * 8
    text = (folder / "ablation" / "table.md").read_text()
    row = next(line for line in text.splitlines() if "| e2e_mean, s | 4 |" in line)
    assert re.search(r"scheduler=patient.*\[-?[\d.,]+, -?[\d.,]+\]", row)
    assert (folder / "ablation" / "table.tex").is_file()


def test_the_report_has_a_trace(lab):
    trace = json.loads((lab[0] / "report" / "trace.json").read_text())
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"step", "pages", "queued", "prefill", "decode"} <= names


def test_the_engine_and_its_requests_are_on_one_clock(lab):
    folder, _ = lab
    write_trace(read_run(folder / "generated"), folder / "generated.json")
    events = json.loads((folder / "generated.json").read_text())["traceEvents"]
    begins, ends = (
        [event["ts"] for event in events if event["ph"] == kind and event["name"][:7] == "request"]
        for kind in "be"
    )
    steps = [event for event in events if event["ph"] == "X"]
    assert min(begins) <= steps[0]["ts"] < steps[-1]["ts"] <= max(ends)
    assert "queued and prefill" in {event["name"] for event in events}
