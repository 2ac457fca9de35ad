"""The host's counts, kept as they change, against counting everything anew."""

import random
from dataclasses import replace

import numpy as np
import pytest

from paged.graphs import regimes
from paged.intake import Limits
from paged.kernels.control.columns import REASON_ABORT, REASON_LENGTH
from paged.kv.paged import PagedKV
from paged.ledger import Ledger
from paged.live_request import LiveRequest
from paged.mailbox import Header, Report
from paged.request import SamplingParams
from paged.state import Sizes

SIZES = Sizes(
    num_slots=12, max_num_seqs=5, max_num_batched_tokens=128, max_model_len=100, page_size=16,
    num_pages=64,
)  # fmt: skip
CAPACITIES = (16, 64, 128)


def request(ticket: int, length: int) -> LiveRequest:
    limits = Limits(SIZES, vocab_size=64, eos_ids=(), peak_pages=PagedKV().peak_pages)
    return limits.accept([1] * length, SamplingParams(max_tokens=20), str(ticket), None, ticket)


def report(admitted=(), preempted=(), drawn=(), ends=(), **header) -> Report:
    """`admitted`, `ends` are pairs (slot, value)."""
    counts = dict.fromkeys(Header._fields, 0) | {"num_admitted": len(admitted)} | header
    return Report(
        Header(**counts),
        np.array(drawn, np.int64), np.full(len(drawn), 7), np.full(len(drawn), -1.0, np.float32),
        [slot for slot, _ in admitted], [cached for _, cached in admitted],
        list(preempted), [0] * len(preempted),
        [slot for slot, _ in ends], [reason for _, reason in ends],
    )  # fmt: skip


def expected_guess(ledger: Ledger, requests: list[LiveRequest], blocked: bool) -> tuple[int, int]:
    """By its definition, over all requests."""
    waiting = [live for live in ledger._waiting.values() if live in requests]
    running = [live for live in requests if live.running]
    seats = 0 if blocked else SIZES.max_num_seqs - len(running)
    prompts = sum(live.to_prefill for live in running if ledger._prefilling[live.slot])
    prompts += sum(live.to_prefill for live in waiting[:seats])
    rows = len(running) + min(seats, len(waiting))
    capacity = next((size for size in CAPACITIES if size >= prompts + rows), CAPACITIES[-1])
    return capacity, min(prompts, capacity - rows)


@pytest.mark.parametrize("seed", range(5))
def test_counts_after_any_history(seed):
    rng = random.Random(seed)
    ledger = Ledger(SIZES, CAPACITIES)
    live: list[LiveRequest] = []
    kinds = dict.fromkeys(("admitted", "preempted", "drawn", "ended"), 0)
    for ticket in range(150):
        if ledger.num_free and rng.random() < 0.7:
            live.append(request(ticket, rng.randrange(1, 60)))
            ledger.enter(live[-1])
        running = [one for one in live if one.running]
        waiting = [one for one in live if not one.running]
        preempted = rng.sample(running, rng.randrange(2) if running else 0)
        drawn = [one for one in running if one not in preempted and rng.random() < 0.8]
        seats = SIZES.max_num_seqs - len(running) + len(preempted)
        admitted = rng.sample(waiting, min(len(waiting), seats, rng.randrange(3)))
        others = [one for one in live if one not in preempted and one not in drawn]
        ends = [(one.slot, REASON_LENGTH.value) for one in drawn if rng.random() < 0.2]
        ends += [
            (one.slot, REASON_ABORT.value)
            for one in others
            if one not in admitted and rng.random() < 0.05
        ]
        news = report(
            admitted=[(one.slot, rng.randrange(one.num_tokens)) for one in admitted],
            preempted=[one.slot for one in preempted],
            drawn=[one.slot for one in drawn],
            ends=ends,
        )
        gone = {slot for slot, _ in ends}
        ended = [one for one in live if one.slot in gone]
        touched = ledger.apply(news, 128, now=float(ticket))
        assert {one.ticket for one in touched} == {one.ticket for one in drawn + ended}
        assert len(touched) == len(set(touched)), "a request is touched once a step"
        live = [one for one in live if one not in ended]
        assert all(one.slot == -1 for one in ended)
        assert len(ledger) == len(live)
        assert ledger.num_running == sum(one.running for one in live)
        assert ledger.guess(0) == expected_guess(ledger, live, blocked=False)
        assert ledger.longest == max((one.max_len for one in live), default=1)
        for name, those in zip(kinds, (admitted, preempted, drawn, ended)):
            kinds[name] += len(those)
    assert min(kinds.values()) > 5, f"this history is too quiet: {kinds}"
    ends = [(one.slot, REASON_ABORT.value) for one in live]
    ledger.apply(report(ends=ends), 128, now=0.0)
    ledger.check_empty()


def test_waiting_requests_that_get_no_pages_are_not_guessed_for():
    ledger = Ledger(SIZES, CAPACITIES)
    first, second = request(0, 10), request(1, 50)
    ledger.enter(first)
    ledger.enter(second)
    assert ledger.guess(0) == (64, 60)
    ledger.apply(report([(first.slot, 0)], drawn=[first.slot], num_waiting=1), 64, now=0.0)
    assert ledger.guess(0) == (64, 50)
    ledger.apply(report(drawn=[first.slot], num_waiting=1, num_tokens=1), 64, now=0.0)
    assert ledger.guess(0) == (16, 0), "there was room in the step, and the second was not taken"
    ledger.apply(report(drawn=[first.slot], num_waiting=1, num_tokens=16), 16, now=0.0)
    assert ledger.guess(0) == (64, 50), "a full step says nothing about pages"
    ledger.apply(report(drawn=[first.slot], num_waiting=1, num_tokens=1), 64, now=0.0)
    end = [(first.slot, REASON_LENGTH.value)]
    ledger.apply(report(drawn=[first.slot], ends=end, num_waiting=1, num_tokens=1), 64, now=0.0)
    assert ledger.guess(0) == (64, 50), "pages came back"


def test_drafts_are_guessed_for_as_far_as_the_last_step_had_some():
    ledger = Ledger(replace(SIZES, num_draft_tokens=6), CAPACITIES)
    requests = [request(ticket, 1) for ticket in range(5)]
    for live in requests:
        ledger.enter(live)
    slots = [live.slot for live in requests]
    ledger.apply(report([(slot, 0) for slot in slots], drawn=slots), 16, now=0.0)
    assert ledger.guess(0) == (16, 0), "5 rows, and drafts for one of them"
    ledger.apply(report(drawn=slots, num_draft_tokens=3), 16, now=0.0)
    assert ledger.guess(0) == (64, 0), "5 rows, and 2 * 3 + 6 drafts"
    ledger.apply(report(drawn=slots, num_draft_tokens=30), 64, now=0.0)
    assert ledger.guess(0) == (64, 0), "5 rows, and 30 drafts, which is all there can be"


def test_prompt_tokens_on_their_way_are_not_guessed_for_again():
    ledger = Ledger(SIZES, CAPACITIES)
    ledger.enter(request(0, 99))
    assert ledger.guess(0) == (128, 99)
    assert ledger.guess(99) == (16, 0)
    assert ledger.guess(60) == (64, 39)


@pytest.mark.parametrize(
    ("budget", "capacities"),
    [
        (8192, (16, 64, 256, 512, 1024, 8192)),
        (2048, (16, 64, 256, 512, 1024, 2048)),
        (1100, (16, 64, 256, 512, 1100)),
        (1024, (16, 64, 256, 512, 1024)),
        (512, (16, 64, 256, 512)),
        (300, (16, 64, 300)),
        (256, (16, 64, 256)),
        (24, (24,)),
        (16, (16,)),
        (1, (1,)),
    ],
)
def test_regimes_of_a_budget(budget, capacities):
    assert regimes(budget) == capacities
