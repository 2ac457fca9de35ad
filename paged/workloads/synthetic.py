"""Made-up traffic: lengths of given moments, arrivals of given burstiness, shared beginnings.

A session begins with one of `system_prompts` system prompts and goes on for some turns; the prompt
of each turn repeats all that was said before, as chat clients do.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from paged.workloads.arrivals import arrival_times, lengths
from paged.workloads.request import Request, Span
from paged.workloads.trace import Trace

LONGEST = 2048  # tokens of one message: what the models of 2023 could hold


class Synthetic(Trace):
    """Sessions of drawn lengths. The defaults of the means are ShareGPT's in PagedAttention
    (Kwon et al., SOSP 2023); the spreads are those of the ShareGPT V3 lengths below 2,048 tokens.

    Args:
        num_requests: turns in all.
        input_mean, input_cv: tokens of what the user says in a turn: mean, and deviation / mean.
        output_mean, output_cv: tokens of an answer.
        longest: a message is clipped to so many tokens (the means hold after clipping).
        rate: sessions a second; None starts all at once.
        cv, bursts: how evenly they come, see `arrival_times`.
        system_prompts: different system prompts, the first the most popular (Zipf); 0 for none.
        system_len: tokens of each.
        turns: mean number of turns of a session (geometric).
        think: mean seconds between an answer's expected end and the next turn (exponential).
        tpot: seconds a token that an answer is expected to take, for the time of the next turn.
        seed: of everything.
        shaping: see `Trace`.
    """

    def __init__(
        self,
        *,
        num_requests: int = 1000,
        input_mean: float = 161.31,
        input_cv: float = 2.0,
        output_mean: float = 337.99,
        output_cv: float = 0.8,
        longest: int = LONGEST,
        rate: float | None = 2.0,
        cv: float = 1.0,
        bursts: Sequence[float] | None = None,
        system_prompts: int = 0,
        system_len: int = 256,
        turns: float = 1.0,
        think: float = 10.0,
        tpot: float = 0.02,
        seed: int = 0,
        **shaping,
    ) -> None:
        if num_requests < 1:
            raise ValueError(f"workload.num_requests must be at least 1, got {num_requests}")
        if turns < 1:
            raise ValueError(f"workload.turns must be at least 1, got {turns}")
        if system_prompts < 0:
            raise ValueError(f"workload.system_prompts must be at least 0, got {system_prompts}")
        if think < 0 or tpot < 0:
            raise ValueError(f"workload.think and tpot must be at least 0, got {think}, {tpot}")
        # A stream for each thing drawn, so that changing the rate leaves the lengths as they are.
        turn, heads, ins, outs, gaps, thinks = (
            np.random.default_rng([seed, 10, stream]) for stream in range(6)
        )
        sessions = _session_sizes(turn, num_requests, turns)
        inputs = lengths(ins, num_requests, input_mean, input_cv, longest)
        outputs = lengths(outs, num_requests, output_mean, output_cv, longest)
        starts = arrival_times(gaps, len(sessions), rate, cv, bursts)
        pauses = thinks.exponential(think, num_requests) if think else np.zeros(num_requests)
        openings: list[tuple[Span, ...]] = [()] * len(sessions)
        if system_prompts:
            weight = 1 / np.arange(1, system_prompts + 1)
            drawn = heads.choice(system_prompts, size=len(sessions), p=weight / weight.sum())
            openings = [((int(name), system_len),) for name in drawn]
        rest = outputs * tpot + pauses  # from a turn's arrival to the next one's
        requests = _requests(sessions, openings, inputs, outputs, starts, rest, system_prompts)
        super().__init__(requests, seed=seed, **shaping)


def _session_sizes(rng: np.random.Generator, num_requests: int, turns: float) -> list[int]:
    sizes: list[int] = []
    left = num_requests
    while left:
        sizes.append(min(left, int(rng.geometric(1 / turns))))
        left -= sizes[-1]
    return sizes


def _requests(
    sessions: list[int],
    openings: list[tuple[Span, ...]],
    inputs: np.ndarray,
    outputs: np.ndarray,
    starts: np.ndarray,
    rest: np.ndarray,
    first_name: int,
) -> Iterator[Request]:
    """Turn by turn. Contents are numbered from `first_name`, two a turn."""
    number = 0
    for size, opening, start in zip(sessions, openings, starts.tolist()):
        spans, arrival = opening, start
        for _ in range(size):
            said, answered = first_name + 2 * number, first_name + 2 * number + 1
            spans = (*spans, (said, int(inputs[number])))
            yield Request(arrival, spans, int(outputs[number]), output=answered)
            spans = (*spans, (answered, int(outputs[number])))
            arrival += float(rest[number])
            number += 1
