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
from paged.kernels.launch import interpreted, pdl
from paged.kernels.logit_edits import EDIT_BAD_WORDS, EDIT_BIAS, EDIT_MASK, WORDS

SUBMIT = tl.constexpr(1)
ABORT = tl.constexpr(2)
MASK = tl.constexpr(3)  # reads KIND, SLOT, W_LOGIT_EDITS and W_MASK_LEN
NUM_FLOATS = tl.constexpr(6)
FLOAT_LANES = tl.constexpr(8)
COLUMN_LANES = tl.constexpr(64)  # powers of two that hold them

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
def _word_of(column):
    """The word of a submission that goes into the column as it is, or -1."""
    at = tl.where(column == ARRIVAL, W_ARRIVAL, -1)
    at = tl.where(column == ARRIVAL_MS, W_ARRIVAL_MS, at)
    at = tl.where(column == PRIORITY, W_PRIORITY, at)
    at = tl.where(column == CLIENT, W_CLIENT, at)
    at = tl.where(column == PROMPT_LEN, W_PROMPT_LEN, at)
    at = tl.where(column == TOTAL_LEN, W_TOTAL_LEN, at)
    at = tl.where(column == MAX_LEN, W_MAX_LEN, at)
    at = tl.where(column == MIN_LEN, W_MIN_LEN, at)
    at = tl.where(column == PREDICTED_LEN, W_PREDICTED_LEN, at)
    at = tl.where(column == DEADLINE_MS, W_DEADLINE_MS, at)
    at = tl.where(column == TOP_K, W_TOP_K, at)
    at = tl.where(column == PARENT, W_PARENT, at)
    at = tl.where(column == PARENT_ARRIVAL, W_PARENT_ARRIVAL, at)
    at = tl.where(column == NUM_FORKS, W_NUM_FORKS, at)
    at = tl.where(column == LOGIT_EDITS, W_LOGIT_EDITS, at)
    at = tl.where(column == MASK_LEN, W_MASK_LEN, at)
    at = tl.where(column == NUM_LOGPROBS, W_NUM_LOGPROBS, at)
    at = tl.where(column == BEAM_WIDTH, W_BEAM_WIDTH, at)
    at = tl.where(column == BEAM_INDEX, W_BEAM_INDEX, at)
    return tl.where(column == EARLY_STOPPING, W_EARLY_STOPPING, at)


@triton.jit
def _ingest_kernel(
    headers, words, prompts, posted_edits, posted_masks, counters, columns, sampling, seed,
    stop_ids, token_ids, page_hash, edits, token_mask, length_penalty, beam_score, beam_slots,
    beam_finished, prompt_capacity,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr,
    DEPTH: tl.constexpr, MAX_COMMANDS: tl.constexpr, COMMAND_WORDS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, TILE_PAGES: tl.constexpr, NUM_COLUMNS: tl.constexpr,
    EDIT_WORDS: tl.constexpr, MASK_WORDS: tl.constexpr, MAX_BEAM_WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    index = tl.program_id(0)
    entry = (tl.load(counters + STEP) % DEPTH).to(tl.int32)
    num_commands, now_ms = tl.load(headers + entry * 2), tl.load(headers + entry * 2 + 1)
    if index == 0:
        tl.store(counters + NOW_MS, now_ms)
    if index >= num_commands:
        return
    word = words + (entry * MAX_COMMANDS + index) * COMMAND_WORDS
    slot, kind = tl.load(word + SLOT).to(tl.int32), tl.load(word + KIND)
    asked = tl.load(word + W_LOGIT_EDITS).to(tl.int32)
    if kind == ABORT:
        status = tl.load(columns + STATUS * R + slot)
        # A request that ended by itself in an earlier step is already free: nothing to abort.
        if (status == WAITING) | (status == RUNNING) | (status == FORKING):
            tl.store(columns + STATUS * R + slot, FINISHED)
            tl.store(columns + FINISH_REASON * R + slot, REASON_ABORT)
        return
    if (asked & EDIT_MASK) != 0:
        _copy_row(posted_masks, token_mask, slot, MASK_WORDS, 1024)
    if kind == MASK:
        tl.store(columns + MASK_LEN * R + slot, tl.load(word + W_MASK_LEN).to(tl.int32))
        return
    if (asked & (EDIT_BIAS | EDIT_BAD_WORDS)) != 0:
        _copy_row(posted_edits, edits, slot, EDIT_WORDS, 1024)

    # The words lie in the host's memory: all are on their way before the first is waited for.
    column = tl.arange(0, COLUMN_LANES)
    at = _word_of(column)
    row = tl.load(word + at, mask=at >= 0, other=0).to(tl.int32)
    field = tl.arange(0, FLOAT_LANES)
    floats = tl.load(word + W_TEMPERATURE + field, mask=field < NUM_FLOATS, other=0).to(tl.int32)
    stops = tl.arange(0, NUM_STOP_IDS)
    stop_tokens = tl.load(word + W_STOP_IDS + stops).to(tl.int32)
    row_seed, start = tl.load(word + W_SEED), tl.load(word + PROMPT_AT)
    prompt_len = tl.load(word + W_PROMPT_LEN).to(tl.int32)
    known_len = prompt_len + tl.load(word + W_NUM_FORCED).to(tl.int32)
    width = tl.load(word + W_BEAM_WIDTH).to(tl.int32)
    beam_index = tl.load(word + W_BEAM_INDEX).to(tl.int32)
    parent = tl.load(word + W_PARENT).to(tl.int32)
    penalty = tl.load(word + W_LENGTH_PENALTY).to(tl.int32)

    row = tl.where(column == STATUS, WAITING, row)
    row = tl.where(column == NUM_HASHED, prompt_len // PAGE_SIZE, row)
    row = tl.where(column == FORCED_LEN, known_len, row)
    tl.store(columns + column * R + slot, row, mask=column < NUM_COLUMNS)
    bits = floats.to(tl.float32, bitcast=True)
    tl.store(sampling + field * R + slot, bits, mask=field < NUM_FLOATS)
    tl.store(stop_ids + slot * NUM_STOP_IDS + stops, stop_tokens)
    tl.store(seed + slot, row_seed)
    if width > 0:
        first = tl.where(parent > 0, parent - 1, slot)
        tl.store(length_penalty + slot, penalty.to(tl.float32, bitcast=True))
        tl.store(beam_score + slot, tl.where(beam_index == 0, 0.0, WORST_SCORE))
        tl.store(beam_slots + first * MAX_BEAM_WIDTH + beam_index, slot)
        beam = tl.arange(0, MAX_BEAM_WIDTH)
        worst = tl.full([MAX_BEAM_WIDTH], WORST_SCORE, tl.float32)
        tl.store(beam_finished + slot * MAX_BEAM_WIDTH + beam, worst)

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
        MASK_WORDS=requests.token_mask.shape[1], MAX_BEAM_WIDTH=MAX_BEAM_WIDTH.value, **pdl(),
    )  # fmt: skip
