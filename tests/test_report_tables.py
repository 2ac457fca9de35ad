"""The tables of a report as a paper takes them: LaTeX, units, and what has to be said below."""

from pathlib import Path

import pytest
from rich.console import Console

from paged.tasks.report.runs import Arm, Run
from paged.tasks.report.tables import compare, latex, with_unit
from paged.tasks.report.task import write_report


def arms(**values: list[float]) -> list[Arm]:
    """Arms whose runs have a time and a rate."""
    made = []
    for name, times in values.items():
        runs = {
            (seed, 0): Run(Path(name), seed, (name,), {"ttft_p50": t, "requests_per_s": 1 / t}, {})
            for seed, t in enumerate(times)
        }
        made.append(Arm(f"a_b={name}", (name,), runs))
    return made


FOUR = {"lru": [1.0, 2.0, 3.0, 4.0], "lfu": [0.5, 1.1, 1.4, 2.1]}


def test_latex_has_the_means_and_every_interval():
    cells = compare(arms(**FOUR), ["ttft_p50", "requests_per_s"])
    effect = next(cell for cell in cells if cell.effect is not None).effect
    text = latex(cells, 0.95)
    means, differences = text.split("% differences to a_b=lru")
    assert text.count("\\toprule") == text.count("\\end{tabular}") == 2
    assert " & a\\_b=lru & a\\_b=lfu \\\\" in means
    assert "ttft\\_p50, s & 2.5 & 1.275 (-49.0\\%" in means
    assert f"[{effect.low:.4g}, {effect.high:.4g}]" in differences
    assert "95\\% interval" in differences
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert {line.count("&") for line in body} == {2, 7}  # every row is as wide as its head


def test_the_wider_axis_goes_down():
    few, many = arms(**FOUR), arms(a=[1.0], b=[2.0], c=[3.0])
    assert "\\begin{tabular}{lrr}" in latex(compare(few, ["ttft_p50", "requests_per_s"]), 0.95)
    assert "\na\\_b=c & " in latex(compare(many, ["ttft_p50"]), 0.95)


def test_one_arm_has_nothing_to_differ_from():
    text = latex(compare(arms(a=[1.0]), ["ttft_p50"]), 0.95)
    assert text.count("\\toprule") == 1


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("ttft_p50", "ttft_p50, s"),
        ("queue_time_mean", "queue_time_mean, s"),
        ("output_tokens_per_s", "output_tokens, 1/s"),
        ("prefix_hit_rate", "prefix_hit_rate"),
        ("memory_split.free", "memory_split.free"),
        ("decode (ms)", "decode (ms)"),
    ],
)
def test_times_and_rates_have_units(metric, shown):
    assert with_unit(metric) == shown


def test_an_arm_that_refused_requests_does_not_just_look_fast(tmp_path):
    manifest = {"device": "a CPU", "git_commit": None}
    made = [
        Arm(name, (name,), {(seed, 0): Run(Path(), seed, (), metrics, manifest) for seed in (0, 1)})
        for name, metrics in (
            ("all", {"requests": 60.0, "refused": 0.0, "errors": 0.0, "e2e_mean": 2.0}),
            ("few", {"requests": 12.0, "refused": 48.0, "errors": 1.0, "e2e_mean": 1.0}),
        )
    ]
    write_report(made, tmp_path, Console(quiet=True), plots=False)
    text = (tmp_path / "table.md").read_text()
    assert "Note: few served 22 requests, refused 96 and failed 2;" in text
    assert "Note: all" not in text
