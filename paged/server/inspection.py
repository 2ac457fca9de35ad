"""What /debug shows and does, on the engine's side; between two steps, reading the device."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paged.engine import Engine
from paged.kernels.control.columns import COLUMN_NAMES
from paged.live_request import LiveRequest
from paged.state import FINISHED, FREE, PREEMPTED, RUNNING, WAITING, PagePool

STATUS = {
    FREE: "free",
    WAITING: "waiting",
    RUNNING: "running",
    FINISHED: "finished",
    PREEMPTED: "preempted",
}
SHOWN = (
    "prompt_len", "total_len", "max_len", "num_computed_tokens", "num_pages", "num_published",
    "num_dropped",
    "cached_len", "num_preemptions", "priority", "client",
)  # fmt: skip


def snapshot(engine: Engine, requests: Sequence[LiveRequest]) -> dict[str, Any]:
    """The engine's state as plain values: counts of pages, every slot in use, the queue.

    `requests` are the live ones. Waits for the steps in flight.
    """
    table = engine.requests
    owners = {live.slot: live.output.request_id for live in requests if live.slot >= 0}
    rows = [dict(zip(COLUMN_NAMES, row)) for row in table.columns.t().tolist()]
    block_table = table.block_table.tolist()
    slots = [
        {
            "slot": slot,
            "request": owners.get(slot),
            "status": STATUS.get(row["status"], row["status"]),
            **{name: row[name] for name in SHOWN},
            "block_table": block_table[slot][: row["num_pages"]],
        }
        for slot, row in enumerate(rows)
        if row["status"] != FREE
    ]
    queue = [live.output.request_id for live in requests if live.slot < 0]
    return {
        "num_steps": engine.num_steps,
        "pages": pages(engine.pool),
        "slots": slots,
        "queue": queue,
        "num_slots": engine.sizes.num_slots,
        "max_num_seqs": engine.sizes.max_num_seqs,
        "page_size": engine.sizes.page_size,
    }


def pages(pool: PagePool) -> dict[str, int]:
    """How many pages are in each state."""
    in_use, free = int((pool.ref_count > 0).sum()), pool.num_free()
    total = pool.sizes.num_pages
    return {"total": total, "free": free, "cached": total - free - in_use, "in_use": in_use}


def reset_prefix_cache(engine: Engine) -> dict[str, int]:
    """Evict every cached page. Pages that running requests hold stay, and stay findable."""
    before = pages(engine.pool)
    engine.device_step.eviction.evict(engine.pool, engine.sizes.num_pages)
    after = pages(engine.pool)
    return {"evicted_pages": before["cached"] - after["cached"], "pages_in_use": after["in_use"]}


class Profile:
    """A torch profile of the next steps.

    Args:
        number: of the call that waits for it.
        folder: where the trace goes.
        num_steps: steps to record.
    """

    def __init__(self, number: int, folder: str, num_steps: int) -> None:
        self.number, self.folder = number, Path(folder)
        self.num_steps, self._left = num_steps, num_steps
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()

    def step(self) -> bool:
        """Count a step; whether it was the last."""
        self._left -= 1
        return self._left <= 0

    def save(self) -> dict[str, Any]:
        """Write the trace; returns where."""
        self._profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"profile-{time.strftime('%Y%m%d-%H%M%S')}.json"
        self._profiler.export_chrome_trace(str(path))
        return {"path": str(path), "num_steps": self.num_steps}
