"""A researcher's own package, in a folder of its own, reaches the engine in three ways."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

POLICY = """
    import triton


    @triton.jit
    def rank(row, now, weight):
        return row.prompt_len * weight - row.arrival
"""
CHOICE = """
    _target_: mylab.longest.rank
    weight: -1
    max_num_seqs: 4
"""
PLUGIN = """
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.plugins.search_path_plugin import SearchPathPlugin


    class MyLab(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            search_path.append("mylab", "pkg://mylab.conf")
"""
SHOW = """
    import sys
    import hydra
    from paged import build
    from paged.cli import config_dir


    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def show(cfg):
        scheduler = build.component("scheduler", cfg.scheduler)
        print(scheduler.rank_function.fn.__module__, scheduler.args, scheduler.max_num_seqs)


    show()
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder on the researcher's disk: package mylab with a policy and its YAML."""
    write(tmp_path / "mylab" / "__init__.py", "")
    write(tmp_path / "mylab" / "longest.py", POLICY)
    write(tmp_path / "mylab" / "conf" / "__init__.py", "")
    write(tmp_path / "mylab" / "conf" / "scheduler" / "longest.yaml", CHOICE)
    write(tmp_path / "show.py", SHOW)
    return tmp_path


def python(folder: Path, *command: str) -> str:
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root])}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def show(folder: Path, *overrides: str) -> list[str]:
    return python(folder, "show.py", f"hydra.run.dir={folder}/out", *overrides).split(maxsplit=1)


def test_by_target_alone(lab):
    target = "scheduler._target_=mylab.longest.rank"
    module, rest = show(lab, target, "+scheduler.weight=-2", "scheduler.max_num_seqs=5")
    assert (module, rest.strip()) == ("mylab.longest", "(-2,) 5")


def test_by_search_path(lab):
    module, rest = show(lab, "hydra.searchpath=[pkg://mylab.conf]", "scheduler=longest")
    assert (module, rest.strip()) == ("mylab.longest", "(-1,) 4")


def test_by_an_installed_plugin(lab):
    write(lab / "hydra_plugins" / "mylab_plugin.py", PLUGIN)
    module, rest = show(lab, "scheduler=longest")
    assert (module, rest.strip()) == ("mylab.longest", "(-1,) 4")


def test_an_outside_policy_serves_requests(lab):
    run = Path(__file__).parents[1] / "run.py"
    out = python(
        lab, str(run), "scheduler._target_=mylab.longest.rank", "+scheduler.weight=-1",
        "prompt=Once upon a time", "sampling.max_tokens=3", f"hydra.run.dir={lab}/out",
    )  # fmt: skip
    assert "Once upon a time" in out
    assert (lab / "out" / "metrics.json").is_file()
