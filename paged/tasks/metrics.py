"""The numbers of a run, gathered step by step without touching the step itself."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.table import Table

from paged.engine import Engine, StepStats
from paged.kernels.control.columns import COLUMN_NAMES
from paged.live_request import LiveRequest

PERCENTILES = (50, 90, 99)


class RunMetrics:
    """Sums over steps, and a snapshot of memory where most pages were in use.

    A step that sets a new peak has the request table copied to the host, behind the steps in flight
    and without waiting for them: the snapshot may be that many steps late, but is one state.
    """

    def __init__(self, engine: Engine) -> None:
        self.requests, self.pool, self.sizes = engine.requests, engine.pool, engine.sizes
        self.kv = engine.kv
        self.num_steps = self.computed_tokens = self.sequences = 0
        self.preemptions = self.cached_tokens = self.recomputed_tokens = 0
        self.swapped_out_tokens = self.swapped_in_tokens = 0
        self.draft_tokens = self.accepted_tokens = 0
        self.peak_pages = 0
        pinned = self.requests.columns.is_cuda
        self._columns = torch.zeros(
            self.requests.columns.shape, dtype=torch.int32, pin_memory=pinned
        )
        self._counters = torch.zeros(self.pool.counters.shape, dtype=torch.int64, pin_memory=pinned)

    def begin(self) -> None:
        self.started = time.perf_counter()

    def step(self, stats: StepStats) -> None:
        self.num_steps += 1
        self.computed_tokens += stats.num_tokens
        self.sequences += stats.num_seqs
        self.preemptions += stats.num_preempted
        self.cached_tokens += stats.cached_tokens
        # What comes back from host memory is not computed again.
        self.recomputed_tokens += stats.recomputed_tokens - stats.swapped_in_tokens
        self.swapped_out_tokens += stats.swapped_out_tokens
        self.swapped_in_tokens += stats.swapped_in_tokens
        self.draft_tokens += stats.num_draft_tokens
        self.accepted_tokens += stats.num_accepted_tokens
        used = self.sizes.num_pages - stats.free_pages - stats.cached_pages
        if used > self.peak_pages:
            self.peak_pages = used
            self._columns.copy_(self.requests.columns, non_blocking=True)
            self._counters.copy_(self.pool.counters, non_blocking=True)

    def line(self, stats: StepStats) -> str:
        """What the progress line says beside the finished requests."""
        used = self.sizes.num_pages - stats.free_pages - stats.cached_pages
        rate = self.computed_tokens / max(time.perf_counter() - self.started, 1e-9)
        return (
            f"{stats.num_running} running, {stats.num_waiting} waiting, "
            f"{used}/{self.sizes.num_pages} pages, {rate:.0f} tokens/s"
        )

    def summary(self, requests: Sequence[LiveRequest], num_refused: int = 0) -> dict[str, Any]:
        """The contents of `metrics.json`: seconds, tokens, pages, shares of 1."""
        seconds = time.perf_counter() - self.started
        outputs = [live.output for live in requests]
        prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        output_tokens = sum(output.metrics.num_output_tokens for output in outputs)
        # Every output of a request is admitted with its prompt, and after a preemption again,
        # with the tokens it lost to find or to compute.
        admitted_tokens = self.recomputed_tokens + sum(
            len(one.prompt_ids) for live in requests for one in live.group
        )
        summary: dict[str, Any] = {
            "requests": len(outputs),
            "refused": num_refused,
            "errors": sum(output.error is not None for output in outputs),
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "seconds": seconds,
            "output_tokens_per_s": output_tokens / seconds,
            "requests_per_s": len(outputs) / seconds,
            "steps": self.num_steps,
            "mean_batch_size": self.sequences / max(self.num_steps, 1),
        }
        for name in ("ttft", "tpot", "e2e"):
            values = [getattr(output.metrics, name) for output in outputs]
            present = [value for value in values if value is not None]
            for q in PERCENTILES:
                value = float(np.percentile(present, q)) if present else None
                summary[f"{name}_p{q}"] = value
        summary |= {
            "computed_tokens": self.computed_tokens,
            "prefix_hit_tokens": self.cached_tokens,
            "prefix_hit_rate": self.cached_tokens / max(admitted_tokens, 1),
            "preemptions": self.preemptions,
            "recomputed_tokens": self.recomputed_tokens,
            "swapped_out_tokens": self.swapped_out_tokens,
            "swapped_in_tokens": self.swapped_in_tokens,
            "draft_tokens": self.draft_tokens,
            "accepted_tokens": self.accepted_tokens,
            "num_pages": self.sizes.num_pages,
            "page_size": self.sizes.page_size,
            "peak_pages": self.peak_pages,
            "memory_split": self._memory_split(requests),
        }
        return summary

    def _memory_split(self, requests: Sequence[LiveRequest]) -> dict[str, float]:
        """Shares of the pool when most pages were in use, see `KVManager.memory_split`: reserved is
        what the requests went on to fill.
        """
        if self.requests.columns.is_cuda:
            torch.cuda.synchronize(self.requests.columns.device)  # the copies; the run is over
        columns = dict(zip(COLUMN_NAMES, self._columns))
        snapshot: Any = SimpleNamespace(sizes=self.sizes, columns=self._columns, **columns)
        final = {one.ticket: one.num_tokens for live in requests for one in live.group}
        ends = [final.get(ticket, 0) for ticket in columns["arrival"].tolist()]
        slots = self.kv.memory_split(snapshot, self._counters, torch.tensor(ends))
        total = self.sizes.num_pages * self.sizes.page_size
        return {name: count / total for name, count in slots.items()}


def table(summary: dict[str, Any]) -> Table:
    """The summary for the eye."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(style="cyan")
    shown.add_column()
    refused = f", {summary['refused']} refused" if summary["refused"] else ""
    errors = f", {summary['errors']} failed" if summary["errors"] else ""
    shown.add_row("requests", f"{summary['requests']}{errors}{refused}")
    shown.add_row("prompt tokens", f"{summary['prompt_tokens']}")
    shown.add_row(
        "output tokens",
        f"{summary['output_tokens']} in {summary['seconds']:.2f} s, "
        f"{summary['output_tokens_per_s']:.1f} tokens/s",
    )
    shown.add_row(
        "steps", f"{summary['steps']}, {summary['mean_batch_size']:.1f} sequences a step on average"
    )
    for name in ("ttft", "tpot"):
        times = (summary[f"{name}_p{q}"] for q in PERCENTILES)
        text = " / ".join("-" if value is None else f"{value * 1000:.1f}" for value in times)
        shown.add_row(name, f"{text} ms (p50 / p90 / p99)")
    shown.add_row(
        "prefix hits",
        f"{summary['prefix_hit_tokens']} tokens, {summary['prefix_hit_rate']:.1%} of the prompts",
    )
    shown.add_row(
        "preemptions",
        f"{summary['preemptions']}, {summary['recomputed_tokens']} tokens dropped",
    )
    if summary["swapped_out_tokens"]:
        shown.add_row(
            "swapped tokens",
            f"{summary['swapped_out_tokens']} out, {summary['swapped_in_tokens']} in",
        )
    if summary["draft_tokens"]:
        drafted, accepted = summary["draft_tokens"], summary["accepted_tokens"]
        shown.add_row(
            "draft tokens", f"{drafted}, {accepted} accepted, {accepted / drafted:.1%} of them"
        )
    shown.add_row(
        "peak pages",
        f"{summary['peak_pages']} of {summary['num_pages']}, {summary['page_size']} tokens each",
    )
    split = summary["memory_split"]
    parts = [f"{name.replace('_', ' ')} {share:.1%}" for name, share in split.items()]
    shown.add_row("memory then", f"{', '.join(parts[:3])},\n{', '.join(parts[3:])}")
    return shown
