"""What is known of a step: while it runs on the device, and when the host has read its events."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from paged.mailbox import Report


class Flight(NamedTuple):
    """A step on the device whose events the host has not read."""

    number: int
    capacity: int
    prompt_tokens: int  # of its tokens, those that are probably of prompts
    stream: torch.cuda.Stream | None


def describe_loss(lost: Flight, in_flight: Iterable[Flight], names: Sequence[str]) -> str:
    """What a step took with it whose events cannot come any more; `names` of live requests."""
    steps = ", ".join(f"{flight.number} (capacity {flight.capacity})" for flight in in_flight)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (
        f"lost step {lost.number} with capacity {lost.capacity}; "
        f"steps in flight: {steps or 'none'}; "
        f"requests on the device: {len(names)} ({shown or 'none'})"
    )


@dataclass(frozen=True)
class StepStats:
    """What one step did. Pages are counted after it; times are on the host's clock.

    `num_keys` is the sum of the sequences' lengths, what attention reads a layer.
    `seconds` is how long `Engine.step` took, `host_seconds` how much of it the host worked and did
    not wait for the device.
    """

    step: int
    num_tokens: int
    num_seqs: int
    num_keys: int
    free_pages: int
    cached_pages: int
    shortfall: int
    num_running: int
    num_waiting: int
    num_preempted: int
    num_admitted: int
    cached_tokens: int
    recomputed_tokens: int
    swapped_out_tokens: int
    swapped_in_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    capacity: int
    seconds: float
    host_seconds: float

    @classmethod
    def of(
        cls, report: Report, flight: Flight, *, seconds: float, host_seconds: float
    ) -> "StepStats":
        header = report.header
        return cls(
            step=flight.number,
            num_tokens=header.num_tokens,
            num_seqs=header.num_seqs,
            num_keys=header.num_keys,
            free_pages=header.free_pages,
            cached_pages=header.cached_pages,
            shortfall=header.shortfall,
            num_running=header.num_running,
            num_waiting=header.num_waiting,
            num_preempted=header.num_preempted,
            num_admitted=header.num_admitted,
            cached_tokens=sum(report.cached_tokens) - header.num_swapped_in,
            recomputed_tokens=sum(report.dropped_tokens),
            swapped_out_tokens=header.num_swapped_out,
            swapped_in_tokens=header.num_swapped_in,
            num_draft_tokens=header.num_draft_tokens,
            num_accepted_tokens=header.num_accepted_tokens,
            capacity=flight.capacity,
            seconds=seconds,
            host_seconds=host_seconds,
        )
