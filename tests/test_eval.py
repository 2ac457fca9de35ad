"""The engine as a model of lm-evaluation-harness, against transformers on the same weights."""

import json

import pytest
import torch
import yaml

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.loggers.base import Logger
from paged.models.config import find_model
from paged.schedulers.base import RankScheduler
from paged.tasks.eval import evaluate, scores
from paged.tasks.run_folder import RunFolder

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from paged.tasks.eval_model import PagedLM, generation_params

MAX_MODEL_LEN = 14


@pytest.fixture(scope="module")
def model():
    llm = LLM(
        "stories",
        dtype=torch.float32,
        max_model_len=MAX_MODEL_LEN,
        scheduler=RankScheduler(max_num_seqs=8, max_num_batched_tokens=64),
        kv=PagedKV(page_size=16, num_pages=32),
    )
    return PagedLM(llm, progress=False)


@pytest.fixture(scope="module")
def reference(model):
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(find_model("stories"), dtype=torch.float32)
    return found.to(model.llm.device).eval()


def known(reference, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """What transformers says of a continuation."""
    ids = torch.tensor([context + continuation], device=reference.device)
    with torch.no_grad():
        logprobs = reference(ids).logits[0].double().log_softmax(-1)[len(context) - 1 : -1]
    tokens = torch.tensor(continuation, device=reference.device)
    greedy = bool((logprobs.argmax(-1) == tokens).all())
    return float(logprobs.gather(1, tokens[:, None]).sum()), greedy


def instances(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_loglikelihoods_and_greedy_flags_equal_transformers(model, reference):
    story = "Once upon a time"
    greedy = model.generate_until(
        instances("generate_until", (story, {"until": [], "max_gen_toks": 3}))
    )[0]
    pairs = [
        (story, greedy),
        (story, " there was a cat"),
        ("", "The dog"),  # after the prefix token alone
        ("The dog and " * 5, "the cat"),  # too long: the first tokens go
        (story + " ", "there"),  # the space belongs to the continuation
    ]
    found = model.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    flags = []
    for (context, continuation), (logprob, is_greedy) in zip(pairs, found):
        if context:
            first, second = model._encode_pair(context, continuation)
        else:
            first = [model.prefix_token_id]
            second = model.tok_encode(continuation, add_special_tokens=False)
        first = first[-(MAX_MODEL_LEN - len(second)) :]
        expected, flag = known(reference, first, second)
        assert logprob == pytest.approx(expected, abs=2e-3)
        assert is_greedy == flag
        flags.append(flag)
    assert flags[0]
    assert not all(flags)


def test_rolling_predicts_every_token_once_in_full_windows(model, reference):
    text = "The little dog ran to the tree. " * 2
    ids = model.tok_encode(text)
    assert len(ids) > MAX_MODEL_LEN  # more than one window
    found = model.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)), True)
    size, expected, done = MAX_MODEL_LEN - 1, 0.0, 0
    before = [model.prefix_token_id]
    while done < len(ids):
        end = min(done + size, len(ids))
        context = (before + ids)[max(0, end - size) : done + 1]
        expected += known(reference, context, ids[done:end])[0]
        done = end
    assert found == [pytest.approx(expected, abs=5e-3)]


def test_generation_stops_where_the_task_says(model):
    story = "Once upon a time"
    longer, stopped = model.generate_until(
        instances(
            "generate_until",
            (story, {"until": [], "max_gen_toks": 4}),
            (story, {"until": " a", "max_gen_toks": 4, "do_sample": False, "temperature": 0.0}),
        ),
        disable_tqdm=True,
    )
    assert longer.startswith(stopped)
    assert " a" not in stopped


def test_generation_kwargs_become_sampling_params():
    params = generation_params({"until": ["\n", ""], "max_new_tokens": 5, "top_p": 0.5}, 9)
    assert (params.stop, params.max_tokens, params.temperature) == (["\n"], 5, 0.0)
    assert generation_params({"temperature": 0.7}, 9).temperature == 0.7
    assert generation_params({"do_sample": True}, 9).temperature == 1.0
    assert generation_params({"do_sample": False, "temperature": 0.7}, 9).temperature == 0.0
    with pytest.raises(ValueError, match="no such key num_beams"):
        generation_params({"num_beams": 4}, 9)


def test_a_chat_template_is_text_with_the_last_turn_open(model):
    turns = [{"role": "user", "content": "Tell me"}]
    text = model.apply_chat_template(turns)
    assert model.tok_encode(text) == model.llm.tokenizer.chat_ids(turns)
    assert model.tokenizer_name
    assert model.chat_template(True) == model.tokenizer.chat_template


def write_task(folder) -> None:
    """A local multiple-choice task with two questions."""
    lines = [
        {"question": "Once upon a", "choices": [" time", " zebra"], "answer": 0},
        {"question": "The little dog was very", "choices": [" the", " happy"], "answer": 1},
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "task": "two_stories",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "two_stories.yaml").write_text(yaml.safe_dump(config))


def test_a_task_of_ones_own_from_a_folder(model, reference, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_task(tmp_path)
    folder = RunFolder(tmp_path / "run", config="", overrides=(), seed=0)
    results = evaluate(
        model.llm, folder, Logger(), tasks="two_stories", include_path=str(tmp_path),
        bootstrap_iters=0,
    )  # fmt: skip
    assert scores(results["results"])["two_stories/acc"] == 1.0
    lines = (tmp_path / "run" / "requests.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["acc"] for sample in samples] == [1.0, 1.0]
    first = model._encode_pair("Once upon a", " time")
    assert float(samples[0]["filtered_resps"][0][0]) == pytest.approx(
        known(reference, *first)[0], abs=2e-3
    )
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert saved["results"]["two_stories"]["acc,none"] == 1.0


@pytest.mark.slow
def test_a_task_that_is_nowhere_is_named(model, tmp_path):
    folder = RunFolder(tmp_path, config="", overrides=(), seed=0)
    with pytest.raises(ValueError, match="lm_eval has no task nonsense"):
        evaluate(model.llm, folder, Logger(), tasks=["nonsense"])
