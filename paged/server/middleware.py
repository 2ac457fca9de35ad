"""What every request passes before a handler sees it. Plain ASGI: streams are not wrapped."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paged.server.errors import ApiError

OPEN_PATHS = ("/health", "/version", "/metrics")  # for probes and scrapers, which have no key


class RequireKey:
    """Refuses requests without one of the keys, `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            matches = [hmac.compare_digest(given.encode(), key) for key in self.keys]
            if kind.lower() != "bearer" or not any(matches):
                error = ApiError(
                    "invalid or missing API key; send Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


class LimitBody:
    """Refuses bodies over `max_bytes`, by their declared length or while they come in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            await self._too_large().response()(scope, receive, send)
            return
        received, refused = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            return message

        async def answer(message: Message) -> None:
            """The application takes the error for a broken body; the client gets ours."""
            nonlocal refused
            if received <= self.max_bytes:
                await send(message)
            elif not refused:
                refused = True
                await self._too_large().response()(scope, receive, send)

        await self.app(scope, counted, answer)

    def _too_large(self) -> ApiError:
        return ApiError(
            f"the body is larger than {self.max_bytes} bytes", status=413, code="body_too_large"
        )
