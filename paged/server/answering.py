"""The way of a request that both kinds of completions take."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from fastapi import Request, Response
from pydantic import BaseModel

from paged.server.generation import Delta, Generation, Sample
from paged.server.service import Service, results
from paged.server.sse import EventStream


class Answer(Protocol):
    """From a request to the answer's bytes."""

    @property
    def max_tokens(self) -> int | None: ...

    def prepare(self) -> list[list[Sample]]:
        """Requests to the engine, each as its samples; tokenizes."""

    def whole(self, generation: Generation, deltas: list[Delta]) -> BaseModel:
        """The answer in one piece."""

    def events(self, generation: Generation) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""


async def respond(
    service: Service, body: Any, request: Request, kind: Callable[[Service, Any], Answer]
) -> Response:
    """Answer a checked body of the `kind`'s own type, streamed if it asks for that."""
    service.check(body)
    answer = kind(service, body)
    requests = await service.in_thread(answer.prepare)
    generation = service.begin(body, requests, answer.max_tokens)
    if body.stream:
        return EventStream(generation, answer.events(generation))
    deltas = await results(generation, request)
    completion = answer.whole(generation, deltas)
    return Response(completion.model_dump_json(), media_type="application/json")
