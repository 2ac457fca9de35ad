"""Every choice of `workload=` has the keys its class takes."""

import hydra
import pytest
from omegaconf import OmegaConf

from paged import build
from paged.arguments import check_arguments, parameters_of
from paged.cli import config_dir
from paged.workloads.trace import Trace

CHOICES = sorted(path.stem for path in (config_dir() / "workload").glob("[!_]*.yaml"))
PATH = {"lengths": ["workload.path=x.json"]}


def node(choice: str, *overrides: str) -> dict:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        given = [f"workload={choice}", *PATH.get(choice, []), *overrides]
        return hydra.compose(config_name="config", overrides=given).workload


@pytest.mark.parametrize("choice", CHOICES)
def test_every_key_is_one_of_the_class(choice):
    given = OmegaConf.to_container(node(choice), resolve=True)
    target = build.locate("workload", given.pop("_target_"))
    check_arguments("workload", given, parameters_of(target))


@pytest.mark.parametrize("choice", [name for name in CHOICES if name.startswith("synthetic_")])
def test_synthetic_ones_need_no_file(choice):
    trace = build.component("workload", node(choice, "workload.num_requests=20"))
    assert isinstance(trace, Trace)
    assert len(trace) == 20
    assert trace.requests[-1].arrival > 0
