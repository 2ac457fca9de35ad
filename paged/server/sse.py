"""Server-sent events, written as bytes."""

import asyncio
from collections.abc import AsyncIterator
from json.encoder import encode_basestring  # C where there is one; leaves characters as they are

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from paged.server.errors import ApiError
from paged.server.generation import Generation

DONE = b"data: [DONE]\n\n"


def quoted(text: str) -> str:
    """`text` as JSON."""
    return encode_basestring(text)


class EventStream(Response):
    """The answer of a streaming request.

    Args:
        generation: what is streamed; closed when the client goes.
        events: encoded events, several at a time.
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.generation, self.events = generation, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(_until_gone(receive, self.generation))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for data in self.events:
                    if data:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            except ApiError as error:
                body = b"data: " + error.body() + b"\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": DONE, "more_body": False})
        finally:
            watch.cancel()
            self.generation.close()


async def _until_gone(receive: Receive, generation: Generation) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.close()
