"""Do many streams, disconnects and wrong requests at once cost anybody a token, or leak a page?

    python experiments/server/soak.py --streams 256 --seconds 120 model=stories

Starts a server with the settings given, keeps `--streams` workers busy against it, then waits until
all is quiet and asks /debug/state. A worker streams a completion of random token ids and checks
that it has the length it asked for (usage counts every token), or leaves in its middle, or sends
something wrong and must get a 400. FAIL if anybody got anything else, if a slot or a request is
left, or if a page is in use at the end.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import re
import subprocess
import sys
import time

import aiohttp

WRONG = (
    {"prompt": [1, 2, 3], "temperature": -1},
    {"prompt": [1, 2, 3], "max_tokens": 10**9},
    {"prompt": [10**9]},
    {"prompt": []},
    {"prompt": [1, 2], "no_such_field": 1},
)


def start(settings: list[str]) -> tuple[subprocess.Popen, str]:
    """The server and its address, when it answers."""
    server = subprocess.Popen(
        [sys.executable, "-m", "paged.server", "port=0", "task.max_queued=null", *settings],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in server.stderr:
        print(line, end="", file=sys.stderr)
        if found := re.search(r"http://[\w.]+:\d+", line):
            return server, found.group()
    raise RuntimeError(f"the server ended with exit code {server.wait()}")


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


async def soak(address: str, args: argparse.Namespace) -> collections.Counter:
    outcomes: collections.Counter = collections.Counter()
    end = time.monotonic() + args.seconds

    async def work(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            try:
                outcomes[await answer(session, rng, args)] += 1
            except aiohttp.ClientError as error:
                outcomes[f"{type(error).__name__}: {error}"] += 1

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    async with aiohttp.ClientSession(address, connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(work(seed) for seed in range(args.streams)))
        for _ in range(60):
            async with session.get("/debug/state") as reply:
                state = await reply.json()
            if not state["slots"] and not state["queue"]:
                break
            await asyncio.sleep(0.5)
    pages = state["pages"]
    print(f"at the end: pages {pages}, slots {len(state['slots'])}, queue {len(state['queue'])}")
    if state["slots"] or state["queue"] or pages["in_use"]:
        outcomes["something is left"] += 1
    if pages["free"] + pages["cached"] != pages["total"]:
        outcomes["pages are lost"] += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--vocab", type=int, default=1000, help="token ids below it are sent")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--max-prompt", type=int, default=300)
    args, settings = parser.parse_known_args()
    server, address = start(settings)
    try:
        outcomes = asyncio.run(soak(address, args))
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(30)
    for outcome, count in outcomes.most_common():
        print(f"{count:7} {outcome}")
    failed = [outcome for outcome in outcomes if not outcome.startswith("ok ")]
    print(
        "FAIL" if failed or not outcomes["ok whole"] else "PASS", f"exit code {server.returncode}"
    )
    sys.exit(1 if failed or not outcomes["ok whole"] else 0)


if __name__ == "__main__":
    main()
