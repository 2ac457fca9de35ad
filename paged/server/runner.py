"""Starting and ending the server: the engine's process, uvicorn, signals."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from paged.llm import LLM
from paged.server.app import create_app
from paged.server.client import EngineClient
from paged.server.metrics import Metrics
from paged.server.prompts import PromptReader
from paged.server.service import Service
from paged.server.token_text import TokenText
from paged.server.tool_formats import format_named, format_of_template

KEY_VARIABLE = "PAGED_API_KEY"


@dataclass(frozen=True)
class ServerSettings:
    """How to serve; see `paged.tasks.serve` for what each means."""

    names: tuple[str, ...]
    host: str
    port: int
    api_keys: tuple[str, ...]
    max_queued: int | None
    max_body_bytes: int
    drain_seconds: float
    chat_template: str | None
    tool_parser: str | dict[str, Any] | None
    metrics_alias: str | None
    profile_dir: str | None
    num_tokenizer_threads: int
    debug: bool
    access_log: bool


def serve_forever(build: Callable[[], LLM], settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ValueError if the settings are at fault, RuntimeError
    if the engine fails."""
    listener = _listen(settings.host, settings.port)  # before minutes of loading a model
    template = _chat_template(settings.chat_template)
    form = format_named(settings.tool_parser)
    client = EngineClient(
        build,
        max_queued=settings.max_queued,
        profile_dir=settings.profile_dir,
        metrics=Metrics(settings.names[0], settings.metrics_alias),
    )
    info = client.start()
    reader = PromptReader(info.tokenizer, info.sizes, info.limits.vocab_size, template)
    threads = ThreadPoolExecutor(settings.num_tokenizer_threads, thread_name_prefix="tokenize")
    service = Service(
        client=client,
        reader=reader,
        token_text=TokenText(info.tokenizer),
        names=settings.names,
        threads=threads,
        tool_format=form or format_of_template(reader.chat_template),
    )
    app = create_app(
        service,
        api_keys=settings.api_keys,
        max_body_bytes=settings.max_body_bytes,
        debug=settings.debug,
    )
    server = Server(
        uvicorn.Config(
            app,
            log_level="info" if settings.access_log else "warning",
            access_log=settings.access_log,
            lifespan="on",
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
            server_header=False,
        )
    )
    client.on_failure = server.leave

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        client.attach(asyncio.get_running_loop())
        host, port = listener.getsockname()[:2]
        print(f"paged: serving {settings.names[0]} at http://{host}:{port}", file=sys.stderr)
        yield

    app.router.lifespan_context = lifespan
    try:
        server.run(sockets=[listener])
    finally:
        client.stop()
        threads.shutdown(wait=False, cancel_futures=True)
        listener.close()
    if client.failure is not None:
        raise RuntimeError(f"the engine has stopped: {client.failure}")


class Server(uvicorn.Server):
    """uvicorn, which on a signal stops listening, lets what runs end, and returns in peace.

    A second signal drops what still runs.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    def leave(self) -> None:
        """The engine is gone: end."""
        self.should_exit = True


def keys_of(api_key: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The accepted keys; without a setting, those in the environment, by commas."""
    if api_key is None:
        return tuple(filter(None, os.environ.get(KEY_VARIABLE, "").split(",")))
    keys = (api_key,) if isinstance(api_key, str) else tuple(api_key)
    if not all(keys):
        raise ValueError("task.api_key must not hold an empty key")
    return keys


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"task.port: cannot listen on {host}:{port}: {error}; 0 takes a free one"
        ) from error


def _chat_template(given: str | None) -> str | None:
    """A template from a file, or itself if it is one already."""
    if given is None or "{{" in given or "{%" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"task.chat_template: cannot read {given}: {error}") from error
