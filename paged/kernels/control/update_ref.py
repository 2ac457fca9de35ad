"""The reference of update.py: row by row, and its events written as the kernel writes them."""

import torch

from paged.kernels.control.columns import (
    FINISHED,
    PREEMPTED,
    REASON_ERROR,
    REASON_LENGTH,
    REASON_STOP,
    RUNNING,
    STEP,
)
from paged.kernels.control.update import (
    EVENT_ADMITTED,
    EVENT_END,
    EVENT_PREEMPTED,
    EVENT_SEQUENCE,
    EVENT_TOKEN,
    HEADER_WORDS,
    Events,
)


class EventWriter:
    """Packs the events of one step as `update` does, for references."""

    def __init__(self, events: Events, step: int) -> None:
        self.entry = events.words[step % events.words.shape[0]]
        self.tag = ((step + 1) & 0xFFFF) << 48
        self.count = 0

    def word(self, value: int) -> int:
        """A tagged word, as the int64 with the same bits."""
        word = self.tag | value
        return word - (1 << 64) if word >> 63 else word

    def emit(self, kind: int, slot: int, value: int, extra: int = 0, beam: int = 0) -> None:
        at = HEADER_WORDS.value + 2 * self.count
        self.entry[at] = self.word((kind << 44) | (slot << 24) | (value & 0xFFFFFF))
        self.entry[at + 1] = self.word((beam << 32) | (extra & 0xFFFFFFFF))
        self.count += 1


def update_ref(requests, pool, plan, events: Events) -> None:
    """What `update` does."""
    page_size = requests.sizes.page_size
    tokens: list[tuple[int, int, int, int]] = []
    ends = [(s, int(requests.finish_reason[s])) for s in slots_of(requests, FINISHED.value)]
    preempted = slots_of(requests, PREEMPTED.value)
    published_rows, logprob_bits = 0, plan.sampled_logprobs.view(torch.int32).tolist()
    for slot in slots_of(requests, RUNNING.value):
        requests.num_computed_tokens[slot] += plan.grant[slot]
        sample = int(plan.slot_sample[slot])
        if sample < 0:
            continue
        accepted = int(plan.num_accepted[slot]) if requests.sizes.num_draft_tokens else 0
        for row in range(sample - accepted, sample):
            tokens.append((slot, int(plan.sampled_tokens[row]), logprob_bits[row], 0))
        token, total = int(plan.sampled_tokens[sample]), int(requests.total_len[slot])
        if token < 0:
            reason = REASON_ERROR.value
        else:
            requests.token_ids[slot, total] = token
            requests.total_len[slot] = total + 1
            beam = int(requests.beam_width[slot]) > 0
            source = int(plan.beam_source[slot])
            origin = int(requests.beam_index[source]) if beam and source >= 0 else 0
            tokens.append((slot, token, logprob_bits[sample], origin))
            lasting = int(requests.num_computed_tokens[slot])
            if beam:
                lasting = min(lasting, int(requests.prompt_len[slot]))
            full_pages = lasting // page_size
            whole = int(requests.num_dropped[slot]) == 0
            if whole and full_pages > int(requests.num_published[slot]):
                plan.published_slots[published_rows] = slot
                published_rows += 1
            may_stop = total >= int(requests.min_len[slot]) and not beam
            if may_stop and token in requests.stop_ids[slot].tolist():
                reason = REASON_STOP.value
            elif total + 1 >= int(requests.max_len[slot]):
                reason = REASON_LENGTH.value
            else:
                continue
        requests.status[slot] = FINISHED.value
        requests.finish_reason[slot] = reason
        ends.append((slot, reason))

    writer = EventWriter(events, int(pool.counters[STEP.value]))
    for slot in plan.admitted.nonzero().flatten().tolist():
        writer.emit(EVENT_ADMITTED.value, slot, int(requests.cached_len[slot]))
    for slot in preempted:
        writer.emit(EVENT_PREEMPTED.value, slot, int(requests.num_computed_tokens[slot]))
    for slot, token, bits, beam in tokens:
        writer.emit(EVENT_TOKEN.value, slot, token, bits, beam)
    for slot, reason in sorted(ends):
        writer.emit(EVENT_END.value, slot, reason)
    for place in (plan.ended_source >= 0).nonzero().flatten().tolist():
        bits = int(plan.ended_score[place].view(torch.int32))
        token = int(plan.ended_token[place])
        writer.emit(EVENT_SEQUENCE.value, int(plan.ended_source[place]), token, bits)
    plan.beam_source.fill_(-1)
    plan.ended_source.fill_(-1)
    plan.num_published_rows.fill_(published_rows)
    plan.num_events.fill_(writer.count)


def slots_of(requests, status: int) -> list[int]:
    """The rows with a status, in order."""
    return (requests.status == status).nonzero().flatten().tolist()
