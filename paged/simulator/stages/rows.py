"""ingest and update over numpy: see the kernels of these names in `paged.kernels.control`."""

from typing import Any

import numpy as np

from paged.kernels.control import ingest as command
from paged.kernels.control import update as event
from paged.kernels.control.columns import (
    COLUMN_NAMES,
    REASON_ABORT,
    REASON_ERROR,
    REASON_LENGTH,
    REASON_STOP,
)
from paged.kernels.logit_edits import EDIT_BAD_WORDS, EDIT_BIAS, EDIT_MASK
from paged.simulator.stages.views import (
    AT_NOW_MS,
    AT_STEP,
    IS_FINISHED,
    IS_FORKING,
    IS_PREEMPTED,
    IS_RUNNING,
    IS_WAITING,
    mix,
)

# Plain ints: see views.py. Kinds of events as they stand in a word.
HEADER_WORDS = event.HEADER_WORDS.value
ADMITTED, PREEMPTED = event.EVENT_ADMITTED.value << 44, event.EVENT_PREEMPTED.value << 44
TOKEN, END = event.EVENT_TOKEN.value << 44, event.EVENT_END.value << 44
STOP, LENGTH = REASON_STOP.value, REASON_LENGTH.value
# Column of the table: word of a submission.
FROM_WORD = {
    "arrival": command.W_ARRIVAL, "arrival_ms": command.W_ARRIVAL_MS,
    "priority": command.W_PRIORITY, "client": command.W_CLIENT,
    "prompt_len": command.W_PROMPT_LEN, "total_len": command.W_PROMPT_LEN,
    "max_len": command.W_MAX_LEN, "min_len": command.W_MIN_LEN,
    "predicted_len": command.W_PREDICTED_LEN, "deadline_ms": command.W_DEADLINE_MS,
    "top_k": command.W_TOP_K, "parent": command.W_PARENT,
    "parent_arrival": command.W_PARENT_ARRIVAL, "num_forks": command.W_NUM_FORKS,
    "logit_edits": command.W_LOGIT_EDITS, "mask_len": command.W_MASK_LEN,
    "num_logprobs": command.W_NUM_LOGPROBS,
}  # fmt: skip
COLUMNS = np.array([COLUMN_NAMES.index(name) for name in FROM_WORD])
WORDS = np.array([word.value for word in FROM_WORD.values()])
FLOATS = slice(command.W_TEMPERATURE.value, command.W_TEMPERATURE.value + command.NUM_FLOATS.value)


def apply_commands(requests: Any, pool: Any, commands: Any, page_size: int) -> None:
    """Apply the commands of this step; sets the clock."""
    entry = int(pool.counters[AT_STEP]) % len(commands.words)
    count, pool.counters[AT_NOW_MS] = commands.headers[entry]
    for word in commands.words[entry, :count]:
        kind, slot = int(word[command.KIND.value]), int(word[command.SLOT.value])
        if kind == command.ABORT.value:
            if requests.status[slot] in (IS_WAITING, IS_RUNNING, IS_FORKING):
                requests.status[slot] = IS_FINISHED
                requests.finish_reason[slot] = REASON_ABORT.value
            continue
        asked = int(word[command.W_LOGIT_EDITS.value])
        if asked & EDIT_MASK.value:
            requests.token_mask[slot] = commands.masks[slot]
        if kind == command.MASK.value:
            requests.mask_len[slot] = word[command.W_MASK_LEN.value]
            continue
        if asked & (EDIT_BIAS.value | EDIT_BAD_WORDS.value):
            requests.edits[slot] = commands.edits[slot]
        _submit(requests, commands, word, slot, page_size)


def _submit(requests: Any, commands: Any, word: np.ndarray, slot: int, page_size: int) -> None:
    length = int(word[command.W_PROMPT_LEN.value])
    known = length + int(word[command.W_NUM_FORCED.value])
    requests.columns[:, slot] = 0
    requests.columns[COLUMNS, slot] = word[WORDS]
    requests.status[slot] = IS_WAITING
    requests.num_hashed[slot] = length // page_size
    requests.forced_len[slot] = known
    requests.seed[slot] = word[command.W_SEED.value]
    requests.sampling[:, slot] = word[FLOATS].astype(np.int32).view(np.float32)
    requests.stop_ids[slot] = word[command.W_STOP_IDS.value :]

    begin, ring = int(word[command.PROMPT_AT.value]), len(commands.prompts)
    first = min(known, ring - begin)
    tokens = requests.token_ids[slot]
    tokens[:first] = commands.prompts[begin : begin + first]
    tokens[first:known] = commands.prompts[: known - first]
    full = length // page_size
    in_pages = mix(tokens[: full * page_size], np.arange(full * page_size))
    in_pages = in_pages.reshape(full, page_size).sum(axis=1)
    requests.page_hash[slot, :full] = in_pages.cumsum()


def advance_rows(requests: Any, pool: Any, plan: Any, events: np.ndarray, page_size: int) -> None:
    """Append the drawn tokens, find the ends, list the rows that publish, and write events."""
    step = int(pool.counters[AT_STEP])
    status = requests.status
    preempted = (status == IS_PREEMPTED).nonzero()[0]
    aborted = (status == IS_FINISHED).nonzero()[0]
    running = (status == IS_RUNNING).nonzero()[0]
    requests.num_computed_tokens[running] += plan.grant[running]

    drew = running[plan.slot_sample[running] >= 0]
    sample = plan.slot_sample[drew]
    token = plan.sampled_tokens[sample]
    failed = drew[token < 0]
    if len(failed):
        drew, sample, token = (x[token >= 0] for x in (drew, sample, token))
    total = requests.total_len[drew]
    requests.token_ids[drew, total] = token
    requests.total_len[drew] = total + 1
    is_stop = (requests.stop_ids[drew] == token[:, None]).any(axis=1)
    stopped = is_stop & (total >= requests.min_len[drew])
    ended = stopped | (total + 1 >= requests.max_len[drew])
    reason = np.where(stopped, STOP, LENGTH)
    ending = np.concatenate((drew[ended], failed))
    status[ending] = IS_FINISHED
    requests.finish_reason[drew[ended]] = reason[ended]
    requests.finish_reason[failed] = REASON_ERROR.value

    full = requests.num_computed_tokens[drew] // page_size
    publishes = drew[full > requests.num_published[drew]]
    plan.published_slots[: len(publishes)] = publishes
    plan.counts[3] = len(publishes)

    joined = plan.admitted.nonzero()[0]
    ends = np.sort(np.concatenate((ending, aborted)))
    bits = plan.sampled_logprobs[sample].view(np.int32)
    kinds = (
        (ADMITTED, joined, requests.cached_len[joined], None),
        (PREEMPTED, preempted, requests.num_computed_tokens[preempted], None),
        (TOKEN, drew, token, bits),
        (END, ends, requests.finish_reason[ends], None),
    )
    tag = step_tag(step)
    at = HEADER_WORDS
    entry = events[step % len(events)]
    for kind, slot, value, extra in kinds:
        if len(slot) == 0:
            continue
        end = at + 2 * len(slot)
        word = (slot.astype(np.int64) << 24) | (value.astype(np.int64) & 0xFFFFFF)
        entry[at:end:2] = word | (tag | kind)
        entry[at + 1 : end : 2] = (
            tag if extra is None else (extra.astype(np.int64) & (2**32 - 1)) | tag
        )
        at = end
    plan.counts[7] = (at - HEADER_WORDS) // 2


def step_tag(step: int) -> int:
    """The upper 16 bits of every word of a step, as an int64."""
    tag = ((step + 1) & 0xFFFF) << 48
    return tag - (1 << 64) if tag >> 63 else tag
