"""ingest: apply the host's commands for this step.

The host writes commands into a ring of pinned memory indexed by the step number; the device reads
the entry of its own step counter, so a replayed graph needs no argument that changes. One program
a command; commands name distinct slots, so their order does not matter.

A submission fills a row of the request table and the prefix hashes of its full pages; an abort
marks the row finished, and the later stages of the same step report and release it. What changes a
request's logits lies in the pinned row of its slot, and so does the token mask that a mask command
brings; the host writes there only what no step in flight may still read.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    ARRIVAL,
    ARRIVAL_MS,
    BEAM_INDEX,
    BEAM_WIDTH,
    CLIENT,
    DEADLINE_MS,
    EARLY_STOPPING,
    FINISH_REASON,
    FINISHED,
    FORCED_LEN,
    FORKING,
    LOGIT_EDITS,
    MASK_LEN,
    MAX_BEAM_WIDTH,
    MAX_LEN,
    MIN_LEN,
    NOW_MS,
    NUM_FORKS,
    NUM_HASHED,
    NUM_LOGPROBS,
    NUM_STOP_IDS,
    PARENT,
    PARENT_ARRIVAL,
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
from paged.kernels.control.hashing import mix
from paged.kernels.control.stage import stage
from paged.kernels.launch import interpreted
from paged.kernels.logit_edits import EDIT_BAD_WORDS, EDIT_BIAS, EDIT_MASK, WORDS

SUBMIT = tl.constexpr(1)
ABORT = tl.constexpr(2)
MASK = tl.constexpr(3)  # reads KIND, SLOT, W_LOGIT_EDITS and W_MASK_LEN
NUM_FLOATS = tl.constexpr(6)

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
W_TEMPERATURE = tl.constexpr(14)  # the first of NUM_FLOATS, in the order of `sampling`
W_PARENT = tl.constexpr(20)
W_PARENT_ARRIVAL = tl.constexpr(21)
W_NUM_FORKS = tl.constexpr(22)
W_LOGIT_EDITS = tl.constexpr(23)
W_NUM_FORCED = tl.constexpr(24)  # tokens behind the prompt
W_MASK_LEN = tl.constexpr(25)  # of a submission and of a mask
W_NUM_LOGPROBS = tl.constexpr(26)
W_BEAM_WIDTH = tl.constexpr(27)
W_BEAM_INDEX = tl.constexpr(28)
W_EARLY_STOPPING = tl.constexpr(29)
W_LENGTH_PENALTY = tl.constexpr(30)
W_TOTAL_LEN = tl.constexpr(31)  # the prompt's length, or 1 if the prompt is to be forced
W_STOP_IDS = tl.constexpr(32)
COMMAND_WORDS = 32 + NUM_STOP_IDS.value
WORST_SCORE = tl.constexpr(-1e9)  # of a beam that must not be chosen, as transformers has it


class Commands(NamedTuple):
    """The host's side of the mailbox, in pinned memory."""

    headers: torch.Tensor  # [depth, 2] int64: number of commands, clock in ms
    words: torch.Tensor  # [depth, max_commands, COMMAND_WORDS] int64
    prompts: torch.Tensor  # [capacity] int32, a ring
    edits: torch.Tensor  # [R, WORDS] int32
    masks: torch.Tensor  # [R, vocab / 32] int32


@triton.jit
def _copy_row(source, target, slot, WIDTH: tl.constexpr, TILE: tl.constexpr):
    row = slot.to(tl.int64) * WIDTH
    for first in range(0, WIDTH, TILE):
        at = first + tl.arange(0, TILE)
        tl.store(
            target + row + at, tl.load(source + row + at, mask=at < WIDTH, other=0), mask=at < WIDTH
        )


@triton.jit
def _ingest_kernel(
    headers, words, prompts, posted_edits, posted_masks, counters, columns, sampling, seed,
    stop_ids, token_ids, page_hash, edits, token_mask, length_penalty, beam_score, beam_slots,
    beam_finished, prompt_capacity,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr,
    DEPTH: tl.constexpr, MAX_COMMANDS: tl.constexpr, COMMAND_WORDS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, TILE_PAGES: tl.constexpr, NUM_COLUMNS: tl.constexpr,
    EDIT_WORDS: tl.constexpr, MASK_WORDS: tl.constexpr, MAX_BEAM_WIDTH: tl.constexpr,
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
        if (status == WAITING) | (status == RUNNING) | (status == FORKING):
            tl.store(columns + STATUS * R + slot, FINISHED)
            tl.store(columns + FINISH_REASON * R + slot, REASON_ABORT)
        return
    asked = tl.load(word + W_LOGIT_EDITS).to(tl.int32)
    if (asked & EDIT_MASK) != 0:
        _copy_row(posted_masks, token_mask, slot, MASK_WORDS, 1024)
    if tl.load(word + KIND) == MASK:
        tl.store(columns + MASK_LEN * R + slot, tl.load(word + W_MASK_LEN).to(tl.int32))
        return
    if (asked & (EDIT_BIAS | EDIT_BAD_WORDS)) != 0:
        _copy_row(posted_edits, edits, slot, EDIT_WORDS, 1024)

    prompt_len = tl.load(word + W_PROMPT_LEN).to(tl.int32)
    for column in tl.static_range(NUM_COLUMNS):
        tl.store(columns + column * R + slot, 0)
    tl.store(columns + STATUS * R + slot, WAITING)
    tl.store(columns + ARRIVAL * R + slot, tl.load(word + W_ARRIVAL).to(tl.int32))
    tl.store(columns + ARRIVAL_MS * R + slot, tl.load(word + W_ARRIVAL_MS).to(tl.int32))
    tl.store(columns + PRIORITY * R + slot, tl.load(word + W_PRIORITY).to(tl.int32))
    tl.store(columns + CLIENT * R + slot, tl.load(word + W_CLIENT).to(tl.int32))
    tl.store(columns + PROMPT_LEN * R + slot, prompt_len)
    tl.store(columns + TOTAL_LEN * R + slot, tl.load(word + W_TOTAL_LEN).to(tl.int32))
    tl.store(columns + NUM_HASHED * R + slot, prompt_len // PAGE_SIZE)
    tl.store(columns + MAX_LEN * R + slot, tl.load(word + W_MAX_LEN).to(tl.int32))
    tl.store(columns + MIN_LEN * R + slot, tl.load(word + W_MIN_LEN).to(tl.int32))
    tl.store(columns + PREDICTED_LEN * R + slot, tl.load(word + W_PREDICTED_LEN).to(tl.int32))
    tl.store(columns + DEADLINE_MS * R + slot, tl.load(word + W_DEADLINE_MS).to(tl.int32))
    tl.store(columns + TOP_K * R + slot, tl.load(word + W_TOP_K).to(tl.int32))
    tl.store(columns + PARENT * R + slot, tl.load(word + W_PARENT).to(tl.int32))
    tl.store(columns + PARENT_ARRIVAL * R + slot, tl.load(word + W_PARENT_ARRIVAL).to(tl.int32))
    tl.store(columns + NUM_FORKS * R + slot, tl.load(word + W_NUM_FORKS).to(tl.int32))
    width = tl.load(word + W_BEAM_WIDTH).to(tl.int32)
    if width > 0:
        index = tl.load(word + W_BEAM_INDEX).to(tl.int32)
        parent = tl.load(word + W_PARENT).to(tl.int32)
        first = tl.where(parent > 0, parent - 1, slot)
        tl.store(columns + BEAM_WIDTH * R + slot, width)
        tl.store(columns + BEAM_INDEX * R + slot, index)
        tl.store(columns + EARLY_STOPPING * R + slot, tl.load(word + W_EARLY_STOPPING).to(tl.int32))
        bits = tl.load(word + W_LENGTH_PENALTY).to(tl.int32)
        tl.store(length_penalty + slot, bits.to(tl.float32, bitcast=True))
        tl.store(beam_score + slot, tl.where(index == 0, 0.0, WORST_SCORE))
        tl.store(beam_slots + first * MAX_BEAM_WIDTH + index, slot)
        beam = tl.arange(0, MAX_BEAM_WIDTH)
        worst = tl.full([MAX_BEAM_WIDTH], WORST_SCORE, tl.float32)
        tl.store(beam_finished + slot * MAX_BEAM_WIDTH + beam, worst)
    tl.store(seed + slot, tl.load(word + W_SEED))
    tl.store(columns + LOGIT_EDITS * R + slot, asked)
    known_len = prompt_len + tl.load(word + W_NUM_FORCED).to(tl.int32)
    tl.store(columns + FORCED_LEN * R + slot, known_len)
    tl.store(columns + MASK_LEN * R + slot, tl.load(word + W_MASK_LEN).to(tl.int32))
    tl.store(columns + NUM_LOGPROBS * R + slot, tl.load(word + W_NUM_LOGPROBS).to(tl.int32))
    for field in tl.static_range(NUM_FLOATS):
        bits = tl.load(word + W_TEMPERATURE + field).to(tl.int32)
        tl.store(sampling + field * R + slot, bits.to(tl.float32, bitcast=True))
    stops = tl.arange(0, NUM_STOP_IDS)
    tl.store(
        stop_ids + slot * NUM_STOP_IDS + stops, tl.load(word + W_STOP_IDS + stops).to(tl.int32)
    )

    start = tl.load(word + PROMPT_AT)
    prefix = tl.zeros((), dtype=tl.int64)
    for first in range(0, known_len, TILE_PAGES * PAGE_SIZE):
        page = tl.arange(0, TILE_PAGES)
        position = first + page[:, None] * PAGE_SIZE + tl.arange(0, PAGE_SIZE)[None, :]
        live = position < known_len
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


@stage
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
        commands.headers, commands.words, commands.prompts, commands.edits, commands.masks,
        pool.counters, requests.columns, requests.sampling, requests.seed, requests.stop_ids,
        requests.token_ids, requests.page_hash, requests.edits, requests.token_mask,
        requests.length_penalty, requests.beam_score, requests.beam_slots, requests.beam_finished,
        commands.prompts.shape[0],
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, MAX_PAGES=sizes.max_pages_per_seq,
        DEPTH=depth, MAX_COMMANDS=max_commands, COMMAND_WORDS=width, PAGE_SIZE=sizes.page_size,
        TILE_PAGES=tile_pages, NUM_COLUMNS=requests.columns.shape[0], EDIT_WORDS=WORDS,
        MASK_WORDS=requests.token_mask.shape[1], MAX_BEAM_WIDTH=MAX_BEAM_WIDTH.value,
    )  # fmt: skip
