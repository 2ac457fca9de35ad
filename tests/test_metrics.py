"""The numbers of the final table, from steps and requests whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from paged.engine import StepStats
from paged.kernels.control.columns import HEAD, NUM_CACHED
from paged.kv.paged import PagedKV
from paged.live_request import LiveRequest
from paged.request import CompletionOutput, RequestMetrics, RequestOutput, SamplingParams
from paged.state import RUNNING, PagePool, RequestTable, Sizes
from paged.tasks.metrics import RunMetrics, table


def step(**fields: int) -> StepStats:
    names = [name for name in StepStats.__dataclass_fields__ if name != "seconds"]
    return StepStats(**dict.fromkeys(names, 0) | fields, seconds=0.1)


def request(ticket: int, num_prompt: int, num_output: int) -> LiveRequest:
    output = RequestOutput(
        request_id=str(ticket),
        prompt=None,
        prompt_token_ids=[1] * num_prompt,
        outputs=[CompletionOutput(token_ids=[2] * num_output)],
        metrics=RequestMetrics(
            arrival_time=10.0,
            first_token_time=11.0 + ticket,
            last_token_time=11.0 + ticket + 0.5 * (num_output - 1),
            num_output_tokens=num_output,
        ),
    )
    return LiveRequest(output, SamplingParams(), num_prompt + num_output, [], ticket)


@pytest.fixture
def metrics() -> RunMetrics:
    sizes = Sizes(4, 4, 64, 64, 16, 10)
    requests = RequestTable(sizes, "cpu")
    requests.status[:2] = RUNNING
    requests.arrival[:2] = torch.tensor([0, 1])
    requests.num_computed_tokens[:2] = torch.tensor([20, 16])
    requests.num_pages[:2] = torch.tensor([4, 1])
    pool = PagePool(sizes, "cpu")
    pool.counters[HEAD.value], pool.counters[NUM_CACHED.value] = 6, 1
    kv = PagedKV(page_size=16, num_pages=10)
    kv.pool = pool
    metrics = RunMetrics(SimpleNamespace(requests=requests, pool=pool, sizes=sizes, kv=kv))
    metrics.begin()
    metrics.step(step(num_tokens=36, num_seqs=2, free_pages=4, cached_pages=1, cached_tokens=16))
    metrics.step(step(num_tokens=2, num_seqs=2, free_pages=8, cached_pages=1, num_preempted=1))
    for drafted, accepted in ((5, 0), (3, 2)):
        drafts = {"num_draft_tokens": drafted, "num_accepted_tokens": accepted}
        metrics.step(step(num_tokens=1, num_seqs=2, free_pages=8, **drafts))
    return metrics


def test_sums_and_percentiles(metrics):
    summary = metrics.summary([request(0, 20, 11), request(1, 16, 1)])
    assert summary["prompt_tokens"] == 36
    assert summary["output_tokens"] == 12
    assert summary["computed_tokens"] == 40
    assert (summary["draft_tokens"], summary["accepted_tokens"]) == (8, 2)
    assert summary["mean_batch_size"] == 2
    assert summary["prefix_hit_rate"] == pytest.approx(16 / 36)
    assert summary["preemptions"] == 1
    assert summary["ttft_p50"] == pytest.approx(1.5)
    assert summary["tpot_p50"] == pytest.approx(0.5)  # one request has a single token and no tpot
    assert summary["e2e_p50"] is None


def test_memory_is_split_where_most_pages_were_in_use(metrics):
    summary = metrics.summary([request(0, 20, 11), request(1, 16, 1)])
    assert summary["peak_pages"] == 5
    # The first row holds 64 slots: 20 computed, 11 that it went on to fill, 33 never used.
    assert summary["memory_split"] == pytest.approx(
        {
            "token_states": 36 / 160,
            "reserved": 11 / 160,
            "internal_waste": 33 / 160,
            "external_waste": 0,
            "cached": 16 / 160,
            "free": 64 / 160,
        }
    )


def test_the_table_shows_every_part(metrics):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(
            table(metrics.summary([request(0, 20, 11), request(1, 16, 1)], num_refused=2))
        )
    text = capture.get()
    assert "2 refused" in text
    assert "5 of 10" in text
    assert "token states" in text
    assert "8, 2 accepted, 25.0% of them" in text
