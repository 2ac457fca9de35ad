"""Tokens that wait on the host until somebody looks, against lists that grow with every step."""

import random
from dataclasses import replace

import numpy as np
import pytest

from paged.intake import Limits
from paged.kernels.control.columns import REASON_LENGTH
from paged.kv.paged import PagedKV
from paged.ledger import Ledger
from paged.live_request import LiveRequest
from paged.mailbox import Header, Report
from paged.request import SamplingParams
from paged.state import Sizes
from paged.transcript import Transcript

SIZES = Sizes(
    num_slots=7, max_num_seqs=7, max_num_batched_tokens=64, max_model_len=400, page_size=16,
    num_pages=256,
)  # fmt: skip


def request(ticket: int, n: int = 1) -> LiveRequest:
    limits = Limits(SIZES, vocab_size=64, eos_ids=(), peak_pages=PagedKV().peak_pages)
    params = SamplingParams(max_tokens=300, n=n)
    return limits.accept([1] * 9, params, str(ticket), None, ticket)


def report(drawn: list[tuple[int, int]], admitted=(), ended=()) -> Report:
    """`drawn` are pairs (slot, token); a token's log-probability is -token."""
    return Report(
        Header(*[0] * len(Header._fields)),
        np.array([slot for slot, _ in drawn], np.int64),
        np.array([token for _, token in drawn], np.int64),
        np.array([-token for _, token in drawn], np.float32),
        admitted_slots=list(admitted),
        cached_tokens=[0] * len(admitted),
        end_slots=list(ended),
        end_reasons=[REASON_LENGTH.value] * len(ended),
    )


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
@pytest.mark.parametrize("look", [0.0, 0.02, 0.5])
def test_whoever_looks_finds_what_was_drawn(look, num_draft_tokens):
    """Over many laps of the ring, slots that change hands, and steps without a token."""
    rng = random.Random(f"{look} {num_draft_tokens}")
    ledger = Ledger(replace(SIZES, num_draft_tokens=num_draft_tokens), (64,))
    ledger._transcript = Transcript(SIZES.num_slots, depth=8)
    model: dict[LiveRequest, list[tuple[int, float]]] = {}  # (token, when it came)
    num_ended = 0

    def check(live: LiveRequest) -> None:
        tokens, times = [token for token, _ in model[live]], [now for _, now in model[live]]
        output = live.output
        assert live.token_ids is live.completion.token_ids is output.outputs[0].token_ids
        assert live.token_ids == tokens
        assert live.logprobs == [-token for token in tokens]
        assert output.metrics.num_output_tokens == len(tokens)
        assert output.metrics.first_token_time == (times[0] if times else None)
        assert output.metrics.last_token_time == (times[-1] if times else None)

    for step in range(400):
        now, entered = 1.0 + step, []
        while ledger.num_free and rng.random() < 0.3:
            entered.append(request(1000 * step + len(entered)))
            ledger.enter(entered[-1])
            model[entered[-1]] = []
        running = sorted(model, key=lambda one: one.slot)
        drawing = [one for one in running if rng.random() < 0.7]
        drawn = [
            (one.slot, rng.randrange(2**24), one)
            for one in drawing
            for _ in range(rng.randint(1, 1 + num_draft_tokens))
        ]
        ended = [one for one in drawing if rng.random() < 0.02]
        touched = ledger.apply(
            report(
                [(slot, token) for slot, token, _ in drawn],
                admitted=sorted(one.slot for one in entered),
                ended=[one.slot for one in ended],
            ),
            64,
            now,
        )
        assert touched == drawing
        for _, token, one in drawn:
            model[one].append((token, now))
        for one in [*ended, *(one for one in running if rng.random() < look)]:
            check(one)
        for one in ended:
            del model[one]
            num_ended += 1
    for one in model:
        check(one)
    assert num_ended > 20


def test_an_output_that_was_held_is_whole_when_it_has_ended():
    """Whoever keeps the object, and asks the request for nothing more, finds the last state."""
    ledger, live = Ledger(SIZES, (64,)), request(0)
    output = live.output
    ledger.enter(live)
    ledger.apply(report([(live.slot, 5)], admitted=[live.slot]), 64, 1.0)
    ledger.apply(report([(live.slot, 6)]), 64, 2.0)
    ledger.apply(report([(live.slot, 7)], ended=[live.slot]), 64, 3.0)
    assert output.outputs[0].token_ids == [5, 6, 7]
    assert output.metrics.tpot == 1.0


def test_several_outputs_have_one_count_and_the_time_of_the_last():
    ledger, first = Ledger(SIZES, (64,)), request(0, n=2)
    for one in first.group:
        ledger.enter(one)
    slots = [one.slot for one in first.group]
    ledger.apply(report([(slot, 3) for slot in sorted(slots)], admitted=sorted(slots)), 64, 1.0)
    ledger.apply(report([(slots[1], 4)]), 64, 2.0)
    ledger.apply(report([(slots[0], 5)]), 64, 3.0)
    metrics = first.output.metrics
    assert metrics.num_output_tokens == 4
    assert (metrics.first_token_time, metrics.last_token_time) == (1.0, 3.0)
    assert [one.token_ids for one in first.output.outputs] == [[3, 5], [3, 4]]


@pytest.mark.parametrize(("num_slots", "depth"), [(1, 2), (7, 2), (7, 6), (1025, 64), (3000, 1024)])
def test_who_reads_what_is_due_loses_nothing(num_slots, depth):
    transcript = Transcript(num_slots, depth)
    slots = np.arange(num_slots)
    read: dict[int, list[int]] = {slot: [] for slot in range(num_slots)}
    for step in range(3 * depth):
        for slot in transcript.due():
            read[slot] += transcript.read(slot).token_ids.tolist()
        transcript.write(slots, np.full(num_slots, step), np.zeros(num_slots), now=float(step))
    for slot, tokens in read.items():
        rest = transcript.read(slot)
        assert tokens + rest.token_ids.tolist() == list(range(3 * depth))
        assert rest.last_time == 3 * depth - 1
        assert transcript.read(slot) is None
