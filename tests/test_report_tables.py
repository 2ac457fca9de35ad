"""The tables of a report as a paper takes them: LaTeX, units."""

from pathlib import Path

import pytest

from paged.tasks.report.runs import Arm, Run
from paged.tasks.report.tables import compare, latex, with_unit


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
