"""A workload through a simulated engine, request by request as they arrive."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paged.live_request import LiveRequest
from paged.request import SamplingParams
from paged.simulator.engine import TimedEngine
from paged.workloads.request import content_tokens

NAMELESS = 1 << 41  # contents of answers that the workload does not name


@dataclass
class Arrival:
    """A request on its way to the engine: when it comes, and what makes its tokens."""

    number: int
    time: float  # seconds
    prompt_len: int
    output_len: int
    vocab_size: int
    tokens: Callable[[], tuple[np.ndarray, np.ndarray]]  # prompt and answer
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def time_ns(self) -> int:
        """When it comes, on the virtual clock."""
        return round(self.time * 1e9)

    def params(self, answer: np.ndarray) -> SamplingParams:
        """Draws exactly the answer."""
        known = {"max_tokens": len(answer), "ignore_eos": True, "detokenize": False}
        own = {"temperature": 0.0, **self.sampling, **known}
        return SamplingParams(forced_token_ids=answer.tolist(), **own)


def arrivals(workload: Iterable[Any], sampling: SamplingParams) -> Iterator[Arrival]:
    """The items of a workload, in its order.

    A `Request` brings times, lengths and answers. Another item comes at 0, its text stands for as
    many tokens as it has bytes, and its answer has its max_tokens, or those of `sampling`.
    """
    for number, item in enumerate(workload):
        if hasattr(item, "output_token_ids"):
            yield _of_request(number, item)
            continue
        prompt = item.prompt.encode() if isinstance(item.prompt, str) else item.prompt
        own = dict(item.sampling)
        output_len = own.get("max_tokens", sampling.max_tokens)
        if output_len is None:
            raise ValueError("a simulated request needs max_tokens, the length of its answer")
        yield _of_prompt(number, list(prompt), output_len, own)


def _of_request(number: int, request: Any) -> Arrival:
    own = {"client": request.client, "priority": request.priority}
    if request.predicted_len is not None:
        own["predicted_tokens"] = request.predicted_len
    if request.deadline is not None:
        own["deadline"] = request.deadline

    def tokens() -> tuple[np.ndarray, np.ndarray]:
        return request.prompt_token_ids(), request.output_token_ids()

    return Arrival(
        number=number,
        time=request.arrival,
        prompt_len=request.prompt_len,
        output_len=request.output_len,
        vocab_size=request.vocab_size,
        tokens=tokens,
        sampling=own,
    )


def _of_prompt(number: int, prompt: list[int], output_len: int, own: dict[str, Any]) -> Arrival:
    vocab_size = max(2000, max(prompt, default=0) + 1)

    def tokens() -> tuple[np.ndarray, np.ndarray]:
        answer = content_tokens(((NAMELESS + number, output_len),), vocab_size)
        return np.array(prompt, np.int32), answer

    return Arrival(number, 0.0, len(prompt), output_len, vocab_size, tokens, own)


def feed(
    engine: TimedEngine,
    requests: Iterable[Arrival],
    refuse: Callable[[Arrival, str], None],
) -> Iterator[LiveRequest]:
    """Run the requests to their end; yields each as it ends.

    A request enters with the first step that is launched after it came. Where nothing is left to
    do, the clock jumps to the next arrival. One that can never be served goes to `refuse` with the
    reason.
    """
    coming = deque(sorted(requests, key=lambda arrival: arrival.time_ns))
    clock = engine.virtual
    while True:
        while coming and (coming[0].time_ns <= clock.ns or not engine.has_unfinished):
            clock.ns = max(clock.ns, coming[0].time_ns)
            _submit(engine, coming.popleft(), refuse)
        if not engine.has_unfinished:
            return
        for live in engine.step():
            if live.output.finished:
                yield live


def _submit(engine: TimedEngine, arrival: Arrival, refuse: Callable[[Arrival, str], None]) -> None:
    try:
        tokens, answer = arrival.tokens()
        prompt: Any = tokens  # an array is taken as it is
        engine.submit_at(
            arrival.time, prompt, arrival.params(answer), request_id=str(arrival.number)
        )
    except ValueError as error:
        refuse(arrival, str(error))
