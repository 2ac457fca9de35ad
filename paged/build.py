"""From a composed configuration to objects. With the command line, the only importer of Hydra.

A component's node names its `_target_`: a class, or a policy function that the group's ready class
wraps (`scheduler._target_=paged.schedulers.fcfs.rank` builds `RankScheduler(rank, ...)`). The other
keys are arguments. A policy function's parameters after the standard ones may be given by name.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from paged.arguments import check_arguments, parameters_of
from paged.eviction.base import ScoreEviction
from paged.kernels.launch import interpreted
from paged.kv.compression.base import ScoreCompression
from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.request import SamplingParams
from paged.samplers.base import ScoreSampler
from paged.schedulers.base import RankScheduler
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder

# group: (class that makes a component of a function, its parameter for it, what the engine passes)
WRAPPERS: dict[str, tuple[type, str, int]] = {
    "scheduler": (RankScheduler, "rank", 2),
    "eviction": (ScoreEviction, "score", 2),
    "kv": (PagedKV, "reserve_len", 3),
    "sampler": (ScoreSampler, "score", 3),
    "kv.compression": (ScoreCompression, "score", 1),
}

SIMULATION = "paged.tasks.simulate.simulate"
GROUPS = ("scheduler", "kv", "eviction", "attention", "sampler", "proposer")  # the engine's parts


def gpu_or_cpu(gpu: Any, cpu: Any, *, _root_: DictConfig) -> Any:
    """Sizes that suit a GPU would make the CPU interpreter crawl: ${gpu_or_cpu:256,16}.

    A simulation has the sizes of the GPU that it simulates.
    """
    simulated = OmegaConf.select(_root_, "task._target_") == SIMULATION
    return cpu if interpreted() and not simulated else gpu


def pages_of(tokens: int, *, _root_: DictConfig) -> int:
    """So many tokens in pages of any size: ${pages_of:8192}."""
    return max(1, int(tokens) // int(OmegaConf.select(_root_, "kv.page_size")))


OmegaConf.register_new_resolver("gpu_or_cpu", gpu_or_cpu, replace=True)
OmegaConf.register_new_resolver("pages_of", pages_of, replace=True)


def locate(path: str, target: object) -> Callable:
    """The class or function that a dotted `_target_` names."""
    if not isinstance(target, str) or "." not in target:
        raise ValueError(
            f"{path}._target_: expected a dotted name like mylab.sjf.rank, got {target!r}"
        )
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}._target_: cannot import {module_name!r} ({error}); is it on PYTHONPATH?"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(
            f"{path}._target_: module {module_name!r} has no class or function {name!r}"
        )
    return found


def component(group: str, node: DictConfig | dict[str, Any]) -> Any:
    """Build what `node` describes, after checking every key against the target's signature."""
    given = dict(node) if isinstance(node, dict) else _plain(group, node)
    for inner in [key for key in given if f"{group}.{key}" in WRAPPERS]:
        part = given.pop(inner)
        if part:  # the choice `none` is empty
            given[inner] = component(f"{group}.{inner}", part)
    target = locate(group, given.pop("_target_", None))
    if inspect.isclass(target) or group not in WRAPPERS:
        return _made(group, target, given)
    wrapper, parameter, num_passed = WRAPPERS[group]
    knobs = parameters_of(wrapper)
    function = knobs.pop(parameter)
    takes_args = knobs.pop("args", None) is not None
    own = list(parameters_of(getattr(target, "fn", target)).items())[num_passed:]
    accepted = check_arguments(group, given, knobs | dict(own))
    if own and not takes_args:
        raise ValueError(f"{group}._target_: {parameter} functions take no arguments of their own")
    values = tuple(accepted.pop(name, param.default) for name, param in own)
    return wrapper(**{function.name: target}, **({"args": values} if own else {}), **accepted)


def _made(path: str, target: Callable, given: dict[str, Any]) -> Any:
    """What the class makes of its arguments; a function among them comes as its dotted name."""
    parameters = parameters_of(target)
    arguments = check_arguments(path, given, parameters)
    for name, value in arguments.items():
        if parameters[name].annotation is Callable and isinstance(value, str):
            arguments[name] = locate(f"{path}.{name}", value)
    return target(**arguments)


def logits_processor(given: str | dict[str, Any]) -> Any:
    """A dotted name, or a node with `_target_` and arguments: a function, or a class's object."""
    node = {"_target_": given} if isinstance(given, str) else dict(given)
    target = locate("logits_processors", node.pop("_target_", None))
    if inspect.isclass(target):
        return _made("logits_processors", target, node)
    if node:
        raise ValueError(
            f"logits_processors: a function takes no arguments, got {', '.join(node)}; a class does"
        )
    return target


def model_settings(
    *, path: str, load: str = "auto", dtype: str = "auto", max_model_len: int | None = None
) -> dict[str, Any]:
    """The `model` group as arguments of `LLM`; this signature is its schema."""
    return {"model": path, "load": load, "dtype": dtype, "max_model_len": max_model_len}


def engine_settings(
    *,
    seed: int = 0,
    device: str | None = None,
    engine: str = "auto",
    num_slots: int | None = None,
    logits_processors: Sequence[str | dict[str, Any]] = (),
    grammars: str = "paged.structured.llguidance.LLGuidance",
) -> dict[str, Any]:
    """The engine's top-level keys as arguments of `LLM`."""
    return {
        "seed": seed,
        "device": device,
        "engine": engine,
        "num_slots": num_slots,
        "logits_processors": list(map(logits_processor, logits_processors)),
        "grammars": locate("grammars", grammars),
    }


def recipe(cfg: DictConfig) -> Recipe:
    """How to build the engine over its model. Parts are checked here, the model is loaded later."""
    parts = {group: component(group, cfg[group]) for group in GROUPS}
    model = check_arguments("model", _plain("model", cfg.model), parameters_of(model_settings))
    keys = parameters_of(engine_settings)
    plain = _plain("config", cfg)
    engine = check_arguments("config", {key: plain[key] for key in keys}, keys)
    return Recipe({**model_settings(**model), **engine_settings(**engine), **parts})


def llm(cfg: DictConfig) -> LLM:
    """The engine over its model, loaded."""
    return recipe(cfg).build()


@dataclass(frozen=True)
class LLMFactory:
    """Builds the engine where it is called: for a task that runs it in a process of its own."""

    config: dict[str, Any]  # resolved

    def __call__(self) -> LLM:
        return llm(OmegaConf.create(self.config))


def llm_factory(cfg: DictConfig) -> LLMFactory:
    return LLMFactory(_plain("config", cfg))


def sampling(cfg: DictConfig) -> SamplingParams:
    given = _plain("sampling", cfg.sampling)
    return SamplingParams(**check_arguments("sampling", given, parameters_of(SamplingParams)))


def folder(cfg: DictConfig) -> RunFolder:
    hydra = HydraConfig.get()
    # As they were typed: `workload.part=${seed}` is one choice, whatever the seed.
    typed = _plain("hydra", hydra.overrides, resolve=False)
    return RunFolder(
        Path(hydra.runtime.output_dir),
        config=OmegaConf.to_yaml(cfg, resolve=True),
        overrides=typed["task"],
        seed=cfg.seed,
    )


def choices(override: str) -> list[str]:
    """`scheduler=fcfs,sjf` as its choices, `range(1,4)` and `choice(a,b)` too: Hydra's grammar."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return [override]
    key = parsed.get_key_element()
    return [f"{key}={value}" for value in parsed.sweep_string_iterator()]


# What a task can ask for, by parameter name, in the order of building: the model comes last.
PARTS: dict[str, Callable[[DictConfig], Any]] = {
    "folder": folder,
    "sampling": sampling,
    "workload": lambda cfg: component("workload", cfg.workload),
    "logger": lambda cfg: component("logger", cfg.logger),
    "choices": lambda cfg: choices,
    "recipe": recipe,
    "llm": llm,
    "llm_factory": llm_factory,
}


def task(cfg: DictConfig) -> Callable[[], None]:
    """The task with everything it asks for: its parameters name the parts it gets."""
    given = _plain("task", cfg.task)
    target = locate("task", given.pop("_target_", None))
    parameters = parameters_of(target)
    own = {name: param for name, param in parameters.items() if name not in PARTS}
    arguments = check_arguments("task", given, own)
    parts = {name: build(cfg) for name, build in PARTS.items() if name in parameters}
    return lambda: target(**parts, **arguments)


def _plain(path: str, node: Any, resolve: bool = True) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=resolve, throw_on_missing=True)
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: expected keys and values, got {plain!r}")
    return {str(key): value for key, value in plain.items()}
