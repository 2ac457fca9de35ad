"""Reports: what differs and how sure that is, the files they write, and the trace of a run."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from paged.tasks.report import plots
from paged.tasks.report.runs import Arm, Run, arms_of, find_runs, read_run
from paged.tasks.report.statistics import holm, paired_bootstrap
from paged.tasks.report.tables import compare, figure, markdown, shown, usual_metrics
from paged.tasks.report.task import first_is, write_report
from paged.tasks.report.trace import write_trace


def write_run(folder: Path, overrides: list[str], seed: int, scale: float, status="done") -> Path:
    """A run folder as task=simulate leaves it: three requests, three steps."""
    folder.mkdir(parents=True)
    manifest = {"overrides": [*overrides, f"seed={seed}"], "seed": seed, "status": status}
    manifest |= {"device": "a CPU", "git_commit": "0123456789abcdef"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    metrics = {"ttft_p50": 0.5 * scale, "e2e_mean": 2.0 * scale, "e2e_p50": 2.0 * scale}
    metrics |= {"num_pages": 10, "page_size": 16, "memory_split": {"free": 0.25}, "model": "m"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    requests = [
        {"request_id": str(i), "arrival_time": i * 1.0, "queue_time": 0.1, "ttft": 0.5 * scale,
         "tpot": 0.05, "e2e": 2.0 * scale, "error": None}
        for i in range(3)
    ]  # fmt: skip
    requests.append({"request_id": "3", "error": "too long"})
    steps = [
        {"step": i, "time": i * 1.0, "seconds": 0.4, "num_tokens": 5, "num_seqs": 1,
         "num_running": 1, "num_waiting": 2, "free_pages": 6, "cached_pages": 1}
        for i in range(3)
    ]  # fmt: skip
    for name, records in (("requests", requests), ("steps", steps)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two schedulers at two rates with five seeds; sjf is 20% faster, with noise."""
    noise = np.random.default_rng(0).normal(1, 0.02, size=(4, 5))
    arms = [(scheduler, rate) for scheduler in ("fcfs", "sjf") for rate in (1, 2)]
    for number, (scheduler, rate) in enumerate(arms):
        overrides = ["task=simulate", f"scheduler={scheduler}", f"workload.rate={rate}"]
        for seed in range(5):
            scale = noise[number, seed] * rate * (0.8 if scheduler == "sjf" else 1) * (1 + seed)
            write_run(tmp_path / f"{number}" / f"{seed}", overrides, seed, scale)
    return tmp_path


def coverage(pairs: int, draws: int = 300) -> float:
    """How often the 95% interval of a mean of normal differences holds the truth, 0."""
    rng = np.random.default_rng(0)
    zeros = [0.0] * pairs
    found = (paired_bootstrap(zeros, rng.normal(size=pairs), resamples=1000) for _ in range(draws))
    return sum(effect.low <= 0 <= effect.high for effect in found) / draws


def plain_coverage(pairs: int, draws: int = 300) -> float:
    """The same of the quantiles of resampled means."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(draws):
        sample = rng.normal(size=pairs)
        means = rng.choice(sample, size=(1000, pairs)).mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        held += low <= 0 <= high
    return held / draws


@pytest.mark.parametrize("pairs", [4, 5, 12])
def test_intervals_hold_the_truth_as_often_as_they_say(pairs):
    assert coverage(pairs) >= 0.93  # 300 draws: a deviation of 0.013


def test_plain_intervals_of_few_pairs_do_not():
    assert plain_coverage(5) < 0.88


def test_pairing_finds_a_difference_that_seeds_would_hide():
    base = np.array([1.0, 10, 100, 1000, 10000])
    effect = paired_bootstrap(base, base + np.array([1.0, 1.1, 0.9, 1.05, 0.95]))
    assert effect.num_pairs == 5
    assert effect.difference == pytest.approx(1)
    assert 0.5 < effect.low < 1 < effect.high < 1.5
    assert effect.p < 0.01
    assert paired_bootstrap(base[::-1], base).p > 0.2


def test_equal_differences_do_not_blow_an_interval_up():
    effect = paired_bootstrap([0.0] * 4, [0.0, 0.0, 0.0, 1.0])
    assert -1 < effect.low < 0 < effect.high < 2
    assert effect.p > 0.2


def test_too_few_pairs_or_none_that_vary_have_no_interval():
    for base, other in (([1, 2, 3], [2, 3, 5]), ([1, 2, 3, 4], [0.1 + i for i in (1, 2, 3, 4)])):
        effect = paired_bootstrap(base, other)
        assert (effect.low, effect.high, effect.p) == (None, None, None)
    with pytest.raises(ValueError, match="at least one pair"):
        paired_bootstrap([], [])


def test_holm_multiplies_by_how_many_are_left():
    assert holm([0.01, 0.04, None, 0.03]) == [0.03, 0.06, None, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None]) == [None]


def test_arms_are_runs_with_equal_overrides(sweep):
    arms = arms_of(find_runs([sweep]))
    assert [arm.name for arm in arms] == [
        f"scheduler={scheduler} workload.rate={rate}"
        for scheduler in ("fcfs", "sjf")
        for rate in (1, 2)
    ]
    assert all(list(arm.runs) == [(seed, 0) for seed in range(5)] for arm in arms)
    assert arms[0].values("memory_split.free") == {(seed, 0): 0.25 for seed in range(5)}
    assert first_is(arms, arms[2].name)[0] is arms[2]
    with pytest.raises(ValueError, match="no arm 'x'"):
        first_is(arms, "x")


def test_runs_that_failed_are_left_out(tmp_path):
    assert read_run(write_run(tmp_path / "a", [], 0, 1, status="failed: KeyError")) is None
    with pytest.raises(ValueError, match="holds no finished run"):
        find_runs([tmp_path])
    write_run(tmp_path / "b", [], 0, 1)
    write_run(tmp_path / "c", [], 0, 1)
    runs = find_runs([tmp_path, tmp_path / "b"])
    assert [run.path.name for run in runs] == ["b", "c"]
    assert list(arms_of(runs)[0].runs) == [(0, 0), (0, 1)]  # a seed that ran twice


def test_a_benchmark_is_a_run_too(tmp_path):
    folder = write_run(tmp_path / "a", [], 0, 1)
    (folder / "metrics.json").unlink()
    rows = [{"name": "decode", "unit": "ms", "ours": 2.5}, {"name": "x", "unit": "s", "ours": None}]
    (folder / "bench.json").write_text(json.dumps({"rows": rows}))
    assert read_run(folder).metrics == {"decode (ms)": 2.5}


def test_the_tables_say_what_differs_and_by_how_much(sweep, tmp_path):
    arms = arms_of(find_runs([sweep]))
    assert usual_metrics(arms) == ["ttft_p50", "e2e_mean"]
    cells = compare(arms, ["e2e_mean"])
    by_arm = {cell.arm: cell for cell in cells}
    sjf, fast = (by_arm[f"scheduler=sjf workload.rate={rate}"] for rate in (1, 2))
    assert sjf.effect.num_pairs == 5
    assert sjf.relative[0] == pytest.approx(-0.2, abs=0.03)
    assert sjf.effect.low < sjf.effect.difference < sjf.effect.high < 0
    assert fast.base == "scheduler=fcfs workload.rate=2"
    assert fast.relative[0] == pytest.approx(-0.2, abs=0.03)
    assert [sjf.p, fast.p] == holm([sjf.effect.p, fast.effect.p])
    assert cells[0].effect is cells[1].effect is None
    twice = compare(arms, ["e2e_mean"], within=())[1]
    assert twice.base == cells[0].arm
    assert twice.relative[0] == pytest.approx(1, abs=0.1)
    text = markdown(cells, 0.95)
    assert "Differences to scheduler=fcfs of equal workload.rate, over pairs" in text
    assert "| scheduler=sjf workload.rate=1 | e2e_mean, s | 5 |" in text
    assert f"({100 * sjf.relative[0]:+.1f}%" in text
    with pytest.raises(ValueError, match=r"metrics: no run has e2e; there are e2e_mean"):
        compare(arms, ["e2e"])


def quality_arms(kl: dict[str, list[float]]) -> list[Arm]:
    """Arms whose runs have only this figure."""
    return [
        Arm(name, (name,), {
            (seed, 0): Run(Path(name), seed, (name,), {"kl": value}, {})
            for seed, value in enumerate(values)
        })
        for name, values in kl.items()
    ]  # fmt: skip


def test_a_baseline_of_rounding_errors_has_no_percentages():
    arms = quality_arms({
        "none": [1e-14, 2e-14, 1e-14, 3e-14],
        "half": [0.1, 0.12, 0.09, 0.11],
        "quarter": [0.3, 0.31, 0.29, 0.33],
    })  # fmt: skip
    assert usual_metrics(arms) == ["kl"]
    cells = compare(arms, ["kl"])
    assert [cell.relative for cell in cells] == [None] * 3
    assert all(cell.significant for cell in cells[1:])
    text = markdown(cells, 0.95)
    assert "| half | 0.105* |" in text
    assert "%" not in text.replace("95% interval", "")


def test_many_arms_are_rows_and_few_are_columns():
    arms = quality_arms({name: [1.0, 2.0] for name in ("none", "half", "quarter")})
    many, few = (shown(compare(some, ["kl"])) for some in (arms, arms[:1]))
    assert (many.row_count, [column.header for column in many.columns]) == (3, ["", "kl"])
    assert (few.row_count, [column.header for column in few.columns]) == (1, ["", "none"])


def test_one_metric_has_its_arms_beside_the_axis():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    arms = quality_arms({"none": [1.0, 2, 3, 4], "half": [2.0, 3, 5, 6], "quarter": [3.0, 4, 6, 9]})
    figure = plots.forest(compare(arms, ["kl"]))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["half", "quarter"]
    assert not figure.legends
    pyplot.close(figure)


def test_figures_have_four_digits():
    values = (None, 0, 0.0123456, 12.3456, 12345.6)
    assert [figure(value) for value in values] == ["-", "0", "0.01235", "12.35", "12,346"]


def test_a_report_is_tables_and_plots(sweep, tmp_path):
    pytest.importorskip("matplotlib")
    arms = arms_of(find_runs([sweep]))
    out = tmp_path / "report"
    out.mkdir()
    write_report(arms, out, Console(quiet=True), notes=["Failed: x"])
    written = {path.name for path in out.iterdir()}
    pictures = {"effects", "latency", "rate", "memory"}
    assert {f"{name}.{end}" for name in pictures for end in ("png", "pdf")} < written
    assert {"table.md", "table.csv", "table.tex"} < written
    text = (out / "table.md").read_text()
    assert "20 runs, seed 0, 1, 2, 3, 4, on a CPU, commit 0123456789." in text
    assert "Failed: x" in text
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert len(rows) == 8
    assert float(rows[4]["mean"]) == np.mean(list(arms[2].values("ttft_p50").values()))


def test_without_matplotlib_the_tables_are_there(sweep, tmp_path, monkeypatch):
    def missing(*_):
        raise ImportError

    monkeypatch.setattr(plots, "draw", missing)
    write_report(arms_of(find_runs([sweep])), tmp_path, Console(quiet=True))
    assert plots.MISSING in (tmp_path / "table.md").read_text()


def test_memory_is_told_as_finely_as_the_steps_tell_it():
    pages = {"free_pages": 6, "cached_pages": 1}
    coarse = plots.memory_shares([pages], 10, 16)
    assert {use: shares.tolist() for use, shares in coarse.items()} == {
        "in_use": [pytest.approx(0.3)],
        "cached": [0.1],
        "free": [0.6],
    }
    split = {"token_states": 40, "reserved": 8, "cached": 16, "free": 96}
    fine = plots.memory_shares([pages | {"memory_split": split}], 10, 16)
    assert fine["token_states"] == [0.25]
    assert sum(shares[0] for shares in fine.values()) == 1


def test_a_trace_has_steps_requests_and_pages(tmp_path):
    run = read_run(write_run(tmp_path / "a", ["scheduler=fcfs"], 0, 1))
    count = write_trace(run, tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] != "M"]
    assert len(events) == count
    steps = [event for event in events if event["ph"] == "X"]
    assert [(event["ts"], event["dur"]) for event in steps] == [(i * 1e6, 4e5) for i in range(3)]
    pages = [event["args"] for event in events if event["name"] == "pages"]
    assert pages == [{"in use": 3, "cached": 1, "free": 6}] * 3
    assert {event["id"] for event in events if "id" in event} == {"0", "1", "2"}


def test_the_spans_of_a_request_nest(tmp_path):
    run = read_run(write_run(tmp_path / "a", [], 0, 1))
    write_trace(run, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    own = [event for event in events if event.get("id") == "1"]
    assert [event["ts"] for event in own] == sorted(event["ts"] for event in own)
    opened, spans = [], {}
    for event in own:
        if event["ph"] == "b":
            opened.append(event)
        else:
            begun = opened.pop()
            assert begun["name"] == event["name"]
            spans[event["name"]] = (begun["ts"], event["ts"])
    assert spans == {
        "request 1": (1e6, 3e6), "queued": (1e6, 1.1e6), "prefill": (1.1e6, 1.5e6),
        "decode": (1.5e6, 3e6),
    }  # fmt: skip
