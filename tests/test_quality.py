"""task=quality: its figures, what they are measured on, and two configurations that show them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from paged.kv.compression.streaming_llm import StreamingLLM
from paged.kv.paged import PagedKV
from paged.loggers.base import Logger
from paged.models.config import find_model
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.tasks.quality.scores import kl_divergence, match_len, perplexity
from paged.tasks.quality.task import quality
from paged.tasks.quality.texts import DEPTHS, cases_of_text, cases_of_workload, hide_needles
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder
from paged.testing.tiny_models import save_tiny_model
from paged.tokenizer import load_tokenizer
from paged.workloads.prompts import WorkItem

GREEDY = SamplingParams(max_tokens=5, temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_model("stories"))


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("The little dog ran to the tree and saw a big red ball in the garden. " * 40)
    return str(path)


def test_perplexity_counts_every_token_alike():
    assert perplexity([[math.log(0.5)] * 3, [math.log(0.125)]]) == pytest.approx(2**1.5)


def test_the_estimate_of_the_divergence_is_that_of_the_distributions():
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.4, 0.2])
    drawn = np.random.default_rng(0).choice(3, size=40_000, p=p)
    found = kl_divergence([np.log(p)[drawn]], [np.log(q)[drawn]])
    assert found == pytest.approx(float((p * np.log(p / q)).sum()), rel=0.03)
    assert kl_divergence([np.log(p)[drawn]], [np.log(p)[drawn]]) == 0


def test_a_match_ends_at_the_first_difference():
    assert match_len([1, 2, 3], [1, 2, 3]) == 3
    assert match_len([1, 2, 3], [1, 5, 3]) == 1
    assert match_len([1, 2], [1, 2, 3]) == 2
    assert match_len([], [1]) == 0


def test_stretches_of_a_text_go_on_as_the_text_does(tokenizer, story):
    cases = cases_of_text(tokenizer, story, GREEDY, num_prompts=6, prompt_len=20, seed=3)
    text = Path(story).read_text()
    bos = tokenizer.hf.bos_token_id
    for case in cases:
        assert len(case.prompt_ids) == 20
        assert case.prompt_ids[0] == bos
        assert len(case.following) == 5
        assert tokenizer.decode([*case.prompt_ids, *case.following]).strip() in text
    again = cases_of_text(tokenizer, story, GREEDY, num_prompts=6, prompt_len=20, seed=3)
    other = cases_of_text(tokenizer, story, GREEDY, num_prompts=6, prompt_len=20, seed=4)
    assert cases == again != other


def test_needles_are_hidden_at_their_depths(tokenizer, story):
    cases = cases_of_text(tokenizer, story, GREEDY, num_prompts=2, prompt_len=120, seed=0)
    hidden = hide_needles(tokenizer, cases, 5, seed=1)
    texts = [tokenizer.decode(needle.prompt_ids) for needle in hidden]
    places = [text.index(needle.number) / len(text) for text, needle in zip(texts, hidden)]
    assert places == sorted(places)
    assert len(places) == len(DEPTHS)
    for text, needle in zip(texts, hidden):
        assert len(needle.prompt_ids) == 120
        assert text.count(needle.number) == 1
        assert text.endswith(" is")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_len": 10_000}, "fewer than prompt_len"),
        ({"prompt_len": 0}, "task.prompt_len must be at least 1"),
        ({"num_prompts": 0}, "task.num_prompts must be at least 1"),
        ({"path": "nothing.txt"}, "task.text: cannot read nothing.txt"),
        ({"sampling": SamplingParams(max_tokens=None)}, "sampling.max_tokens must be given"),
    ],
)
def test_texts_that_will_not_do(tokenizer, story, changes, message):
    given = {"path": story, "sampling": GREEDY, "num_prompts": 2, "prompt_len": 10, "seed": 0}
    with pytest.raises(ValueError, match=message):
        cases_of_text(tokenizer, **{**given, **changes})


def test_prompts_of_a_workload_keep_their_own_sampling(tokenizer):
    items = [WorkItem("Once"), WorkItem([5, 6], {"max_tokens": 3})]
    one, two = cases_of_workload(tokenizer, items, GREEDY)
    assert one.prompt_ids == tokenizer.encode("Once")
    assert (two.prompt_ids, two.params.max_tokens, two.following) == ([5, 6], 3, None)
    assert cases_of_workload(None, [WorkItem("ab")], GREEDY)[0].prompt_ids == [97, 98]
    with pytest.raises(ValueError, match="there is no prompt"):
        cases_of_workload(tokenizer, [], GREEDY)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A model of two layers with random weights and no tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model("llama", folder)
    return str(folder)


def measured(model: str, folder: Path, **changes) -> tuple[dict, list[dict]]:
    """What two prompts of four pages came to, with the float32 of the reference."""
    recipe = Recipe({
        "model": model, "dtype": "float32", "max_model_len": 80,
        "scheduler": RankScheduler(max_num_seqs=2, max_num_batched_tokens=128), **changes,
    })  # fmt: skip
    prompts = [WorkItem([3 + (7 * i + start) % 250 for i in range(60)]) for start in (0, 11)]
    run = RunFolder(folder, config="", overrides=[], seed=0)
    quality(recipe, prompts, SamplingParams(max_tokens=8, temperature=0.8), run, Logger())
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return json.loads((folder / "metrics.json").read_text()), [json.loads(one) for one in lines]


@pytest.mark.slow
def test_nothing_differs_where_nothing_is_approximated(tiny, tmp_path):
    metrics, lines = measured(tiny, tmp_path)
    assert metrics["kl"] == pytest.approx(0, abs=1e-10)  # the last bit of log-probabilities
    assert metrics["perplexity_difference"] == pytest.approx(0, abs=1e-5 * metrics["perplexity"])
    assert metrics["greedy_match_len"] == metrics["greedy_len"] > 0
    assert metrics["perplexity"] > 1 < metrics["written_perplexity"]
    assert metrics["output_tokens_per_s"] > 0
    assert np.mean([line["greedy_match_len"] for line in lines]) == metrics["greedy_match_len"]
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == metrics["steps"]


@pytest.mark.slow
def test_dropped_pages_are_seen_in_every_figure(tiny, tmp_path):
    dropping = StreamingLLM(pages=3, sinks=4, recent=16)
    metrics, _ = measured(tiny, tmp_path, kv=PagedKV(page_size=16, compression=dropping))
    assert metrics["kl"] > 0.001
    assert metrics["perplexity_difference"] != 0
    assert metrics["greedy_match_len"] < metrics["greedy_len"]
    assert metrics["mean_pages_in_use"] < 2 * 4


def test_needles_need_a_text(tmp_path):
    run = RunFolder(tmp_path, config="", overrides=[], seed=0)
    with pytest.raises(ValueError, match=r"task.needles=3 are hidden in a text; give task.text"):
        quality(Recipe({}), [], GREEDY, run, Logger(), needles=3)


@pytest.mark.slow
def test_a_text_with_needles_from_end_to_end(tmp_path, story):
    recipe = Recipe({
        "model": "stories", "dtype": "float32", "max_model_len": 128,
        "scheduler": RankScheduler(max_num_seqs=4, max_num_batched_tokens=128),
    })  # fmt: skip
    run = RunFolder(tmp_path, config="", overrides=[], seed=0)
    quality(
        recipe, [], SamplingParams(max_tokens=3), run, Logger(), text=story, num_prompts=2,
        prompt_len=60, needles=2,
    )  # fmt: skip
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["needles_found"] in (0, 0.5, 1)
    assert metrics["perplexity_difference"] == pytest.approx(0, abs=1e-5 * metrics["perplexity"])
    assert metrics["requests"] == 2
