"""The server under load: one that runs somewhere, or one of our own, started and ended here."""

import json
import multiprocessing
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from paged.llm import LLM
from paged.tasks.serve import serve

KEY_VARIABLES = ("PAGED_API_KEY", "OPENAI_API_KEY")
RESET_PATHS = ("/debug/reset_prefix_cache", "/reset_prefix_cache")  # ours, vLLM's
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Target:
    """A server that speaks OpenAI's API at `url` (without /v1).

    Args:
        model: its name there.
        version: what /version says; "" where that is not served.
    """

    url: str
    model: str
    version: str
    headers: dict[str, str]

    def reset_prefix_cache(self) -> bool:
        """Whether the server has forgotten the prompts it has seen."""
        return any(
            _ask(self.url + path, self.headers, post=True) is not None for path in RESET_PATHS
        )


def reach(url: str, model: str | None, api_key: str | None, timeout: float) -> Target:
    """Wait until the server answers. Raises ValueError if it does not, or serves no such model.

    `model` None takes the first that it serves; `timeout` is in seconds.
    """
    url = url.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"task.base_url must begin with http:// or https://, got {url!r}")
    keys = (api_key, *(os.environ.get(name) for name in KEY_VARIABLES))
    key = next((key for key in keys if key), "").split(",")[0]
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    deadline = time.monotonic() + timeout
    while (answer := _ask(f"{url}/v1/models", headers)) is None:
        if time.monotonic() > deadline:
            raise ValueError(
                f"task.base_url: no list of models at {url}/v1/models; is the server running, and "
                "does it take the key of task.api_key?"
            )
        time.sleep(0.2)
    served = [entry["id"] for entry in answer["data"]]
    if model is not None and model not in served:
        raise ValueError(f"task.model_name: {url} serves {', '.join(served)}, not {model!r}")
    version = (_ask(f"{url}/version", headers) or {}).get("version", "")
    return Target(url, model or served[0], version, headers)


@contextmanager
def own_server(llm_factory: Callable[[], LLM], name: str, timeout: float) -> Iterator[str]:
    """A server of this model in a process of its own, for as long as the context lasts: its URL.

    Raises ValueError if it does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(llm_factory, name, port))
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for_health(process, url, timeout)
        yield url
    finally:
        process.terminate()
        process.join(STOP_SECONDS)
        process.kill()
        process.join()


def _serve(llm_factory: Callable[[], LLM], name: str, port: int) -> None:
    try:
        serve(llm_factory, port=port, served_model_name=name, max_queued=None, drain_seconds=1.0)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _wait_for_health(process: BaseProcess, url: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while _ask(f"{url}/version", {}) is None:
        if not process.is_alive():
            raise ValueError(f"the server has ended with code {process.exitcode} while starting")
        if time.monotonic() > deadline:
            raise ValueError(f"the server did not start within {timeout:g} s; raise start_timeout")
        time.sleep(0.1)


def _ask(url: str, headers: dict[str, str], *, post: bool = False) -> dict[str, Any] | None:
    """The JSON of the answer ({} for an empty one); None unless the status is 200."""
    request = urllib.request.Request(url, headers=headers, method="POST" if post else "GET")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or b"{}")
    except (urllib.error.URLError, OSError, ValueError):
        return None
