"""Goodput: requests a second that keep within an objective (DistServe, Zhong et al., OSDI 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = ("ttft", "tpot", "e2e")


def objective(goodput: Mapping[str, float | None]) -> dict[str, float]:
    """{ttft: seconds, ...} of the settings {ttft_ms: ..., ...}. Raises ValueError for others."""
    names = [f"{name}_ms" for name in NAMES]
    for name, limit in goodput.items():
        if name not in names:
            raise ValueError(f"task.goodput takes {', '.join(names)}, got {name!r}")
        if limit is not None and limit <= 0:
            raise ValueError(f"task.goodput.{name} must be positive, got {limit}")
    given = {name: limit for name, limit in goodput.items() if limit is not None}
    return {name.removesuffix("_ms"): limit / 1e3 for name, limit in given.items()}


def within(times: Mapping[str, float | None], limits: Mapping[str, float]) -> bool:
    """Whether no time is over its limit. An answer of one token has no tpot."""
    found = ((times[name], limit) for name, limit in limits.items())
    return all(value is None or value <= limit for value, limit in found)


def goodput(
    records: Sequence[Mapping[str, Any]], limits: Mapping[str, float], seconds: float, refused: int
) -> dict[str, float | None]:
    """`goodput` of the requests' records, and the share `attainment` of all that were sent.

    Both are None without limits. A request that failed or was refused keeps within none.
    """
    if not limits:
        return {"goodput": None, "attainment": None}
    good = sum(one["error"] is None and within(one, limits) for one in records)
    sent = len(records) + refused
    return {"goodput": good / max(seconds, 1e-12), "attainment": good / max(sent, 1)}
