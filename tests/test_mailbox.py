"""The rings between host and device, written by hand: laps, tags, words on their way, waiting."""

import random
import time

import pytest
import torch

from paged.kernels.control.columns import REASON_STOP
from paged.kernels.control.release import HEADER_FIELDS
from paged.kernels.control.update import (
    EVENT_ADMITTED,
    EVENT_END,
    EVENT_PREEMPTED,
    EVENT_TOKEN,
    HEADER_WORDS,
)
from paged.kernels.control.update_ref import EventWriter
from paged.mailbox import Header, Mailbox, SilentStep
from paged.state import Sizes
from paged.submission import Submission, float_bits

SIZES = Sizes(
    num_slots=6, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=40, page_size=16,
    num_pages=8,
)  # fmt: skip
LAP = 1 << 16  # steps after which a tag comes again


def make(depth: int = 4, **options) -> Mailbox:
    return Mailbox(SIZES, torch.device("cpu"), depth=depth, **options)


def write(mailbox: Mailbox, step: int, events=(), header: bool = True) -> EventWriter:
    """A step's words as the device writes them; `events` are of EventWriter.emit."""
    writer = EventWriter(mailbox.events, step)
    for one in events:
        writer.emit(*one)
    if header:
        values = [writer.count, *range(1, len(HEADER_FIELDS))]
        for index, value in enumerate(values):
            writer.entry[index] = writer.word(value)
    return writer


def tokens(*drawn: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    return [(EVENT_TOKEN.value, slot, token, float_bits(-0.5 * token)) for slot, token in drawn]


def test_the_header_is_what_the_kernel_writes():
    assert Header._fields == HEADER_FIELDS


def test_a_report_has_every_event_by_its_kind():
    mailbox = make()
    write(mailbox, 3, [
        (EVENT_ADMITTED.value, 0, 32), (EVENT_ADMITTED.value, 5, 0),
        (EVENT_PREEMPTED.value, 2, 17),
        *tokens((0, 9), (1, 2**24 - 1), (3, 0)),
        (EVENT_END.value, 1, REASON_STOP.value),
    ])  # fmt: skip
    report = mailbox.poll(3)
    assert report.header == Header(7, *range(1, len(HEADER_FIELDS)))
    assert (report.admitted_slots, report.cached_tokens) == ([0, 5], [32, 0])
    assert (report.preempted_slots, report.dropped_tokens) == ([2], [17])
    assert report.token_slots.tolist() == [0, 1, 3]
    assert report.token_ids.tolist() == [9, 2**24 - 1, 0]
    assert report.logprobs.tolist() == [-4.5, -0.5 * (2**24 - 1), 0.0]
    assert (report.end_slots, report.end_reasons) == ([1], [REASON_STOP.value])


def test_a_step_without_events_is_reported():
    mailbox = make()
    write(mailbox, 0)
    report = mailbox.poll(0)
    assert report.header.num_events == 0
    assert [*report.admitted_slots, *report.preempted_slots, *report.end_slots] == []
    assert len(report.token_slots) == len(report.token_ids) == len(report.logprobs) == 0


@pytest.mark.parametrize("step", [0, 5, LAP - 2, LAP - 1, LAP, 3 * LAP + 2])
def test_no_report_while_a_word_is_missing(step):
    """Words arrive in any order, each by itself; not before the last is the step reported."""
    rng = random.Random(step)
    events = tokens((0, 1), (2, 3), (4, 5))
    full = make()
    write(full, step, events)
    words = full.events.words[step % 4]
    places = [*range(len(HEADER_FIELDS)), *range(HEADER_WORDS.value, HEADER_WORDS.value + 6)]
    rng.shuffle(places)
    mailbox = make()
    for place in places:
        assert mailbox.poll(step) is None
        mailbox.events.words[step % 4, place] = words[place]
    assert mailbox.poll(step).token_ids.tolist() == [1, 3, 5]


@pytest.mark.parametrize("laps_ago", [1, 2, LAP // 4, LAP // 4 * 3])
def test_words_of_an_earlier_lap_are_not_accepted(laps_ago):
    """The ring has 4 entries: an entry's tags come again after LAP / 4 laps of it."""
    mailbox = make()
    step = 7 + LAP
    old = step - 4 * laps_ago
    write(mailbox, old, tokens((0, 11), (1, 12), (2, 13)))
    assert mailbox.poll(old).token_ids.tolist() == [11, 12, 13]
    assert mailbox.poll(step) is None
    # The header and the first event of the new step are there, the two others are still the old.
    writer = write(mailbox, step, tokens((0, 21)), header=False)
    for index in range(len(HEADER_FIELDS)):
        writer.entry[index] = writer.word(3)
    assert mailbox.poll(step) is None
    write(mailbox, step, tokens((0, 21), (1, 22), (2, 23)))
    assert mailbox.poll(step).token_ids.tolist() == [21, 22, 23]


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_a_fresh_or_blanked_word_is_of_no_step(depth):
    mailbox = make(depth)
    for step in [*range(3 * depth), *range(LAP - 2 * depth, LAP + 2 * depth)]:
        assert mailbox.poll(step) is None, f"step {step} before it was written"
        write(mailbox, step, tokens((step % 6, step % 64)))
        assert mailbox.poll(step).token_ids.tolist() == [step % 64]
        assert mailbox.poll(step) is None, "a step is reported once"


def test_prompts_wrap_around_their_ring_and_wait_for_room():
    mailbox = make(prompt_capacity=40)

    def submission(slot: int, prompt: list[int]) -> Submission:
        return Submission(
            slot=slot, prompt=prompt, arrival=slot, arrival_ms=0, max_len=40, min_len=0,
            predicted_len=0, deadline_ms=0, priority=0, client=0, top_k=0, top_p=1.0, min_p=0.0,
            temperature=0.0, seed=0, stop_ids=(),
        )  # fmt: skip

    written = 0
    for step, length in enumerate([39, 17, 23, 1, 40, 12]):
        prompt = [100 * step + position for position in range(length)]
        assert mailbox.room_for(length)
        mailbox.post(step, 0, [submission(step % 6, prompt)], [])
        at = int(mailbox.commands.words[step % 4, 0, 2])
        ring = mailbox.commands.prompts.tolist()
        assert at == written % 40
        assert [ring[(at + position) % 40] for position in range(length)] == prompt
        assert not mailbox.room_for(40 - length + 1), "the device may not have read this prompt"
        written += length
        write(mailbox, step)
        mailbox.poll(step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, "power of two"),
        ({"depth": 6}, "power of two"),
        ({"depth": 2**16}, "power of two"),
        ({"max_commands": 0}, "max_commands"),
        ({"prompt_capacity": 39}, "max_model_len=40"),
    ],
)
def test_rings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_too_many_commands_are_refused():
    with pytest.raises(ValueError, match="at most 2 commands"):
        make(max_commands=2).post(0, 0, [], [0, 1, 2])


def test_waiting_ends_when_the_words_come():
    mailbox, asked = make(), []

    def is_done() -> bool:
        asked.append(0)
        if len(asked) == 40:
            write(mailbox, 0, tokens((0, 7)))
        return len(asked) >= 40  # the words came with the last thing the device did

    assert mailbox.wait(0, is_done, timeout=60).token_ids.tolist() == [7]


def test_waiting_ends_when_nothing_can_come():
    mailbox = make()
    with pytest.raises(SilentStep, match="step 0 ended on the device without"):
        mailbox.wait(0, lambda: True, timeout=60)
    began = time.monotonic()
    with pytest.raises(SilentStep, match=r"step 0 reported nothing for 0\.2 s"):
        mailbox.wait(0, lambda: False, timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 2


def test_waiting_does_not_keep_a_core_busy():
    """Under a third of a core in a long wait, where asking without a pause takes all of it."""
    mailbox = make()
    cpu, asked = time.thread_time(), []
    with pytest.raises(SilentStep):
        mailbox.wait(0, lambda: bool(asked.append(0)), timeout=0.5)
    assert time.thread_time() - cpu < 0.3
    assert len(asked) < 0.5 / 50e-6
