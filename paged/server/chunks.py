"""The answer as it grows: server-sent events of which only what changes is encoded anew."""

from collections.abc import AsyncIterator, Callable, Iterable

from paged.server.generation import Delta, Generation
from paged.server.protocol import StreamOptions
from paged.server.service import usage_of
from paged.server.sse import quoted


class Chunks:
    """The events of one stream.

    Args:
        kind: what each says that it is, its `object`.
        name: the answer's id.
        options: whether they tell the usage, at the end or all the time.
    """

    def __init__(
        self, kind: str, name: str, created: int, model: str, options: StreamOptions | None
    ) -> None:
        self._with_usage = options is not None and bool(options.include_usage)
        self._continuous = options is not None and bool(options.continuous_usage_stats)
        self._head = (
            f'data: {{"id":"{name}","object":"{kind}","created":{created},'
            f'"model":{quoted(model)},"choices":['
        )
        self._tail = '],"usage":null}\n\n' if self._with_usage else "]}\n\n"

    def encode(self, choices: Iterable[str]) -> bytes:
        """An event for each choice that has something to show."""
        return "".join(f"{self._head}{choice}{self._tail}" for choice in choices if choice).encode()

    async def of(
        self, generation: Generation, choice: Callable[[Delta], str]
    ) -> AsyncIterator[bytes]:
        """What a generation brings, every delta as the choice it makes; at the end the usage."""
        async for deltas in generation.batches():
            if self._continuous:
                self._tail = self._usage(generation)
            yield self.encode(map(choice, deltas))
        if self._with_usage:
            yield f"{self._head}{self._usage(generation)}".encode()

    def _usage(self, generation: Generation) -> str:
        return f'],"usage":{usage_of(generation).model_dump_json()}}}\n\n'


def ending(finish_reason: str | None, stop: int | str | None) -> str:
    """The members of a choice that say whether and why it has ended."""
    reason = "null" if finish_reason is None else f'"{finish_reason}"'
    stopped = quoted(stop) if isinstance(stop, str) else "null" if stop is None else stop
    return f'"finish_reason":{reason},"stop_reason":{stopped}'
