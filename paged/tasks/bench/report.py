"""What a benchmark found: rows for the table, and everything for `bench.json`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

NOT_MEASURED = "n/a"


@dataclass
class Row:
    """One measured quantity.

    Args:
        more_is_better: of rates; times are better the smaller they are.
        peer: the same quantity of a peer; None where there is none.
        floor: what the hardware allows; None where it is not known.
        details: further numbers, for `bench.json` only.
    """

    name: str
    unit: str
    ours: float | None
    peer: float | None = None
    floor: float | None = None
    more_is_better: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the peer."""
        return self._times(self.peer)

    @property
    def share(self) -> float | None:
        """The part of the floor that is reached; 1 is all that the hardware allows."""
        return self._times(self.floor)

    def _times(self, other: float | None) -> float | None:
        if not self.ours or not other:
            return None
        return self.ours / other if self.more_is_better else other / self.ours


@dataclass
class Report:
    """The rows of one benchmark, and what they were measured with.

    Args:
        check: what was compared before anything was timed.
        settings: sizes and options that the numbers depend on.
        ours: what stands above our figures.
        peer: the peer's name and version; "" for none.
        notes: sentences for the reader, below the table.
        details: anything else, for `bench.json`.
    """

    mode: str
    check: str
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    ours: str = "paged"
    peer: str = ""
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def table(self) -> Table:
        """A row a quantity. Columns that hold nothing stay, and say so."""
        shown = Table(box=None, pad_edge=False)
        shown.add_column(self.mode, no_wrap=True)
        shown.add_column("unit")
        for title in (self.ours, self.peer or "peer", "x peer", "floor", "of floor"):
            shown.add_column(title, justify="right", min_width=8)
        for row in self.rows:
            shown.add_row(
                row.name,
                row.unit,
                *(number(value) for value in (row.ours, row.peer)),
                NOT_MEASURED if row.ratio is None else f"{row.ratio:.2f}",
                number(row.floor),
                NOT_MEASURED if row.share is None else f"{row.share:.0%}",
            )
        return shown

    def write(self, folder: Path) -> None:
        """`bench.json`: all fields, and ratio and share of each row."""
        record = asdict(self)
        for row, entry in zip(self.rows, record["rows"]):
            entry |= {"ratio": row.ratio, "share": row.share}
        (folder / "bench.json").write_text(json.dumps(record, indent=2) + "\n")


def number(value: float | None) -> str:
    """Four significant digits, without an exponent."""
    if value is None:
        return NOT_MEASURED
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:.{digits}f}"
