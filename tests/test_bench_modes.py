"""Every mode at tiny sizes, on a GPU or in the interpreter, and peers in their own processes."""

import json

import pytest
import torch

from paged.attention.triton import TritonAttention
from paged.graphs import check_capturable
from paged.kernels.launch import interpreted
from paged.kv.paged import PagedKV
from paged.loggers.base import Logger
from paged.models.dummy import dummy_weights
from paged.request import SamplingParams
from paged.schedulers.base import RankScheduler
from paged.tasks.bench import kernels as kernels_module
from paged.tasks.bench.cases import Shapes, linear_case
from paged.tasks.bench.control import oracle_engine
from paged.tasks.bench.kernels import measure_case
from paged.tasks.bench.plots import draw
from paged.tasks.bench.report import Report, Row
from paged.tasks.bench.task import bench
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder
from paged.tasks.warmup import num_compiled, warmup
from paged.workloads.lengths import Lengths

FAKE_VLLM = """
import json, os, types
__version__ = "0.0-fake"

def TokensPrompt(prompt_token_ids):
    return prompt_token_ids

def SamplingParams(**given):
    return types.SimpleNamespace(**given)

class LLM:
    def __init__(self, model, **given):
        config = json.load(open(os.path.join(model, "config.json")))
        assert config["architectures"], "no architecture"
        assert given["max_num_seqs"] == 4 and given["load_format"] == "auto"
        cache = types.SimpleNamespace(num_gpu_blocks=10, block_size=16)
        scheduler = types.SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64)
        graphs = types.SimpleNamespace(cudagraph_mode="FULL")
        config = types.SimpleNamespace(
            cache_config=cache, scheduler_config=scheduler, compilation_config=graphs
        )
        self.llm_engine = types.SimpleNamespace(vllm_config=config)

    def generate(self, prompts, params, use_tqdm):
        assert all(p.ignore_eos and not p.detokenize and p.temperature == 0 for p in params)
        output = lambda p: types.SimpleNamespace(token_ids=[0] * p.max_tokens)
        return [types.SimpleNamespace(outputs=[output(p)]) for p in params]
"""


def tiny(**changes) -> Recipe:
    return Recipe({
        "model": "stories",
        "max_model_len": 64,
        "kv": PagedKV(page_size=16, num_pages=32),
        "scheduler": RankScheduler(max_num_seqs=4, max_num_batched_tokens=64),
        **changes,
    })  # fmt: skip


def run(path, recipe=None, **options) -> Report:
    """One benchmark; checks what every mode promises about its file."""
    folder = RunFolder(path, config="", overrides=(), seed=0)
    workload = Lengths(num_requests=3, input_len=[3, 20], output_len=2)
    options = {"runs": 1, "batches": [1, 8], "contexts": [5], "output_len": 2, "slots": [4],
               "rows": [3], "decodes": [[2, 40]], "prefills": [17]} | options  # fmt: skip
    report = bench(recipe or tiny(), workload, SamplingParams(), folder, Logger(), **options)
    record = json.loads((path / "bench.json").read_text())
    assert record["mode"] == options["mode"]
    assert [row["name"] for row in record["rows"]] == [row.name for row in report.rows]
    if interpreted():  # whose speed no hardware limits
        assert all(row.floor is None for row in report.rows)
    return report


def named(report: Report) -> dict[str, Row]:
    return {row.name: row for row in report.rows}


def test_throughput_beside_a_peer_with_the_same_settings(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vllm.py").write_text(FAKE_VLLM)
    site = str(tmp_path / "site")
    report = run(tmp_path / "out", mode="throughput", peer="vllm", peer_pythonpath=site)
    rows = named(report)
    assert report.peer == "vllm 0.0-fake", (tmp_path / "out" / "peer.log").read_text()
    assert report.details["output_tokens"] == 6
    assert rows["output tokens"].ours == pytest.approx(6 / rows["run"].ours)
    assert rows["output tokens"].peer == pytest.approx(6 / rows["run"].peer)
    assert rows["requests"].ratio == pytest.approx(rows["run"].ratio)
    assert report.details["peer"]["details"]["kv_tokens"] == 160


def test_latency_leaves_out_what_does_not_fit(tmp_path):
    report = run(tmp_path, mode="latency", peer="vllm")
    assert [row.name for row in report.rows] == ["batch 1, 5 in: decode", "batch 1, 5 in: ttft"]
    assert all(row.ours is not None and row.peer is None for row in report.rows)
    assert any("batch 8" in note for note in report.notes)
    assert any("vllm is not installed" in note for note in report.notes)


def test_transformers_batches_the_same_workload(tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "ContinuousBatchingConfig"):
        pytest.skip("this transformers has no continuous batching")
    report = run(tmp_path, mode="throughput", peer="transformers")
    assert report.peer.startswith("transformers"), (tmp_path / "peer.log").read_text()
    assert len(report.details["peer"]["passes"]) == 2
    assert named(report)["output tokens"].ratio > 0


def test_control_checks_every_answer(tmp_path):
    report = run(tmp_path, mode="control")
    assert "right at 4 slots" in report.check
    rows = named(report)
    assert rows["batch 1: decode step"].ours > 0
    measured = rows["4 slots: control kernels"].ours
    assert measured is None if interpreted() else measured > 0


def test_every_part_of_the_control_engine_can_be_captured():
    check_capturable(oracle_engine(tiny(), slots=4, steps=2).device_step)


def test_startup_adds_up(tmp_path):
    report = run(tmp_path, mode="startup")
    rows = {name: row.ours for name, row in named(report).items()}
    total, bare = rows.pop("all"), rows.pop("all but weights")
    assert total == pytest.approx(sum(rows.values()))
    assert bare == pytest.approx(total - rows["weights"])
    assert all(seconds >= 0 for seconds in rows.values())
    assert (report.settings["graphs"], rows["graph capture"] > 0) == (not interpreted(),) * 2


def test_kernels_are_checked_and_timed(tmp_path):
    report = run(tmp_path, mode="kernels")
    names = [row.name for row in report.rows]
    for operation in ("linear qkv", "linear head", "norm", "rope", "sampling, greedy",
                      "attention, decode", "attention, prefill"):  # fmt: skip
        assert any(name.startswith(operation) for name in names)
    assert report.check.startswith(f"{len(names)} of {len(names)}")
    assert all(row.ours > 0 for row in report.rows)
    if not interpreted():
        assert all(row.floor > 0 for row in report.rows)
        assert {row.name for row in report.rows if row.peer is None} == {"rope + KV write, 3 rows"}


def test_a_wrong_kernel_has_no_time(tmp_path, monkeypatch):
    spec = tiny().spec()
    shapes = Shapes(spec, torch.device("cpu"), torch.float32, 16, TritonAttention())
    case = linear_case(shapes, "linear", 3, 32, 64)
    wrong = type(case)(**{**vars(case), "run": lambda inputs: inputs["out"].fill_(0.5)})
    row, failure = measure_case(wrong, None)
    assert (row.ours, row.peer) == (None, None)
    assert "error" in failure
    monkeypatch.setattr(kernels_module, "all_cases", lambda *_: [case, wrong])
    report = run(tmp_path, mode="kernels")
    assert report.check.startswith("1 of 2")
    assert any("wrong and was not timed" in note for note in report.notes)


def test_dummy_weights_are_what_a_peer_is_given():
    weights = dummy_weights(tiny().spec(), "cpu", torch.float32)
    values = weights["layers.0.qkv.weight"]
    assert values.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mode": "speed"}, "task.mode must be one of throughput, latency"),
     ({"mode": "kernels", "peer": "vllm"}, "task.peer is for throughput"),
     ({"mode": "kernels", "only": "nothing"}, "names no operation"),
     ({"mode": "latency", "output_len": 1}, "task.output_len must be at least 2"),
     ({"mode": "throughput", "runs": 0}, "task.runs must be at least 1")],
)  # fmt: skip
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)


def test_plots_need_matplotlib_and_say_so(tmp_path):
    rows = [
        Row(f"batch {batch}", "ms/step", batch + 1.0, peer=batch + 2.0, floor=0.5,
            details={"batch": batch, "context": 512})
        for batch in (1, 8)
    ]  # fmt: skip
    report = Report("latency", "checked", {"model": "m"}, rows, peer="vllm")
    paths = draw(report, tmp_path)
    assert bool(paths) == (not report.notes)
    assert all(path.stat().st_size > 0 for path in paths)
    if not paths:
        assert "paged[analysis]" in report.notes[0]
    roof = Report("kernels", "", {"bandwidth_bytes_per_s": 4e12, "flops": 8e14}, [
        Row("linear", "us", 10.0, peer=9.0, details={"flops": 1e9, "bytes": 1e7})
    ])  # fmt: skip
    assert bool(draw(roof, tmp_path)) == bool(paths)
    assert draw(Report("startup", "", {}), tmp_path) == []


def test_warmup_needs_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="warmup needs a GPU"):
            warmup(tiny())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kernel.cubin").touch()
    (tmp_path / "a" / "kernel.ttir").touch()
    assert num_compiled(tmp_path) == 1
