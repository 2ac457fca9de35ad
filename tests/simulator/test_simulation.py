"""Whole simulations: answers, times and counts that can be worked out by hand."""

import json

import numpy as np
import pytest
import triton

from paged.eviction.base import HostEviction, ScoreEviction
from paged.eviction.lru import score as lru
from paged.kv.contiguous_max import reserve_len as whole_length
from paged.kv.paged import PagedKV
from paged.loggers.base import Logger
from paged.request import SamplingParams
from paged.schedulers.base import HostScheduler, RankScheduler
from paged.schedulers.fcfs import rank as fcfs
from paged.simulator.engine import SimulatedEngine
from paged.simulator.results import Results
from paged.simulator.simulation import arrivals, feed
from paged.simulator.step_time import StepTime
from paged.state import Sizes
from paged.tasks.recipe import Recipe
from paged.tasks.run_folder import RunFolder
from paged.tasks.simulate import simulate
from paged.workloads.prompts import WorkItem
from paged.workloads.request import Request

CLOCK = StepTime(0.01, token=0.001, key=0.00001)
SWAP_SECONDS = 0.003  # a page


def request(number: int, prompt_len: int, output_len: int, arrival: float = 0.0, **fields):
    return Request(
        arrival=arrival, spans=((number, prompt_len),), output_len=output_len,
        output=1000 + number, **fields,
    )  # fmt: skip


def crowd(count: int = 40) -> list[Request]:
    """Requests of ragged lengths, some with the beginning of another."""
    draw = np.random.default_rng(3)
    return [
        Request(
            arrival=float(draw.uniform(0, 2)),
            spans=((int(draw.integers(4)), int(draw.integers(1, 60))), (100 + n, 3 + n)),
            output_len=int(draw.integers(1, 30)), output=1000 + n, client=n % 3,
        )
        for n in range(count)
    ]  # fmt: skip


def run(
    requests, *, in_flight=1, check=False, num_pages=64, scheduler=None, eviction=None,
    reserve_len=None, num_host_pages=0, worked=None, **knobs,
):  # fmt: skip
    """(engine, results, [record of each request, by number])"""
    scheduler = scheduler or RankScheduler(
        **{"max_num_seqs": 4, "max_num_batched_tokens": 64, "watermark": 0.0} | knobs
    )
    kv = PagedKV(page_size=16, num_pages=num_pages, reserve_len=reserve_len)
    sizes = Sizes(
        num_slots=8, max_num_seqs=scheduler.max_num_seqs, max_num_batched_tokens=64,
        max_model_len=160, page_size=16, num_pages=num_pages, num_host_pages=num_host_pages,
    )  # fmt: skip
    engine = SimulatedEngine(
        sizes=sizes, scheduler=scheduler, kv=kv, eviction=eviction or ScoreEviction(lru),
        step_seconds=CLOCK.seconds, vocab_size=2000, in_flight=in_flight,
        swap_page_seconds=SWAP_SECONDS,
    )  # fmt: skip

    def on_step(record):
        if worked is not None:
            worked.append(tuple(record[name] for name in ("num_tokens", "num_seqs", "num_keys")))
        if check:
            kv.check(engine.requests)

    results = Results(engine, on_step)
    refused: list = []
    for live in feed(
        engine, arrivals(requests, SamplingParams()), lambda *why: refused.append(why)
    ):
        results.request(live)
        item = requests[int(live.output.request_id)]
        assert live.token_ids == item.output_token_ids().tolist()
    assert not refused
    return engine, results, sorted(results.records, key=lambda record: int(record["request_id"]))


def test_times_of_one_request():
    _, results, [record] = run([request(0, 40, 4, arrival=5.0)])
    decodes = [CLOCK.seconds(1, 1, keys) for keys in (41, 42, 43)]
    assert record["ttft"] == pytest.approx(CLOCK.seconds(40, 1, 40))
    assert record["tpot"] == pytest.approx(sum(decodes) / 3)
    assert record["e2e"] == pytest.approx(CLOCK.seconds(40, 1, 40) + sum(decodes))
    assert record["normalized_latency"] == pytest.approx(record["e2e"] / record["output_len"])
    assert record["queue_time"] == 0
    summary = results.summary()
    assert summary["seconds"] == pytest.approx(5.0 + record["e2e"])
    assert (summary["steps"], summary["computed_tokens"]) == (4, 43)
    assert summary["mean_batch_size"] == pytest.approx(1)
    assert sum(summary["memory_split"].values()) == pytest.approx(1)


def test_a_request_queues_for_a_seat():
    _, _, records = run([request(0, 20, 3), request(1, 20, 1)], max_num_seqs=1)
    assert records[1]["queue_time"] == pytest.approx(records[0]["e2e"])


def test_a_request_waits_for_the_step_that_it_came_in():
    first, second = request(0, 40, 2), request(1, 8, 1, arrival=0.001)
    _, _, records = run([first, second])
    prefill = CLOCK.seconds(40, 1, 40)
    assert records[1]["ttft"] == pytest.approx(prefill - 0.001 + CLOCK.seconds(9, 2, 41 + 8))


def test_two_steps_ahead_costs_a_newcomer_one_more():
    pair = [request(0, 20, 30), request(1, 8, 1, arrival=0.1)]
    ones, twos = (run(pair, in_flight=n)[2][1]["queue_time"] for n in (1, 2))
    assert twos == pytest.approx(ones + CLOCK.seconds(1, 1, 27), rel=0.05)


def test_memory_is_split_by_what_it_is_for():
    _, results, _ = run([request(0, 17, 3)], num_pages=4)
    split = results.summary()["memory_split"]
    # Two pages of four are held; 17 to 19 of their 32 slots are filled, and 20 would have been.
    weights = [CLOCK.seconds(17, 1, 17), CLOCK.seconds(1, 1, 18), CLOCK.seconds(1, 1, 19)]
    filled = np.average([17, 18, 0], weights=weights)  # the last step gives its pages back
    reserved = np.average([3, 2, 0], weights=weights)
    waste = np.average([12, 12, 0], weights=weights)
    for name, slots in (
        ("token_states", filled),
        ("reserved", reserved),
        ("internal_waste", waste),
    ):
        assert split[name] == pytest.approx(slots / 64), name


def test_what_is_free_while_a_stretch_is_waited_for_is_external_waste():
    # A stretch is 10 pages of 14, so the second request waits until the first has ended.
    _, results, _ = run(
        [request(0, 20, 3), request(1, 30, 1)], num_pages=14, reserve_len=whole_length
    )
    waiting = CLOCK.seconds(20, 1, 20) + CLOCK.seconds(1, 1, 21)  # the third step ends the first
    seconds = results.busy_seconds
    split = results.summary()["memory_split"]
    assert split["external_waste"] == pytest.approx(
        (waiting * 4 + CLOCK.seconds(1, 1, 22) * 13) / (14 * seconds)  # a page is cached
    )
    assert sum(split.values()) == pytest.approx(1)


def test_a_crowd_in_few_pages_keeps_every_invariant():
    engine, results, records = run(crowd(), check=True, num_pages=14, in_flight=2)
    summary = results.summary()
    assert len(records) == 40
    assert summary["preemptions"] > 0
    assert 0 < summary["recomputed_tokens"] <= summary["dropped_tokens"]
    assert summary["prefix_hit_tokens"] > 0
    assert int((engine.pool.ref_count > 0).sum()) == 0
    engine.ledger.check_empty()
    needed = sum(len(r.prompt_token_ids()) + r.output_len - 1 for r in crowd())
    computed, taken = summary["computed_tokens"], summary["prefix_hit_tokens"]
    assert computed + taken == needed + summary["dropped_tokens"]


def test_swapped_tokens_are_not_computed_again_but_their_copies_take_time():
    worked: list[tuple] = []
    engine, results, records = run(
        crowd(), check=True, num_pages=14, in_flight=2, num_host_pages=30, worked=worked
    )
    summary = results.summary()
    assert len(records) == 40
    assert summary["swapped_out_tokens"] >= summary["swapped_in_tokens"] > 0
    assert int(engine.requests.num_swapped.sum()) == 0
    needed = sum(len(r.prompt_token_ids()) + r.output_len - 1 for r in crowd())
    computed, taken = summary["computed_tokens"], summary["prefix_hit_tokens"]
    lost = summary["dropped_tokens"] - summary["swapped_in_tokens"]
    assert computed + taken == needed + lost
    model = sum(CLOCK.seconds(*work) for work in worked)
    pages = (results.busy_seconds - model) / SWAP_SECONDS
    assert pages == pytest.approx(round(pages))
    assert pages >= (summary["swapped_out_tokens"] + summary["swapped_in_tokens"]) / 16


@triton.jit
def newest(row, now):
    return -row.arrival


def newest_in_torch(row, now):
    return -row.arrival


class Newest(HostScheduler):
    def rank(self, request, now):
        return -request.arrival


class LeastRecent(HostEviction):
    def score(self, page, now):
        return page.last_used


def test_policies_of_every_level_do_the_same():
    knobs = {"max_num_seqs": 4, "max_num_batched_tokens": 64}
    want = run(crowd(), scheduler=RankScheduler(newest, **knobs), num_pages=20)[2]
    for scheduler in (RankScheduler(newest_in_torch, **knobs), Newest(**knobs)):
        got = run(crowd(), scheduler=scheduler, eviction=LeastRecent(), num_pages=20)[2]
        assert got == want
    assert run(crowd(), scheduler=RankScheduler(fcfs, **knobs), num_pages=20)[2] != want


def test_the_task_writes_a_run_folder(tmp_path, capsys):
    kv = PagedKV(page_size=16, num_pages=40)
    recipe = Recipe({"scheduler": RankScheduler(max_num_seqs=4), "kv": kv})
    workload = [*crowd(10), WorkItem("a prompt", {"max_tokens": 3}), request(99, 900, 1)]
    simulate(
        recipe, workload, SamplingParams(), RunFolder(tmp_path, config="", overrides=[], seed=0),
        Logger(), step_time="qwen3-0.6b-h200", goodput={"ttft_ms": 0.95, "e2e_ms": None},
    )  # fmt: skip
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").open()]
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").open()]
    assert (metrics["requests"], metrics["refused"], len(requests)) == (11, 1, 12)
    assert "kv.num_pages=40" in next(r["error"] for r in requests if r["request_id"] == "11")
    assert metrics["steps"] == len(steps)
    assert metrics["computed_tokens"] == sum(step["num_tokens"] for step in steps)
    good = [one for one in requests if one["error"] is None and one["ttft"] <= 0.00095]
    assert 0 < len(good) < 11
    assert metrics["goodput"] == pytest.approx(len(good) / metrics["seconds"])
    assert metrics["attainment"] == pytest.approx(len(good) / 12)
    assert "refused requests: 1" in capsys.readouterr().out


def test_a_request_without_its_answer_is_refused():
    engine, _, _ = run([request(0, 4, 1)])
    with pytest.raises(ValueError, match="must bring its answer"):
        engine.submit([1, 2], SamplingParams(max_tokens=3))
