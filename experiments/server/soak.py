"""Do many streams, disconnects and wrong requests at once cost anybody a token, or leak a page?

    python experiments/server/soak.py --streams 256 --seconds 120 model=stories

Starts a server with the settings given, keeps `--streams` workers busy against it, then waits until
all is quiet and asks /debug/state. A worker streams a completion of random token ids and checks
that it has the length it asked for (usage counts every token), or leaves in its middle, or sends
something wrong and must get a 400. FAIL if anybody got anything else, if a slot or a request is
left, if a page is in use at the end, or if the server does not end in peace; then the last lines
of what the server printed follow.
"""

import argparse
import asyncio
import collections
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import aiohttp

WRONG = (
    {"prompt": [1, 2, 3], "temperature": -1},
    {"prompt": [1, 2, 3], "max_tokens": 10**9},
    {"prompt": [10**9]},
    {"prompt": []},
    {"prompt": [1, 2], "no_such_field": 1},
)


def start(settings: list[str], seconds: float, log: IO[str]) -> tuple[subprocess.Popen, str]:
    """The server and its address, when it answers; what it prints goes into `log`."""
    server = subprocess.Popen(
        [sys.executable, "-m", "paged.server", "port=0", "task.max_queued=null", *settings],
        stdout=log,
        stderr=log,
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        if found := re.search(r"serving .* at (http://\S+:\d+)", printed(log)):
            return server, found[1]
        time.sleep(0.2)
    state = "did not answer" if server.poll() is None else f"ended with code {server.returncode}"
    server.kill()
    raise RuntimeError(f"the server {state} after {seconds:.0f} s or less")


def printed(log: IO[str]) -> str:
    return Path(log.name).read_text(errors="replace")


async def events(reply: aiohttp.ClientResponse):
    async for line in reply.content:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


async def answer(
    session: aiohttp.ClientSession, rng: random.Random, args: argparse.Namespace
) -> str:
    """One request; returns what became of it, "ok ..." if that is as it should be."""
    kind = rng.random()
    if kind < 0.05:
        async with session.post("/v1/completions", json=rng.choice(WRONG)) as reply:
            return "ok refused" if reply.status == 400 else f"status {reply.status} of a wrong one"
    tokens = rng.randrange(1, args.max_tokens)
    body = {
        "prompt": [rng.randrange(10, args.vocab) for _ in range(rng.randrange(1, args.max_prompt))],
        "max_tokens": tokens, "ignore_eos": True, "temperature": rng.choice((0.0, 1.0)),
        "seed": rng.randrange(1000), "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    leave_after = rng.randrange(0, tokens) if kind < 0.2 else None
    async with session.post("/v1/completions", json=body) as reply:
        if reply.status != 200:
            return f"status {reply.status}: {(await reply.text())[:200]}"
        seen, reason, usage = 0, None, None
        async for event in events(reply):
            if "error" in event:
                return f"error event: {event['error']['message'][:200]}"
            seen += 1
            if leave_after is not None and seen > leave_after:
                reply.close()
                return "ok left"
            usage = event.get("usage") or usage
            reason = next((c["finish_reason"] for c in event["choices"]), None) or reason
    if reason != "length" or usage is None or usage["completion_tokens"] != tokens:
        return f"asked for {tokens} tokens, got {usage}, finish_reason {reason}"
    return "ok whole"


async def soak(
    server: subprocess.Popen, address: str, args: argparse.Namespace
) -> collections.Counter:
    """What became of the requests, and how often."""
    outcomes: collections.Counter = collections.Counter()
    end = time.monotonic() + args.seconds

    async def work(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end and server.poll() is None:
            try:
                outcomes[await answer(session, rng, args)] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                outcomes[f"{type(error).__name__}: {error}"] += 1
                await asyncio.sleep(1)

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(address, connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(work(seed) for seed in range(args.streams)))
        if server.poll() is not None:
            outcomes[f"the server ended with code {server.returncode}"] += 1
            return outcomes
        for _ in range(60):
            async with session.get("/debug/state") as reply:
                state = await reply.json()
            if not state["slots"] and not state["queue"]:
                break
            await asyncio.sleep(0.5)
        async with session.get("/metrics") as reply:
            metrics = await reply.text()
    pages = state["pages"]
    print(f"at the end: pages {pages}, slots {len(state['slots'])}, queue {len(state['queue'])}")
    print(f"generated {total(metrics, 'generation_tokens')} tokens in {args.seconds:.0f} s, "
          f"{total(metrics, 'num_preemptions')} preemptions")  # fmt: skip
    if state["slots"] or state["queue"] or pages["in_use"]:
        outcomes["something is left"] += 1
    if pages["free"] + pages["cached"] != pages["total"]:
        outcomes["pages are lost"] += 1
    return outcomes


def total(metrics: str, name: str) -> int:
    """A counter's value in Prometheus' text."""
    return int(float(re.search(rf"^paged:{name}_total(?:{{.*}})? (\S+)", metrics, re.M)[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--vocab", type=int, default=1000, help="token ids below it are sent")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--max-prompt", type=int, default=300)
    parser.add_argument("--start-seconds", type=float, default=300, help="of patience at start")
    args, settings = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the server ends too
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        outcomes, code = run(args, settings, log)
        for outcome, count in outcomes.most_common():
            print(f"{count:7} {outcome}")
        failed = code != 0 or any(not outcome.startswith("ok ") for outcome in outcomes)
        failed = failed or not outcomes["ok whole"]
        if failed:
            print("the server printed:", *printed(log).splitlines()[-40:], sep="\n")
    print("FAIL" if failed else "PASS", f"exit code {code}, server {' '.join(settings)}")
    sys.exit(failed)


def run(
    args: argparse.Namespace, settings: list[str], log: IO[str]
) -> tuple[collections.Counter, int | None]:
    """What became of the requests, and the server's exit code."""
    try:
        server, address = start(settings, args.start_seconds, log)
    except RuntimeError as error:
        return collections.Counter({str(error): 1}), None
    try:
        outcomes = asyncio.run(soak(server, address, args))
        server.terminate()
        return outcomes, server.wait(90)
    except subprocess.TimeoutExpired:
        return outcomes, None
    finally:
        server.kill()


if __name__ == "__main__":
    main()
