"""Clients that leave, a server that is told to, and an engine that dies."""

import os
import signal
import threading
import time

import httpx
import pytest

from tests.server.conftest import KEY, SMALL, ServerProcess

LONG = {"model": "stories", "prompt": [7, 8, 9], "max_tokens": 1000, "ignore_eos": True}
HEADERS = {"Authorization": f"Bearer {KEY}"}


def test_leaving_a_stream_frees_its_pages(http, until):
    with http.stream("POST", "/v1/completions", json=LONG | {"stream": True, "n": 2}) as stream:
        lines = stream.iter_lines()  # held: a dropped iterator closes the connection
        next(lines)
        state = until(lambda state: len(state["slots"]) == 2)
        assert state["pages"]["in_use"] > 0
    state = until(lambda state: not state["slots"])
    assert state["pages"]["in_use"] == 0
    assert state["queue"] == []


def test_leaving_a_plain_request_frees_its_pages(http, until):
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json=LONG | {"n": 6}, timeout=1)  # 4 run, 2 wait
    state = until(lambda state: not state["slots"] and not state["queue"])
    assert state["pages"]["in_use"] == 0
    assert state["pages"]["free"] + state["pages"]["cached"] == state["pages"]["total"]


def test_others_do_not_notice_that_one_leaves(http, client):
    settings = {"model": "stories", "prompt": "Once", "max_tokens": 3, "temperature": 0}
    alone = client.completions.create(**settings).choices[0].text
    with http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as stream:
        lines = stream.iter_lines()  # held: a dropped iterator closes the connection
        next(lines)
        chunks = client.completions.create(stream=True, **settings)
        text = next(chunks).choices[0].text
    assert text + "".join(chunk.choices[0].text for chunk in chunks) == alone


def test_sigterm_lets_running_requests_end_and_takes_no_new_ones(tmp_path):
    server = ServerProcess(tmp_path, *SMALL, "drain_seconds=30")
    lines: list[str] = []
    begun = threading.Event()

    def read() -> None:
        body = LONG | {"max_tokens": 6, "stream": True}
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=HEADERS, timeout=60) as stream:
            for line in stream.iter_lines():
                lines.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(30)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    reader.join(60)
    assert '"finish_reason":"length"' in "".join(lines)
    assert "data: [DONE]" in lines
    assert server.process.wait(30) == 0


@pytest.mark.slow
def test_a_dead_engine_is_an_error_and_the_end(tmp_path):
    server = ServerProcess(tmp_path, *SMALL)
    url = f"{server.url}/v1/completions"
    with httpx.stream(
        "POST", url, json=LONG | {"stream": True}, headers=HEADERS, timeout=60
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        os.kill(engine_of(server), signal.SIGKILL)
        rest = "".join(lines)
    assert "the engine has stopped" in rest
    assert server.process.wait(30) == 1


def engine_of(server: ServerProcess) -> int:
    """Process id of the engine: the server's child that multiprocessing spawned."""
    with open(f"/proc/{server.process.pid}/task/{server.process.pid}/children") as file:
        children = [int(pid) for pid in file.read().split()]
    for pid in children:
        with open(f"/proc/{pid}/cmdline") as file:
            if "spawn_main" in file.read():
                return pid
    raise AssertionError(f"no engine among the children {children}")
