"""ingest: apply the host's commands for this step.

The host writes commands into a ring of pinned memory indexed by the step number; the device reads
the entry of its own step counter, so a replayed graph needs no argument that changes. One program
a command; commands name distinct slots, so their order does not matter.

A submission fills a row of the request table and the prefix hashes of its full pages; an abort
marks the row finished, and the later stages of the same step report and release it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    ARRIVAL,
    ARRIVAL_MS,
    CLIENT,
    DEADLINE_MS,
    FINISH_REASON,
    FINISHED,
    MAX_LEN,
    MIN_LEN,
    NOW_MS,
    NUM_HASHED,
    NUM_STOP_IDS,
    PREDICTED_LEN,
    PRIORITY,
    PROMPT_LEN,
    REASON_ABORT,
    RUNNING,
    STATUS,
    STEP,
    TOP_K,
    TOTAL_LEN,
    WAITING,
)  # fmt: skip
from paged.kernels.control.hashing import mix, mix_ref
from paged.kernels.launch import interpreted

SUBMIT = tl.constexpr(1)
ABORT = tl.constexpr(2)

# Words of a command, int64. Floats travel as the bits of their float32.
KIND = tl.constexpr(0)
SLOT = tl.constexpr(1)
PROMPT_AT = tl.constexpr(2)  # where the prompt starts in the prompt ring
W_ARRIVAL = tl.constexpr(3)
W_ARRIVAL_MS = tl.constexpr(4)
W_PRIORITY = tl.constexpr(5)
W_CLIENT = tl.constexpr(6)
W_PROMPT_LEN = tl.constexpr(7)
W_MAX_LEN = tl.constexpr(8)
W_MIN_LEN = tl.constexpr(9)
W_PREDICTED_LEN = tl.constexpr(10)
W_DEADLINE_MS = tl.constexpr(11)
W_TOP_K = tl.constexpr(12)
W_SEED = tl.constexpr(13)
W_TEMPERATURE = tl.constexpr(14)
W_TOP_P = tl.constexpr(15)
W_MIN_P = tl.constexpr(16)
W_STOP_IDS = tl.constexpr(17)
COMMAND_WORDS = 17 + NUM_STOP_IDS.value


class Commands(NamedTuple):
    """The host's side of the mailbox, in pinned memory."""

    headers: torch.Tensor  # [depth, 2] int64: number of commands, clock in ms
    words: torch.Tensor  # [depth, max_commands, COMMAND_WORDS] int64
    prompts: torch.Tensor  # [capacity] int32, a ring


@triton.jit
def _ingest_kernel(
    headers, words, prompts, counters, columns, sampling, seed, stop_ids, token_ids, page_hash,
    prompt_capacity,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr,
    DEPTH: tl.constexpr, MAX_COMMANDS: tl.constexpr, COMMAND_WORDS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, TILE_PAGES: tl.constexpr, NUM_COLUMNS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    entry = (tl.load(counters + STEP) % DEPTH).to(tl.int32)
    if index == 0:
        tl.store(counters + NOW_MS, tl.load(headers + entry * 2 + 1))
    if index >= tl.load(headers + entry * 2):
        return
    word = words + (entry * MAX_COMMANDS + index) * COMMAND_WORDS
    slot = tl.load(word + SLOT).to(tl.int32)
    status = tl.load(columns + STATUS * R + slot)
    if tl.load(word + KIND) == ABORT:
        # A request that ended by itself in an earlier step is already free: nothing to abort.
        if (status == WAITING) | (status == RUNNING):
            tl.store(columns + STATUS * R + slot, FINISHED)
            tl.store(columns + FINISH_REASON * R + slot, REASON_ABORT)
        return

    prompt_len = tl.load(word + W_PROMPT_LEN).to(tl.int32)
    for column in tl.static_range(NUM_COLUMNS):
        tl.store(columns + column * R + slot, 0)
    tl.store(columns + STATUS * R + slot, WAITING)
    tl.store(columns + ARRIVAL * R + slot, tl.load(word + W_ARRIVAL).to(tl.int32))
    tl.store(columns + ARRIVAL_MS * R + slot, tl.load(word + W_ARRIVAL_MS).to(tl.int32))
    tl.store(columns + PRIORITY * R + slot, tl.load(word + W_PRIORITY).to(tl.int32))
    tl.store(columns + CLIENT * R + slot, tl.load(word + W_CLIENT).to(tl.int32))
    tl.store(columns + PROMPT_LEN * R + slot, prompt_len)
    tl.store(columns + TOTAL_LEN * R + slot, prompt_len)
    tl.store(columns + NUM_HASHED * R + slot, prompt_len // PAGE_SIZE)
    tl.store(columns + MAX_LEN * R + slot, tl.load(word + W_MAX_LEN).to(tl.int32))
    tl.store(columns + MIN_LEN * R + slot, tl.load(word + W_MIN_LEN).to(tl.int32))
    tl.store(columns + PREDICTED_LEN * R + slot, tl.load(word + W_PREDICTED_LEN).to(tl.int32))
    tl.store(columns + DEADLINE_MS * R + slot, tl.load(word + W_DEADLINE_MS).to(tl.int32))
    tl.store(columns + TOP_K * R + slot, tl.load(word + W_TOP_K).to(tl.int32))
    tl.store(seed + slot, tl.load(word + W_SEED))
    for field in tl.static_range(3):
        bits = tl.load(word + W_TEMPERATURE + field).to(tl.int32)
        tl.store(sampling + field * R + slot, bits.to(tl.float32, bitcast=True))
    stops = tl.arange(0, NUM_STOP_IDS)
    tl.store(
        stop_ids + slot * NUM_STOP_IDS + stops, tl.load(word + W_STOP_IDS + stops).to(tl.int32)
    )

    start = tl.load(word + PROMPT_AT)
    prefix = tl.zeros((), dtype=tl.int64)
    for first in range(0, prompt_len, TILE_PAGES * PAGE_SIZE):
        page = tl.arange(0, TILE_PAGES)
        position = first + page[:, None] * PAGE_SIZE + tl.arange(0, PAGE_SIZE)[None, :]
        live = position < prompt_len
        token = tl.load(prompts + (start + position) % prompt_capacity, mask=live, other=0)
        tl.store(token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS + position, token, mask=live)
        key = prefix + tl.cumsum(tl.sum(tl.where(live, mix(token, position), 0), axis=1), axis=0)
        index_page = first // PAGE_SIZE + page
        tl.store(
            page_hash + slot.to(tl.int64) * MAX_PAGES + index_page,
            key,
            mask=(index_page + 1) * PAGE_SIZE <= prompt_len,
        )
        prefix = tl.sum(tl.where(page == TILE_PAGES - 1, key, 0), axis=0)


def ingest(requests, pool, commands: Commands, num_commands: int) -> None:
    """Apply the commands of the device's current step; sets the clock.

    `num_commands` bounds the commands of this step; a captured launch passes the ring's capacity.
    """
    sizes = requests.sizes
    depth, max_commands, width = commands.words.shape
    tokens = 8192 if interpreted() else 1024
    tile_pages = min(
        max(1, tokens // sizes.page_size), triton.next_power_of_2(sizes.max_pages_per_seq)
    )
    _ingest_kernel[(max(1, num_commands),)](
        commands.headers, commands.words, commands.prompts, pool.counters, requests.columns,
        requests.sampling, requests.seed, requests.stop_ids, requests.token_ids,
        requests.page_hash, commands.prompts.shape[0],
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, MAX_PAGES=sizes.max_pages_per_seq,
        DEPTH=depth, MAX_COMMANDS=max_commands, COMMAND_WORDS=width, PAGE_SIZE=sizes.page_size,
        TILE_PAGES=tile_pages, NUM_COLUMNS=requests.columns.shape[0],
    )  # fmt: skip


def ingest_ref(requests, pool, commands: Commands, num_commands: int) -> None:
    """The same, a command at a time."""
    del num_commands
    entry = int(pool.counters[STEP.value]) % commands.words.shape[0]
    count, now_ms = commands.headers[entry].tolist()
    pool.counters[NOW_MS.value] = now_ms
    page_size = requests.sizes.page_size
    for word in commands.words[entry, :count]:
        slot = int(word[SLOT.value])
        if int(word[KIND.value]) == ABORT.value:
            if int(requests.status[slot]) in (WAITING.value, RUNNING.value):
                requests.status[slot] = FINISHED.value
                requests.finish_reason[slot] = REASON_ABORT.value
            continue
        length = int(word[W_PROMPT_LEN.value])
        requests.columns[:, slot] = 0
        requests.status[slot] = WAITING.value
        requests.arrival[slot] = word[W_ARRIVAL.value]
        requests.arrival_ms[slot] = word[W_ARRIVAL_MS.value]
        requests.priority[slot] = word[W_PRIORITY.value]
        requests.client[slot] = word[W_CLIENT.value]
        requests.prompt_len[slot] = requests.total_len[slot] = length
        requests.num_hashed[slot] = length // page_size
        requests.max_len[slot] = word[W_MAX_LEN.value]
        requests.min_len[slot] = word[W_MIN_LEN.value]
        requests.predicted_len[slot] = word[W_PREDICTED_LEN.value]
        requests.deadline_ms[slot] = word[W_DEADLINE_MS.value]
        requests.top_k[slot] = word[W_TOP_K.value]
        requests.seed[slot] = word[W_SEED.value]
        bits = word[W_TEMPERATURE.value : W_TEMPERATURE.value + 3].to(torch.int32)
        requests.sampling[:, slot] = bits.view(torch.float32).to(requests.sampling.device)
        requests.stop_ids[slot] = word[W_STOP_IDS.value :].to(torch.int32)
        position = torch.arange(length)
        ring = commands.prompts.shape[0]
        tokens = commands.prompts[(int(word[PROMPT_AT.value]) + position) % ring]
        requests.token_ids[slot, :length] = tokens
        prefix = mix_ref(tokens, position).cumsum(0)
        full = length // page_size
        requests.page_hash[slot, :full] = prefix[page_size - 1 :: page_size][:full]
