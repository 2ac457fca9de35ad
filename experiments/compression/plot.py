"""Draws plot.png from the table of README.md: perplexity against needles found, with intervals.

    python experiments/compression/plot.py

Intervals of the shares are Wilson's (1927), 95%, of 80 needles as if they were independent.
"""

from math import sqrt
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

FOLDER = Path(__file__).parent
NEEDLES = 80
Z = 1.959964  # 97.5% quantile of a normal


def wilson(share: float) -> tuple[float, float]:
    """The interval of a share of NEEDLES."""
    scale = 1 + Z**2 / NEEDLES
    middle = (share + Z**2 / (2 * NEEDLES)) / scale
    half = Z * sqrt(share * (1 - share) / NEEDLES + Z**2 / (4 * NEEDLES**2)) / scale
    return middle - half, middle + half


def measured() -> dict[str, list[float]]:
    """{policy: [perplexity, needles at 50%, perplexity, needles at 25%]}; needles in %."""
    rows = {}
    for line in (FOLDER / "README.md").read_text().splitlines():
        cells = [cell.strip(" *`%") for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[1].replace(".", "").isdigit():
            rows[cells[0]] = [float(cell) for cell in cells[1:]]
    return rows


def main() -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, ratio, at in zip(axes, ("50%", "25%"), (0, 2)):
        for color, (name, row) in enumerate(measured().items()):
            perplexity, found = row[at], row[at + 1]
            low, high = (100 * end for end in wilson(round(found * NEEDLES / 100) / NEEDLES))
            label = name if at == 0 else None
            panel.plot(perplexity, found, "o", color=f"C{color}", label=label)
            panel.plot([perplexity, perplexity], [low, high], "-", color=f"C{color}")
        panel.set(title=f"{ratio} of the pages", xlabel="perplexity", ylim=(0, 100))
        panel.grid(alpha=0.3)
    axes[0].set(ylabel="needles found, %")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    figure.savefig(FOLDER / "plot.png", dpi=150)


if __name__ == "__main__":
    main()
