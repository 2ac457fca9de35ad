"""The launchers of conf/hydra compose where their plugins are installed."""

import hydra
import pytest
from omegaconf import OmegaConf

from paged.cli import config_dir

PLUGINS = {
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "SlurmLauncher"),
    "ray_gpu": ("hydra_plugins.hydra_ray_launcher", "RayLauncher"),
}


@pytest.mark.parametrize("choice", PLUGINS)
def test_a_launcher_gives_each_run_a_gpu(choice):
    module, launcher = PLUGINS[choice]
    pytest.importorskip(module)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        given = [f"hydra/launcher={choice}"]
        cfg = hydra.compose(config_name="config", overrides=given, return_hydra_config=True)
    node = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    assert node["_target_"].endswith(launcher)
    gpus = node["gpus_per_node"] if choice == "slurm" else node["ray"]["remote"]["num_gpus"]
    assert gpus == 1


def test_every_launcher_has_its_test():
    assert {path.stem for path in (config_dir() / "hydra" / "launcher").glob("*.yaml")} == {
        *PLUGINS
    }
