"""The shipped configuration builds, and every wrong value is refused by name."""

import hydra
import pytest
import triton
from omegaconf import OmegaConf

from paged import build
from paged.cli import config_dir
from paged.interfaces import (
    Attention,
    Compression,
    Eviction,
    KVManager,
    LogitsProcessor,
    Proposer,
    Sampler,
    Scheduler,
)
from paged.schedulers.base import HostScheduler, RankScheduler

INTERFACES = {
    "scheduler": Scheduler,
    "eviction": Eviction,
    "kv": KVManager,
    "attention": Attention,
    "sampler": Sampler,
    "proposer": Proposer,
}
CHOICES = [
    (group, path.stem)
    for group in INTERFACES
    for path in sorted((config_dir() / group).glob("[!_]*.yaml"))
]

COMPRESSIONS = sorted(path.stem for path in (config_dir() / "kv/compression").glob("[!_]*.yaml"))


@triton.jit
def value_norm(token, power):
    return token.value * power


@triton.jit
def aged_rank(row, now, weight, cap=100):
    return row.arrival * weight + cap


def torch_rank(row, now):
    return row.arrival


def length_scaled(prompt_len, total_len, max_len, factor):
    return max_len * factor


def lower_by_hand(prompt_ids, output_ids, logits):
    return logits - 1


class Ban(LogitsProcessor):
    def __init__(self, *, words: int = 2) -> None:
        self.words = words

    def process(self, logits, requests, plan):
        return


class Shortest(HostScheduler):
    def __init__(self, *, bias: int = 0, **knobs) -> None:
        super().__init__(**knobs)
        self.bias = bias

    def rank(self, request, now_ms):
        return request.predicted_len + self.bias


def compose(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return hydra.compose(config_name="config", overrides=list(overrides))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_builds_its_interface(group, choice):
    cfg = compose(f"{group}={choice}")
    assert isinstance(build.component(group, cfg[group]), INTERFACES[group])


@pytest.mark.parametrize(
    ("page_size", "pages"), [(16, (512, 256)), (512, (16, 8)), (16384, (1, 1))]
)
def test_knobs_in_tokens_are_pages_of_any_size(page_size, pages):
    cfg = compose("eviction=cost", f"kv.page_size={page_size}")
    assert (cfg.eviction.pages, cfg.eviction.even) == pages


@pytest.mark.parametrize("choice", COMPRESSIONS)
def test_every_compression_builds_as_a_part_of_the_allocator(choice):
    cfg = compose(f"kv/compression={choice}")
    compression = build.component("kv", cfg.kv).compression
    assert isinstance(compression, Compression) or (choice, compression) == ("none", None)


def test_compression_of_ones_own_has_the_common_knobs_and_its_arguments():
    own = (f"kv.compression._target_={__name__}.value_norm", "+kv.compression.power=3")
    cfg = compose("kv/compression=knorm", *own, "kv.compression.ratio=0.25")
    compression = build.component("kv", cfg.kv).compression
    assert (compression.score_function, compression.args) == (value_norm, (3,))
    assert compression.budget(16).share == 256
    cfg = compose("kv/compression=knorm", "kv.compression.recent=lots")
    with pytest.raises(ValueError, match=r"kv\.compression\.recent: expected int, got 'lots'"):
        build.component("kv", cfg.kv)


@pytest.mark.parametrize("path", sorted((config_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_composes(path):
    OmegaConf.to_yaml(compose(f"experiment={path.stem}"), resolve=True)


def test_sampling_and_workload_build():
    cfg = compose("sampling.max_tokens=3", "prompt='one, two'")
    assert build.sampling(cfg).max_tokens == 3
    assert [item.prompt for item in build.PARTS["workload"](cfg)] == ["one, two"]


def test_knobs_reach_the_scheduler():
    cfg = compose("scheduler=priority", "scheduler.max_num_seqs=7", "scheduler.chunk=5")
    scheduler = build.component("scheduler", cfg.scheduler)
    assert (scheduler.max_num_seqs, scheduler.chunk, scheduler.preemptive) == (7, 5, True)


def test_arguments_of_a_policy_function_are_given_by_name():
    cfg = compose(f"scheduler._target_={__name__}.aged_rank", "+scheduler.weight=3")
    scheduler = build.component("scheduler", cfg.scheduler)
    assert scheduler.rank_function is aged_rank
    assert scheduler.args == (3, 100)


def test_a_torch_function_is_a_policy_too():
    cfg = compose(f"scheduler._target_={__name__}.torch_rank")
    scheduler = build.component("scheduler", cfg.scheduler)
    assert isinstance(scheduler, RankScheduler)
    assert scheduler.rank_function is torch_rank


def test_a_class_takes_the_knobs_of_its_base():
    cfg = compose(
        f"scheduler._target_={__name__}.Shortest", "+scheduler.bias=2", "scheduler.max_num_seqs=5"
    )
    scheduler = build.component("scheduler", cfg.scheduler)
    assert (scheduler.bias, scheduler.max_num_seqs) == (2, 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler.max_num_seqs=banana"], "scheduler.max_num_seqs: expected int, got 'banana'"),
        (["scheduler.chunk=1.5"], "scheduler.chunk: expected int or null, got 1.5"),
        (["scheduler.preemptive=1"], "scheduler.preemptive: expected bool, got 1"),
        (["scheduler.max_num_seqs=0"], "scheduler.max_num_seqs must be at least 1, got 0"),
        (["+scheduler.max_seqs=1"], "scheduler.max_seqs: no such key; did you mean max_num_seqs?"),
        (["scheduler._target_=nowhere.rank"], "scheduler._target_: cannot import 'nowhere'"),
        (["scheduler._target_=paged.schedulers.fcfs.nope"], "has no class or function 'nope'"),
        (["scheduler._target_=rank"], "expected a dotted name"),
        ([f"scheduler._target_={__name__}.aged_rank"], "scheduler.weight: missing"),
    ],
)
def test_wrong_scheduler_settings_are_named(overrides, message):
    cfg = compose(*overrides)
    with pytest.raises(ValueError, match="scheduler") as caught:
        build.component("scheduler", cfg.scheduler)
    assert message in str(caught.value)


def test_an_allocator_function_has_no_arguments_of_its_own():
    cfg = compose(f"kv._target_={__name__}.length_scaled", "+kv.factor=2")
    with pytest.raises(ValueError, match=r"kv._target_: reserve_len functions take no arguments"):
        build.component("kv", cfg.kv)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dtype=3", "model.dtype: expected str, got 3"),
        ("+model.size=3", "model.size: no such key"),
        ("seed=x", "config.seed: expected int, got 'x'"),
        ("kv.page_size=24", "kv.page_size must be a power of two"),
        ("device=tpu", "device must be"),
    ],
)
def test_wrong_model_and_engine_settings_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        build.llm(compose(override, "scheduler.max_num_seqs=4"))


@pytest.mark.parametrize(
    ("task", "setting"),
    [("eval", "metadata"), ("eval", "gen_kwargs"), ("bench_serve", "extra_body")],
)
def test_settings_without_fixed_keys_take_any(task, setting):
    cfg = compose(f"task={task}", f"task.{setting}={{max_seq_lengths:[1024]}}")
    assert cfg.task[setting] == {"max_seq_lengths": [1024]}


def test_logits_processors_are_names_or_nodes():
    here, host = __name__, "paged.logits_processors.HostLogitsProcessor"
    given = [f"{here}.torch_rank", f"{here}.Ban", {"_target_": f"{here}.Ban", "words": 3},
             {"_target_": host, "function": f"{here}.lower_by_hand"}]  # fmt: skip
    function, ban, strict, by_hand = map(build.logits_processor, given)
    assert function is torch_rank
    assert (ban.words, strict.words) == (2, 3)
    assert by_hand.function is lower_by_hand
    for node, message in (
        ({"_target_": f"{here}.Ban", "words": "x"}, "logits_processors.words: expected int"),
        ({"_target_": f"{here}.torch_rank", "words": 3}, "takes no arguments, got words"),
        ({"_target_": host, "function": f"{here}.nothing"}, "no class or function 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            build.logits_processor(node)
