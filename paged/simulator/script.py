"""A run's requests as the device takes them: what would be posted step by step, all at once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from paged.intake import Limits
from paged.request import SamplingParams
from paged.simulator.simulation import Arrival


@dataclass(frozen=True)
class Entry:
    """What is kept on the host of a request that the device has."""

    number: int  # of its workload
    time: float  # of arrival, seconds
    prompt_len: int
    params: SamplingParams


@dataclass
class Script:
    """Requests in order of arrival; lists go together."""

    entries: list[Entry] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)  # ns
    commands: list[tuple[int, ...]] = field(default_factory=list)  # but for their slots
    tokens: list[np.ndarray] = field(default_factory=list)  # each prompt and its answer


def write_script(
    requests: Iterable[Arrival],
    limits: Limits,
    refuse: Callable[[Arrival, str], None],
    *,
    shares: bool,
) -> Script:
    """The script of the requests; what can never be served goes to `refuse` with the reason."""
    script, written = Script(), 0
    for arrival in sorted(requests, key=lambda one: one.time_ns):
        try:
            prompt, answer = arrival.tokens()
            params = arrival.params(answer)
            if params.num_outputs > 1 or params.prompt_logprobs is not None:
                raise ValueError(
                    "n, best_of and prompt_logprobs are not simulated on a GPU; use device=cpu"
                )
            live = limits.accept(
                prompt, params, str(arrival.number), None, ticket=len(script.entries)
            )
        except ValueError as error:
            refuse(arrival, str(error))
            continue
        live.output.metrics.arrival_time = arrival.time
        submission = live.submission(0.0, 0, shares=shares)
        params.forced_token_ids = []  # the device has them
        script.entries.append(Entry(arrival.number, arrival.time, len(live.prompt_ids), params))
        script.arrivals.append(arrival.time_ns)
        script.commands.append(submission.words(written))
        script.tokens.append(live.sent_ids)
        written += len(live.sent_ids)
    return script
