"""What every trace shares: which part of it is used, how fast it comes, and what is added to it.

A loader reads its file into `Request`s and hands them over with the keys it was given.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paged.workloads.request import Request

FOLDERS = ("data", "../shared/data")  # looked into after $PAGED_DATA


class Trace:
    """Requests in order of arrival.

    Args:
        requests: as the file has them.
        limit: only the first so many.
        part: of the requests in a row, `limit` each, take this one: 0 is the first. With
            `workload.part='${seed}'` every seed replays another stretch of the trace.
        fraction: keep each request with this probability.
        max_len: drop requests with more tokens, prompt and output.
        max_output_len: cut answers to so many tokens; 1 leaves a node that fills prompts.
        rate: requests a second on average: all arrivals are stretched evenly.
        rate_scale: the same by a factor, 2 is twice as fast.
        num_clients: draw a client for each request; None keeps the trace's.
        num_priorities: draw a priority for each request; None keeps the trace's.
        prediction_error: predict each output length, wrong by a log-normal factor of this
            sigma; 0 predicts it exactly, None does not predict.
        deadline: seconds from arrival to the objective, [low, high] draws it evenly.
        vocab_size: token ids are below it; the model's must not be smaller.
        seed: of all that is drawn. What one key draws does not depend on the other keys.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        /,
        *,
        limit: int | None = None,
        part: int = 0,
        fraction: float = 1.0,
        max_len: int | None = None,
        max_output_len: int | None = None,
        rate: float | None = None,
        rate_scale: float = 1.0,
        num_clients: int | None = None,
        num_priorities: int | None = None,
        prediction_error: float | None = None,
        deadline: float | Sequence[float] | None = None,
        vocab_size: int = 2000,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("limit", limit), ("max_len", max_len), ("max_output_len", max_output_len),
            ("num_clients", num_clients), ("num_priorities", num_priorities),
            ("vocab_size", vocab_size),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise ValueError(f"workload.{name} must be at least 1, got {value}")
        if part < 0 or (part and limit is None):
            raise ValueError(
                f"workload.part counts stretches of workload.limit requests from 0 up, got {part} "
                f"with limit {limit}"
            )
        if not 0 < fraction <= 1:
            raise ValueError(f"workload.fraction must be in (0, 1], got {fraction}")
        for name, number in (("rate", rate), ("rate_scale", rate_scale)):
            if number is not None and number <= 0:
                raise ValueError(f"workload.{name} must be positive, got {number}")
        if prediction_error is not None and prediction_error < 0:
            raise ValueError(
                f"workload.prediction_error must be at least 0, got {prediction_error}"
            )
        ordered = sorted(requests, key=lambda request: request.arrival)
        drawn = np.random.default_rng([seed, 0]).random(len(ordered)) < fraction
        kept = [r for r, keep in zip(ordered, drawn) if keep and _fits(r, max_len)]
        if limit is not None:
            kept = kept[part * limit : (part + 1) * limit]
        if not kept:
            raise ValueError("workload: no request is left; raise fraction or max_len, lower part")
        if max_output_len is not None:
            kept = [replace(r, output_len=min(r.output_len, max_output_len)) for r in kept]
        self.requests = [
            replace(request, vocab_size=vocab_size, arrival=arrival)
            for request, arrival in zip(kept, _arrivals(kept, rate, rate_scale))
        ]
        count = len(kept)
        if num_clients is not None:
            self._set("client", np.random.default_rng([seed, 1]).integers(num_clients, size=count))
        if num_priorities is not None:
            draw = np.random.default_rng([seed, 2]).integers(num_priorities, size=count)
            self._set("priority", draw)
        if prediction_error is not None:
            factor = np.exp(prediction_error * np.random.default_rng([seed, 3]).normal(size=count))
            lengths = np.array([request.output_len for request in kept])
            self._set("predicted_len", np.maximum(np.rint(lengths * factor), 1).astype(int))
        if deadline is not None:
            low, high = _bounds(deadline)
            self._set("deadline", np.random.default_rng([seed, 4]).uniform(low, high, count))

    def _set(self, field: str, values: np.ndarray) -> None:
        self.requests = [
            replace(request, **{field: value})
            for request, value in zip(self.requests, values.tolist())
        ]

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


def _fits(request: Request, max_len: int | None) -> bool:
    return max_len is None or request.prompt_len + request.output_len <= max_len


def _arrivals(requests: list[Request], rate: float | None, rate_scale: float) -> list[float]:
    """The first comes at 0; the others as far behind it as the rate says."""
    first = requests[0].arrival
    span = requests[-1].arrival - first
    if rate is not None:
        if span == 0 and len(requests) > 1:
            raise ValueError("workload.rate needs arrival times, and these requests have none")
        rate_scale *= rate * span / max(1, len(requests) - 1)
    if rate_scale == 0:  # a single request
        rate_scale = 1.0
    return [(request.arrival - first) / rate_scale for request in requests]


def _bounds(deadline: float | Sequence[float]) -> tuple[float, float]:
    bounds = (deadline, deadline) if isinstance(deadline, int | float) else tuple(deadline)
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(
            f"workload.deadline must be seconds from 0 up or [low, high], got {deadline!r}"
        )
    return bounds[0], bounds[1]


def find_file(path: str | None, usual: str, origin: str) -> Path:
    """The file of a trace. Raises ValueError with its `origin` if it is not there.

    Args:
        path: where the user says it is; None looks for `usual` in $PAGED_DATA, ./data and
            ../shared/data.
    """
    if path is not None:
        places = [Path(path).expanduser()]
    else:
        folders = [os.environ.get("PAGED_DATA"), *FOLDERS]
        places = [Path(folder).expanduser() / usual for folder in folders if folder]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ValueError(f"workload.path: there is no file {looked}; get it from {origin}")
