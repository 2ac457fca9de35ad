"""What the numbers of a benchmark mean: ratios, floors, checks, settings of peers, traces."""

import json
import random

import pytest
import torch
from rich.console import Console

from paged.kv.paged import PagedKV
from paged.llm import LLM
from paged.models.presets import PRESETS
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.tasks.bench.control import summed_up
from paged.tasks.bench.driving import Request, check_engine, requests_of, run_pass
from paged.tasks.bench.hardware import Hardware, step_bytes, token_bytes
from paged.tasks.bench.peers import Peer, common_job, plain_config
from paged.tasks.bench.report import Report, Row, number
from paged.tasks.recipe import Recipe
from paged.tasks.sweep import sweep_table
from paged.workloads.prompts import WorkItem


@pytest.fixture(scope="module")
def recipe():
    return Recipe({
        "model": "stories",
        "max_model_len": 64,
        "kv": PagedKV(page_size=16, num_pages=32),
        "scheduler": RankScheduler(max_num_seqs=4, max_num_batched_tokens=64),
    })  # fmt: skip


@pytest.fixture(scope="module")
def llm(recipe):
    return recipe.build()


def test_ratios_say_how_many_times_as_fast():
    slow = Row("time", "s", 4.0, peer=2.0, floor=1.0)
    assert (slow.ratio, slow.share) == (0.5, 0.25)
    rate = Row("rate", "1/s", 4.0, peer=2.0, floor=8.0, more_is_better=True)
    assert (rate.ratio, rate.share) == (2.0, 0.5)
    assert (Row("time", "s", None, peer=1.0).ratio, Row("time", "s", 1.0).share) == (None, None)


def test_the_table_and_the_file_hold_the_same(tmp_path):
    rows = [Row("a", "ms", 12.345, peer=24.69), Row("b", "ms", None)]
    report = Report("latency", "checked", {"model": "m"}, rows, peer="vllm 1")
    console = Console(width=120, record=True)
    console.print(report.table())
    text = console.export_text()
    assert "vllm 1" in text
    assert "2.00" in text
    assert "n/a" in text
    report.write(tmp_path)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [row["ours"] for row in record["rows"]] == [12.345, None]
    assert record["rows"][0]["ratio"] == pytest.approx(2.0)
    assert record["check"] == "checked"


def test_a_sweep_of_benchmarks_has_their_first_rows_side_by_side(tmp_path):
    for name, ours in (("a", 2.0), ("b", None)):
        folder = tmp_path / name
        folder.mkdir()
        manifest = {"overrides": ["task=bench", f"kv.page_size={name}"]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        Report("latency", "", {}, [Row("decode", "ms", ours)]).write(folder)
    console = Console(width=120, record=True)
    console.print(sweep_table([tmp_path / "a", tmp_path / "b"]))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines == [["run", "decode", "(ms)"], ["kv.page_size=a", "2"], ["kv.page_size=b", "-"]]


def test_numbers_have_four_digits():
    assert [number(value) for value in (None, 0.2624, 12.345, 123.45, 13898.4)] == [
        "n/a", "0.262", "12.35", "123.5", "13,898",
    ]  # fmt: skip


def test_the_floor_counts_what_a_decode_step_reads():
    """Known sizes: 15.01 GB and 1.19 GB of weights, 128 KiB of keys and values a token."""
    dtype = torch.bfloat16
    llama = Recipe({"model": "llama-3.1-8b", "load": "dummy"}).spec()
    qwen = Recipe({"model": "qwen3-0.6b", "load": "dummy"}).spec()
    assert step_bytes(llama, dtype) == pytest.approx(15.01e9, rel=1e-3)
    assert step_bytes(qwen, dtype) == pytest.approx(1.19e9, rel=3e-3)
    assert token_bytes(llama, dtype) == 128 * 1024
    hardware = Hardware(bandwidth=2e12, flops=1e14)
    assert hardware.floor(2e12) == 1.0
    assert hardware.floor(2e12, 3e14) == 3.0


def test_a_pass_runs_every_request_to_its_length(llm):
    items = [WorkItem([5, 6, 7], {"max_tokens": 3}), WorkItem("The dog", {"max_tokens": 2})]
    requests = requests_of(items, SamplingParams(temperature=0.7), llm, greedy=True)
    assert all(request.params.temperature == 0 for request in requests)
    result = run_pass(llm, requests)
    assert result.output_tokens == 5
    assert result.prompt_tokens == 3 + len(llm.tokenizer.encode("The dog"))
    assert len(result.ttft) == 2
    assert result.steps == sum(result.steps_by_capacity.values()) == 3
    assert requests_of([WorkItem([1] * 60)], SamplingParams(max_tokens=None), llm, greedy=False)[
        0
    ].params.max_tokens == 4  # fmt: skip


def test_the_check_sees_a_wrong_token(llm, monkeypatch):
    assert "same" in check_engine(llm, random.Random(0))
    outputs = iter([[1, 2], [1, 2], [1, 2], [1, 3], [1, 2], [1, 2]])

    def fake(llm, requests):
        return [type("Output", (), {"token_ids": next(outputs)}) for _ in requests]

    monkeypatch.setattr("paged.tasks.bench.driving._outputs", fake)
    with pytest.raises(ValueError, match=r"prompts of \[1\] tokens; nothing was timed"):
        check_engine(llm, random.Random(0))


def test_a_pass_that_ends_early_reports_nothing(llm):
    greedy = SamplingParams(temperature=0.0, max_tokens=1)
    (first,) = llm.generate([[5, 6, 7]], greedy)[0].outputs[0].token_ids
    stopped = SamplingParams(temperature=0.0, max_tokens=6, stop_token_ids=[first])
    with pytest.raises(ValueError, match=r"ended with 1 of 6 tokens \(stop\); nothing is reported"):
        run_pass(llm, [Request([5, 6, 7], stopped)])


def test_a_trace_is_summed_up_by_step():
    spans = [
        (10.0, 12.0, "_ingest_kernel"), (13.0, 17.0, "_linear_kernel"),
        (16.0, 18.0, "_norm_kernel"),  # started while the one before was running
        (20.0, 22.0, "_ingest_kernel"), (22.0, 30.0, "_linear_kernel"),
    ]  # fmt: skip
    times, idle, between = summed_up(reversed(spans))
    assert times == {"_ingest_kernel": 2.0, "_linear_kernel": 6.0, "_norm_kernel": 0.5}
    assert idle == pytest.approx(3 / 20)  # 12 to 13 inside a step, 18 to 20 in front of one
    assert between == pytest.approx(2 / 20)
    assert summed_up([]) == ({}, 0.0, 0.0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_peer_gets_a_config_that_any_version_reads(name):
    config = plain_config(Recipe({"model": name, "load": "dummy"}))
    assert len(config["architectures"]) == 1
    assert "rope_parameters" not in config
    if name == "llama-3.1-8b":
        assert config["rope_theta"] == 500000.0
        assert config["rope_scaling"]["factor"] == 8.0
    json.dumps(config)


def test_a_peer_shares_the_settings(llm: LLM, recipe):
    job = common_job(llm, recipe)
    assert (job["max_num_seqs"], job["max_num_batched_tokens"]) == (4, 64)
    assert (job["max_model_len"], job["prefix_caching"], job["dummy"]) == (64, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("tgi",), "task.peer must be one of vllm, transformers"),
     (("vllm", None, None, 1.5), "peer_memory_fraction must be in")],
)  # fmt: skip
def test_wrong_peers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Peer(*arguments)
