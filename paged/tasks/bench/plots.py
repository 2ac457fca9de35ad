"""Pictures of a report: latency over batch or load, and the roofline of kernels."""

from pathlib import Path
from typing import Any

from paged.tasks.bench.report import Report, Row

MISSING = "no plots: matplotlib is not installed (pip install 'paged[analysis]')"


def draw(report: Report, folder: Path) -> list[Path]:
    """The plots that the report has data for. Without matplotlib, none, and a note says why."""
    drawings = {"latency": _latency, "kernels": _roofline, "serve": _load}
    if report.mode not in drawings or not report.rows:
        return []
    try:
        import matplotlib
    except ImportError:
        report.notes.append(MISSING)
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    drawn = drawings[report.mode](report, axes)
    path = folder / f"{report.mode}.png"
    if drawn:
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return [path] if drawn else []


def _latency(report: Report, axes: Any) -> bool:
    """Milliseconds of a decode step over the batch, a line for each context."""
    steps = [row for row in report.rows if row.unit == "ms/step"]
    for color, context in enumerate(sorted({row.details["context"] for row in steps})):
        own = [row for row in steps if row.details["context"] == context]
        for label, style, value in (
            ("paged", "o-", lambda row: row.ours),
            (report.peer, "s--", lambda row: row.peer),
            ("floor", ":", lambda row: row.floor),
        ):
            points = [(row.details["batch"], value(row)) for row in own if value(row) is not None]
            if points:
                axes.plot(*zip(*points), style, color=f"C{color}", label=f"{label}, {context} in")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="ms a decode step")
    batches = sorted({row.details["batch"] for row in steps})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_title(str(report.settings.get("model", "")))
    return bool(steps)


def _load(report: Report, axes: Any) -> bool:
    """Latency over load: requests a second or, if that is the same everywhere, how many at once."""
    points = report.details["points"]
    swept = "rate" if len({point["rate"] for point in points}) > 1 else "concurrency"
    loads = {point["name"]: point[swept] for point in points if point[swept] is not None}
    finite = {name: load for name, load in loads.items() if load != "inf"}
    if len(set(finite.values())) < 2:
        return False
    for color, quantity in enumerate(("ttft p50", "ttft p99", "tpot p50", "tpot p99")):
        own = [row for row in report.rows if row.details["quantity"] == quantity]
        for label, style, value in (
            (report.ours, "o-", lambda row: row.ours),
            (report.peer, "s--", lambda row: row.peer),
        ):
            line = [(finite[row.details["point"]], value(row)) for row in own
                    if row.details["point"] in finite and value(row) is not None]  # fmt: skip
            if line:
                axes.plot(
                    *zip(*sorted(line)), style, color=f"C{color}", label=f"{label}: {quantity}"
                )
    for color, name in ((0, "ttft"), (2, "tpot")):
        limit = report.details["objective"].get(name)
        if limit is not None:
            axes.axhline(1e3 * limit, color=f"C{color}", ls=":", label=f"objective: {name}")
    xlabel = "requests a second" if swept == "rate" else "requests at once"
    axes.set(xlabel=xlabel, ylabel="ms", yscale="log")
    axes.set_title(str(report.settings.get("model", "")))
    return True


def _roofline(report: Report, axes: Any) -> bool:
    """Rate over operations a byte, under the two roofs of the device; nothing without a GPU."""
    bandwidth = report.settings.get("bandwidth_bytes_per_s")
    peak = report.settings.get("flops")
    rows = [row for row in report.rows if row.details.get("flops") and row.ours]
    if bandwidth is None or peak is None or not rows:
        return False

    def intensity(row: Row) -> float:
        return row.details["flops"] / row.details["bytes"]

    lowest = min(map(intensity, rows)) / 2
    highest = max([*map(intensity, rows), peak / bandwidth]) * 2
    roof = [lowest, peak / bandwidth, highest]
    axes.plot(roof, [min(x * bandwidth, peak) / 1e12 for x in roof], "k-", label="measured roof")
    for label, marker, value in (
        ("paged", "o", lambda row: row.ours),
        (report.peer, "x", lambda row: row.peer),
    ):
        points = [(intensity(row), row.details["flops"] / value(row) / 1e6)
                  for row in rows if value(row)]  # fmt: skip
        if points:
            axes.plot(*zip(*points), marker, label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="TFLOP/s")
    axes.set_title(str(report.settings.get("model", "")))
    return True
