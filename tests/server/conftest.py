"""A real server with the embedded model, started once; clients for it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

ROOT = Path(__file__).parents[2]
KEY = "secret"
START_SECONDS = 300  # kernels are compiled at the first start on a GPU
SMALL = (
    "scheduler.max_num_seqs=4",
    "scheduler.max_num_batched_tokens=32",
    "num_slots=6",
    "kv.num_pages=64",
    "max_queued=4",
)


class ServerProcess:
    """`python -m paged.server` on a free port."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PAGED_API_KEY": KEY}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paged.server", "port=0", *arguments],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._wait_for_url()

    def _read(self) -> None:
        self.lines.extend(self.process.stderr)

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"serving \S+ at (\S+)", "".join(self.lines))
            if found:
                return found[1]
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError("the server did not start:\n" + "".join(self.lines))

    def end(self, timeout: float = 120) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    running = ServerProcess(
        folder,
        *SMALL,
        "metrics_alias=vllm",
        "tool_parser=hermes",
        f"profile_dir={folder}",
        "max_body_bytes=100000",
    )
    yield running
    running.end()


@pytest.fixture(scope="session")
def http(server):
    """Raw HTTP, with the key."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=300) as client:
        yield client


@pytest.fixture(scope="session")
def client(server):
    """The real openai client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def until(http) -> Callable:
    """Waits until /debug/state satisfies a condition; returns the state."""

    def wait(condition: Callable[[dict], bool], seconds: float = 20) -> dict:
        deadline = time.monotonic() + seconds
        while True:
            state = http.get("/debug/state").json()
            if condition(state):
                return state
            assert time.monotonic() < deadline, f"still not so after {seconds} s: {state}"
            time.sleep(0.05)

    return wait
