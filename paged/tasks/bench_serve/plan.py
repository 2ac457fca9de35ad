"""What is sent and when: bodies of requests, and arrival times."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from paged.request import SamplingParams
from paged.tasks.bench_serve.client import Planned
from paged.workloads.arrivals import arrival_times

Endpoint = Literal["completions", "chat"]
Arrivals = Literal["gamma", "trace"]
# Of SamplingParams; sent where they differ from its defaults.
OPENAI_FIELDS = ("top_p", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop")
VLLM_FIELDS = (
    "top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "bad_words",
)  # fmt: skip
POLICY_FIELDS = ("priority", "client", "predicted_tokens", "deadline")
DEFAULTS = SamplingParams()


@dataclass(frozen=True)
class Point:
    """One load: requests a second (inf: all at once) and how many may run at once (None: all)."""

    rate: float | None  # None: the workload's own times
    concurrency: int | None

    @property
    def name(self) -> str:
        rate = "trace" if self.rate is None else f"{self.rate:g}/s"
        return rate if self.concurrency is None else f"{rate}, {self.concurrency} at once"


@dataclass(frozen=True)
class Bodies:
    """How a request becomes the body of a POST.

    Args:
        model: its name to the server.
        endpoint: completions or chat.
        greedy: temperature 0 whatever the sampling says.
        ignore_eos: go on to max_tokens; no part of OpenAI's API, but of vLLM's and ours.
        policy_fields: send what scheduling policies read, which only our server knows.
        extra: further fields of every body.
    """

    model: str
    endpoint: Endpoint
    greedy: bool
    ignore_eos: bool
    policy_fields: bool
    extra: Mapping[str, Any]

    def of(self, item: Any, sampling: SamplingParams) -> dict[str, Any]:
        """The body for an item of a workload. Raises ValueError if the endpoint cannot take it."""
        params = dataclasses.replace(sampling, **item.sampling)
        body: dict[str, Any] = {"model": self.model, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self.endpoint == "completions":
            body["prompt"] = item.prompt
        elif isinstance(item.prompt, str):
            body["messages"] = [{"role": "user", "content": item.prompt}]
        else:
            raise ValueError(
                "task.endpoint=chat needs prompts as text, and this workload has token ids; "
                "use task.endpoint=completions or workload=prompts"
            )
        body["max_tokens"] = params.max_tokens
        body["temperature"] = 0.0 if self.greedy else params.temperature
        for name in OPENAI_FIELDS + VLLM_FIELDS + POLICY_FIELDS * self.policy_fields:
            value = getattr(params, name)
            if value != getattr(DEFAULTS, name):
                body[name] = value
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | dict(self.extra)


def planned(
    items: Sequence[Any], sampling: SamplingParams, bodies: Bodies, times: Sequence[float]
) -> list[Planned]:
    """The requests in the order in which they are due."""
    order = sorted(range(len(items)), key=lambda place: times[place])
    return [
        Planned(place, times[place], json.dumps(bodies.of(items[place], sampling)).encode())
        for place in order
    ]


def due_times(
    items: Sequence[Any], arrivals: Arrivals, rate: float | None, cv: float, seed: int
) -> list[float]:
    """Seconds from the start for every item.

    gamma: gaps with a coefficient of variation `cv`. trace: the items' own times, all stretched
    evenly to the rate if there is one. Raises ValueError for a trace without times.
    """
    if arrivals == "gamma":
        finite = None if rate is None or math.isinf(rate) else rate
        return arrival_times(np.random.default_rng(seed), len(items), finite, cv).tolist()
    times = [getattr(item, "arrival", 0.0) for item in items]
    first, span = min(times), max(times) - min(times)
    if span == 0 and len(items) > 1:
        raise ValueError(
            "task.arrivals=trace needs a workload with arrival times, as azure, mooncake, burstgpt "
            "or synthetic with a rate; this one comes all at once"
        )
    scale = 1.0
    if rate is not None and span > 0:
        scale = (len(items) - 1) / rate / span  # 0 for an infinite rate
    return [(time - first) * scale for time in times]
