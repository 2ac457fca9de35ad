"""task=bench_serve: what a client reads from a stream, when it sends, and what it makes of it."""

import asyncio
import json
import multiprocessing
import threading
import time
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import chain, pairwise
from statistics import fmean, pstdev

import pytest

from paged.llm import LLM
from paged.loggers.base import Logger
from paged.request import SamplingParams
from paged.tasks.bench_serve.client import Batch, Job, Outcome, Stream, drive
from paged.tasks.bench_serve.fleet import share
from paged.tasks.bench_serve.numbers import remarks, rows, summary
from paged.tasks.bench_serve.plan import Bodies, due_times, planned
from paged.tasks.bench_serve.task import bench_serve, loads
from paged.tasks.goodput import objective
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder
from paged.workloads.lengths import Lengths
from paged.workloads.prompts import Prompts as BuiltInPrompts
from paged.workloads.prompts import WorkItem
from paged.workloads.request import Request

web = pytest.importorskip("aiohttp.web")


def event(**fields) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(piece: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": piece, "finish_reason": finish}], usage=None)


def read(*arrivals: tuple[float, bytes], sent: float = 0.0) -> Outcome:
    stream, outcome = Stream(), Outcome(0, 0.0)
    for now, data in arrivals:
        stream.feed(data, now)
    stream.settle(outcome, sent)
    return outcome


DONE = b"data: [DONE]\n\n"
USAGE = event(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 5})


def test_times_and_tokens_of_a_stream_are_the_same_however_it_is_cut():
    parts = [(1.0, text("a")), (1.5, text("b")), (2.5, text("c", "length")), (9.0, USAGE + DONE)]
    whole = read(*parts, sent=0.5)
    assert (whole.error, whole.ttft, whole.gaps, whole.e2e) == (None, 0.5, [0.5, 1.0], 2.0)
    assert (whole.prompt_tokens, whole.output_tokens) == (4, 5)
    assert whole.tpot == pytest.approx(1.5 / 4)  # by tokens, not by events
    cut = [(now, data[at : at + 7]) for now, data in parts for at in range(0, len(data), 7)]
    assert read(*cut, sent=0.5) == whole
    carriage = [(now, data.replace(b"\n", b"\r\n")) for now, data in parts]
    assert read(*carriage, sent=0.5) == whole


def test_neither_the_role_nor_a_bare_end_of_a_chat_is_a_token():
    def delta(now, finish=None, **fields):
        return now, event(choices=[{"index": 0, "delta": fields, "finish_reason": finish}])

    outcome = read(
        delta(1.0, role="assistant", content=""), delta(2.0, content="a"), delta(3.0, content=""),
        delta(4.0, content="b"), delta(4.5, finish="stop"), (5.0, DONE),
    )  # fmt: skip
    assert (outcome.ttft, outcome.gaps, outcome.e2e) == (2.0, [1.0, 1.0], 4.5)
    assert outcome.output_tokens == 3  # without usage, the events


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (text("a"), "stream without an end"),
        (text("a") + event(error={"message": "out of pages"}) + DONE, "error in the stream"),
        (USAGE + DONE, "no token"),
    ],
)
def test_what_is_no_complete_answer_is_a_failure(data, error):
    assert read((1.0, data)).error == error


def test_gaps_have_the_mean_and_the_spread_that_was_asked_for():
    items = [WorkItem([1])] * 4000
    for cv in (0.0, 1.0, 2.0):
        times = due_times(items, "gamma", 5.0, cv, seed=1)
        gaps = [after - before for before, after in pairwise(times)]
        assert fmean(gaps) == pytest.approx(0.2, rel=0.1)
        assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.1, abs=1e-9)
    assert set(due_times(items, "gamma", float("inf"), 1.0, 0)) == {0.0}


def test_a_trace_keeps_its_shape_at_any_rate():
    items = [Request(arrival, ((0, 3),), 2, 1) for arrival in (10.0, 12.0, 20.0)]
    assert due_times(items, "trace", None, 1.0, 0) == [0.0, 2.0, 10.0]
    assert due_times(items, "trace", 4.0, 1.0, 0) == pytest.approx([0.0, 0.1, 0.5])
    with pytest.raises(ValueError, match="needs a workload with arrival times"):
        due_times([WorkItem([1])] * 2, "trace", None, 1.0, 0)


@pytest.mark.parametrize("concurrency", [None, 3, 8])
def test_processes_share_requests_and_concurrency(concurrency):
    job = Job("", {}, list(range(10)), concurrency, 1.0)
    shares = [share(job, place, 3) for place in range(3)]
    assert sorted(chain(*(one.requests for one in shares))) == list(range(10))
    limits = [one.concurrency for one in shares]
    assert limits == [None] * 3 if concurrency is None else sum(limits) == concurrency


def test_goodput_counts_requests_that_keep_every_limit_and_failures_keep_none():
    def outcome(ttft, e2e, error=None):
        return Outcome(0, 0.0, ttft=ttft, e2e=e2e, output_tokens=11, prompt_tokens=5, error=error)

    outcomes = [outcome(0.1, 1.1), outcome(0.3, 1.3), outcome(0.1, 3.1), outcome(0.1, 4.0, "HTTP")]
    limits = objective({"ttft_ms": 200, "tpot_ms": 150.0, "e2e_ms": None})
    assert limits == {"ttft": 0.2, "tpot": 0.15}
    found = summary([Batch(outcomes, [0.001], 0.5)], limits)
    assert (found["completed"], found["failed"], found["failures"]) == (3, 1, {"HTTP": 1})
    assert (found["seconds"], found["goodput"], found["attainment"]) == (4.0, 0.25, 0.25)
    assert (found["requests_per_s"], found["output_tokens_per_s"]) == (0.75, 33 / 4)
    assert found["ttft_p50"] == pytest.approx(0.1)
    assert found["tpot_mean"] == pytest.approx((0.1 + 0.1 + 0.3) / 3)
    assert len(remarks("x", found, {}, at_once=False)) == 1  # the failures
    assert "task.clients" in remarks("x", found | {"client_busy": 0.9}, {}, at_once=True)[-1]
    assert summary([Batch(outcomes, [], 0.0)], {})["goodput"] is None
    made = {row.details["quantity"]: row for row in rows("x", found, None)}
    assert (made["ttft p50"].ours, made["ttft p50"].unit) == (pytest.approx(100), "ms")


def test_bodies_hold_what_was_asked_and_policies_only_for_our_server():
    params = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=7)
    item = Request(0.0, ((0, 3),), 4, 1, client=2)
    body = Bodies("m", "completions", True, True, False, {"user": "u"}).of(item, params)
    assert body == {
        "model": "m", "stream": True, "stream_options": {"include_usage": True}, "top_p": 0.9,
        "prompt": item.prompt, "max_tokens": 4, "temperature": 0.0, "ignore_eos": True, "user": "u",
    }  # fmt: skip
    assert Bodies("m", "completions", False, False, True, {}).of(item, params)["client"] == 2
    chat = Bodies("m", "chat", True, True, False, {})
    assert chat.of(WorkItem("hi"), params)["messages"] == [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match="endpoint=chat needs prompts as text"):
        chat.of(item, params)


@pytest.mark.parametrize(
    ("rates", "concurrency", "arrivals", "message"),
    [
        (None, None, "gamma", "task.rates must be given"),
        ([0.0], None, "gamma", "task.rates must be positive"),
        ([1.0], 0, "gamma", "task.concurrency must be at least 1"),
        ([], None, "gamma", "got an empty list"),
    ],
)
def test_loads_that_make_no_sense_are_refused(rates, concurrency, arrivals, message):
    with pytest.raises(ValueError, match=message):
        loads(rates, concurrency, arrivals)
    with pytest.raises(ValueError, match="goodput takes ttft_ms, tpot_ms, e2e_ms, got 'itl_ms'"):
        objective({"itl_ms": 1.0})


class StandInServer:
    """Streams `max_tokens` pieces; refuses every request whose prompt begins with 0."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.port = 0

    async def models(self, _):
        return web.json_response({"data": [{"id": "stand-in"}]})

    async def completions(self, request):
        body = await request.json()
        if body["prompt"][0] == 0:
            return web.json_response({"error": {"message": "queue full"}}, status=429)
        self.running += 1
        self.most = max(self.most, self.running)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(0.005)
            await response.write(text("a"))
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        self.running -= 1
        await response.write(event(choices=[], usage=usage) + DONE)
        return response

    @contextmanager
    def __call__(self):
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def start():
            app = web.Application()
            app.add_routes([web.get("/v1/models", self.models),
                            web.post("/v1/completions", self.completions)])  # fmt: skip
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            ready.set()

        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(start(), loop)
        assert ready.wait(20)
        yield f"http://127.0.0.1:{self.port}/v1"
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_the_wait_for_room_is_neither_latency_nor_the_clients_delay():
    server = StandInServer()
    item = WorkItem([1, 2], {"max_tokens": 4})
    bodies = Bodies("stand-in", "completions", True, True, False, {})
    requests = planned([item] * 12, SamplingParams(), bodies, [0.0] * 12)
    with server() as url:
        job = Job(f"{url}/completions", {}, requests, 1, 60.0)
        batch = asyncio.run(drive(job, time.monotonic()))
    last = batch.outcomes[-1]
    assert server.most == 1
    assert [one.error for one in batch.outcomes] == [None] * 12
    assert last.sent > 11 * 4 * 0.005  # it waited for the others
    assert last.lag < last.sent / 2
    assert last.e2e < last.sent / 2
    assert batch.busy > 0


def no_engine() -> LLM:
    raise AssertionError("a server runs already")


class Prompts(Lengths):
    """The first of every four prompts begins with 0, and is not the first of all."""

    def __iter__(self):
        for number, item in enumerate(super().__iter__()):
            first = 0 if number % 4 == 3 else 1
            yield WorkItem([first, *item.prompt[1:]], item.sampling)


def test_a_sweep_against_a_server_counts_its_failures(tmp_path):
    server = StandInServer()
    folder = RunFolder(tmp_path, config="", overrides=(), seed=0)
    workload = Prompts(num_requests=16, input_len=6, output_len=4)
    with server() as url:
        report = bench_serve(
            no_engine, Recipe({}), workload, SamplingParams(), folder, Logger(), base_url=url,
            peer_url=url, rates=(200.0, 400.0, float("inf")), concurrency=3, clients=2,
            goodput={"ttft_ms": 60_000},
        )  # fmt: skip
    assert 1 <= server.most <= 3
    assert report.settings["model"] == "stand-in"
    record = json.loads((tmp_path / "bench.json").read_text())
    found = {row["name"]: row for row in record["rows"]}
    for load in ("200/s, 3 at once", "400/s, 3 at once", "inf/s, 3 at once"):
        for who in ("ours", "peer"):
            assert found[f"{load}: completed"][who] == 12
            assert found[f"{load}: failed"][who] == 4
            assert found[f"{load}: within objective"][who] == 75
            assert found[f"{load}: tpot p50"][who] >= 4
            assert found[f"{load}: client: send lag p99"][who] >= 0
    own = record["details"]["summaries"]["paged"][0]
    assert (own["output_tokens"], own["prompt_tokens"]) == (48, 72)
    assert any("4 x HTTP 429" in note for note in record["notes"])
    assert any("no way to empty its prefix cache" in note for note in record["notes"])
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 3 * 16
    refused = [one for one in map(json.loads, lines) if one["error"]]
    assert {one["message"] for one in refused} == {'{"error": {"message": "queue full"}}'}
    pytest.importorskip("matplotlib")
    assert (tmp_path / "serve.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_server_of_ones_own_chats_forgets_its_prefixes_and_ends(tmp_path):
    pytest.importorskip("uvicorn")
    folder = RunFolder(tmp_path, config="", overrides=(), seed=0)
    report = bench_serve(
        partial(LLM, "stories", max_model_len=64), Recipe({"model": "stories"}),
        BuiltInPrompts(limit=3), SamplingParams(max_tokens=3), folder, Logger(),
        endpoint="chat", concurrency=(1, 2), clients=1, warmup=1,
    )  # fmt: skip
    found = {row.name: row.ours for row in report.rows}
    assert report.settings["model"] == "stories"
    for load in ("inf/s, 1 at once", "inf/s, 2 at once"):
        assert found[f"{load}: completed"] == 3
        assert found[f"{load}: tpot p50"] > 0
    assert report.details["summaries"]["paged"][0]["output_tokens"] == 9
    assert not any("empty its prefix cache" in note for note in report.notes)
    assert (tmp_path / "serve.png").exists() == (find_spec("matplotlib") is not None)
    assert multiprocessing.active_children() == []
