"""Change the logits of the rows whose requests ask for it, in place, before the sampler sees them.

Row i is changed as slot slots[i] asks, in vLLM's order (`Sampler.apply_logits_processors`; what
forbids a token comes last here, where it gives the same):

    logit += bias                                   logit_bias, for each of its tokens
    logit *= 1 / r if logit > 0 else r              repetition_penalty r, tokens of prompt or output
    logit -= f * count + p * (count > 0)            frequency_penalty f, presence_penalty p; count
                                                    is how often the output holds the token
    logit  = -inf                                   tokens whose bit of token_mask is 0
    logit  = -inf                                   the last token of a bad word whose others are
                                                    the last of the output

The log-probabilities that are reported stay those of the model. So of each row that is changed the
raw logits go to `raw`, and of each row that reports anything go the block's softmax sum, and its
largest logits if it asks for them, to the workspace: report_draws.py reads them after the draw.

The grid is one program for each processor, whatever the batch. Each lists the rows that ask for
something and takes every grid-th block of the vocabulary of those rows; without such a row all end
at once. A block counts the row's tokens that lie in it, by histograms: no table of counts, no
atomics in memory, and the bits depend on the row alone. Rows from num_rows on are left alone.
Everything contiguous.

Keskar et al., "CTRL: a conditional transformer language model for controllable generation" (2019),
for the repetition penalty.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import LOGIT_EDITS, NUM_LOGPROBS, PROMPT_LEN, TOTAL_LEN
from paged.kernels.floor_search import LOWEST
from paged.kernels.launch import check_tensor, interpreted, pdl
from paged.kernels.logit_edits import (
    BAD_WORD_TOKENS,
    BAD_WORDS,
    BIAS,
    BIAS_IDS,
    EDIT_BAD_WORDS,
    EDIT_BIAS,
    EDIT_MASK,
    EDIT_PENALTIES,
    EDITS,
    MAX_BAD_WORDS,
    MAX_BIAS,
    WORDS,
    mask_words,
)  # fmt: skip
from paged.kernels.sampling_tiles import choose_tiles

REPETITION, PRESENCE, FREQUENCY = (tl.constexpr(field) for field in (3, 4, 5))  # of `sampling`
NUM_PROGRAMS = 132  # about the processors of a large GPU
TOP = tl.constexpr(32)  # room for MAX_LOGPROBS, a power of two


class LogitsWorkspace(NamedTuple):
    """What is known of the raw logits of each row, for the report after the draw."""

    raw: torch.Tensor  # [rows, vocab] float32, of rows that were changed
    sums: torch.Tensor  # [rows, 2, blocks] float32: largest logit, sum of exp(logit - largest)
    top: torch.Tensor  # [rows, 2, blocks, TOP] float32: largest logits, and their ids by their bits


def logits_workspace(max_rows: int, vocab_size: int, device: torch.device | str) -> LogitsWorkspace:
    """Memory for calls with up to max_rows rows of vocab_size logits."""
    blocks = triton.cdiv(vocab_size, choose_tiles(max_rows, vocab_size).edit_v)
    return LogitsWorkspace(
        torch.zeros(max_rows, vocab_size, dtype=torch.float32, device=device),
        torch.zeros(max_rows, 2, blocks, dtype=torch.float32, device=device),
        torch.zeros(max_rows, 2, blocks, TOP.value, dtype=torch.float32, device=device),
    )


@triton.jit
def _count(tokens_ptr, first, end, start, BLOCK_V: tl.constexpr, TILE: tl.constexpr):
    """How often each id from `start` on is among the tokens of [first, end): int32 [BLOCK_V]."""
    counts = tl.zeros([BLOCK_V], tl.int32)
    for at in range(first, end, TILE):
        lanes = at + tl.arange(0, TILE)
        there = lanes < end
        places = tl.load(tokens_ptr + lanes, mask=there, other=0) - start
        there = there & (places >= 0) & (places < BLOCK_V)
        counts += tl.histogram(tl.where(there, places, 0), BLOCK_V, mask=there)
    return counts


@triton.jit
def _penalize(
    logits, slot, start, total_len, columns, sampling, token_ids,
    R: tl.constexpr, MAX_LEN: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tokens_ptr = token_ids + slot.to(tl.int64) * MAX_LEN
    prompt_len = tl.load(columns + PROMPT_LEN * R + slot)
    repetition = tl.load(sampling + REPETITION * R + slot)
    presence = tl.load(sampling + PRESENCE * R + slot)
    frequency = tl.load(sampling + FREQUENCY * R + slot)
    counts = _count(tokens_ptr, prompt_len, total_len, start, BLOCK_V, TILE)
    seen = counts > 0
    if repetition != 1.0:
        seen = seen | (_count(tokens_ptr, 0, prompt_len, start, BLOCK_V, TILE) > 0)
    scale = tl.where(logits > 0, 1.0 / repetition, repetition)
    logits = tl.where(seen, logits * scale, logits)
    logits -= frequency * counts.to(tl.float32)
    return logits - presence * (counts > 0).to(tl.float32)


@triton.jit
def _forbid_bad_words(
    row_ptr, tokens_ptr, edits_ptr, start, prompt_len, total_len, vocab_size,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Put -inf to the ids of this block that would complete a bad word."""
    words = tl.arange(0, MAX_BAD_WORDS)
    place = tl.arange(0, BAD_WORD_TOKENS)
    there = words < tl.load(edits_ptr + 1)
    word_ptrs = edits_ptr + BAD_WORDS + words * BAD_WORD_TOKENS
    bad = tl.load(word_ptrs[:, None] + place[None, :], mask=there[:, None], other=-1)
    # The last place is the token to be drawn, which anything matches.
    position = total_len - (BAD_WORD_TOKENS - 1) + place
    of_output = (position >= prompt_len) & (position < total_len)
    tail = tl.load(tokens_ptr + position, mask=of_output, other=-2)
    matches = (bad == -1) | (bad == tail[None, :]) | (place == BAD_WORD_TOKENS - 1)[None, :]
    complete = tl.min(matches.to(tl.int32), axis=1) > 0
    last = tl.load(word_ptrs + BAD_WORD_TOKENS - 1, mask=there, other=-1)
    forbidden = there & complete & (last >= start) & (last < start + BLOCK_V) & (last < vocab_size)
    tl.store(row_ptr + last, tl.full([MAX_BAD_WORDS], float("-inf"), tl.float32), mask=forbidden)


@triton.jit
def _edit_row(
    row, slot, block, num_blocks, logits_ptr, columns, sampling, token_ids, edits, token_mask,
    raw_ptr, sums_ptr, top_ptr, vocab_size,
    R: tl.constexpr, MAX_LEN: tl.constexpr, EDIT_WORDS: tl.constexpr, MASK_WORDS: tl.constexpr,
    BLOCK_V: tl.constexpr, TILE: tl.constexpr, TOP: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    asked = tl.load(columns + LOGIT_EDITS * R + slot)
    num_top = tl.load(columns + NUM_LOGPROBS * R + slot)
    start = block * BLOCK_V
    ids = start + tl.arange(0, BLOCK_V)
    inside = ids < vocab_size
    row_ptr = logits_ptr + row.to(tl.int64) * vocab_size
    if ALL or (asked | num_top) != 0:
        logits = tl.load(row_ptr + ids, mask=inside, other=float("-inf"))
        peak = tl.maximum(tl.max(logits, axis=0), LOWEST)
        sums = sums_ptr + row * 2 * num_blocks + block
        tl.store(sums, peak)
        tl.store(sums + num_blocks, tl.sum(tl.exp(logits - peak), axis=0))
        top = top_ptr + (row * 2 * num_blocks + block) * TOP
        rest = logits
        for place in range(num_top):
            best, at = tl.max(rest, axis=0, return_indices=True)
            tl.store(top + place, best)
            found = (start + at).to(tl.int32).to(tl.float32, bitcast=True)
            tl.store(top + num_blocks * TOP + place, found)
            rest = tl.where(ids == start + at, float("-inf"), rest)
        if ALL or (asked & EDITS) != 0:
            tl.store(raw_ptr + row.to(tl.int64) * vocab_size + ids, logits, mask=inside)
        if (asked & EDITS) != 0:
            total_len = tl.load(columns + TOTAL_LEN * R + slot)
            edits_ptr = edits + slot.to(tl.int64) * EDIT_WORDS
            if (asked & EDIT_BIAS) != 0:
                lanes = tl.arange(0, MAX_BIAS)
                given = lanes < tl.load(edits_ptr)
                biased = tl.load(edits_ptr + BIAS_IDS + lanes, mask=given, other=-1)
                given = given & (biased >= start) & (biased < start + BLOCK_V)
                bias = tl.load(edits_ptr + BIAS + lanes, mask=given, other=0)
                before = tl.load(row_ptr + biased, mask=given, other=0.0)
                tl.debug_barrier()  # all threads have their logits of before
                tl.store(row_ptr + biased, before + bias.to(tl.float32, bitcast=True), mask=given)
                tl.debug_barrier()  # other threads read what these wrote
                logits = tl.load(row_ptr + ids, mask=inside, other=float("-inf"))
            if (asked & EDIT_PENALTIES) != 0:
                logits = _penalize(
                    logits, slot, start, total_len, columns, sampling, token_ids,
                    R, MAX_LEN, BLOCK_V, TILE,
                )  # fmt: skip
            if (asked & EDIT_MASK) != 0:
                mask_ptr = token_mask + slot.to(tl.int64) * MASK_WORDS
                words = tl.load(mask_ptr + ids // 32, mask=inside, other=0)
                logits = tl.where(((words >> (ids % 32)) & 1) != 0, logits, float("-inf"))
            tl.debug_barrier()  # the biased logits are read by all before they are written over
            tl.store(row_ptr + ids, logits, mask=inside)
            if (asked & EDIT_BAD_WORDS) != 0:
                tl.debug_barrier()  # these writes come after those of other threads
                _forbid_bad_words(
                    row_ptr, token_ids + slot.to(tl.int64) * MAX_LEN, edits_ptr, start,
                    tl.load(columns + PROMPT_LEN * R + slot), total_len, vocab_size, BLOCK_V,
                )  # fmt: skip


@triton.jit
def _edit_logits_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, columns, sampling, token_ids, edits, token_mask, raw_ptr,
    sums_ptr, top_ptr, max_rows, vocab_size, num_blocks,
    R: tl.constexpr, MAX_LEN: tl.constexpr, EDIT_WORDS: tl.constexpr, MASK_WORDS: tl.constexpr,
    LANES: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr, TOP: tl.constexpr,
    ALL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    lanes = tl.arange(0, LANES)
    live = lanes < tl.minimum(tl.load(num_rows_ptr), max_rows)
    slots = tl.load(slots_ptr + lanes, mask=live, other=0)
    asked = tl.load(columns + LOGIT_EDITS * R + slots, mask=live, other=0)
    asked |= tl.load(columns + NUM_LOGPROBS * R + slots, mask=live, other=0)
    asks = (live & (ALL | (asked != 0))).to(tl.int32)
    asked_before = tl.cumsum(asks, axis=0)
    num_items = tl.sum(asks, axis=0) * num_blocks
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        # The row with as many asking rows in front of it.
        row = tl.sum((asked_before <= item // num_blocks).to(tl.int32), axis=0)
        _edit_row(
            row, tl.load(slots_ptr + row), item % num_blocks, num_blocks, logits_ptr, columns,
            sampling, token_ids, edits, token_mask, raw_ptr, sums_ptr, top_ptr, vocab_size,
            R, MAX_LEN, EDIT_WORDS, MASK_WORDS, BLOCK_V, TILE, TOP, ALL,
        )  # fmt: skip


def edit_logits(
    logits: torch.Tensor,
    slots: torch.Tensor,
    num_rows: torch.Tensor,
    columns: torch.Tensor,
    sampling: torch.Tensor,
    token_ids: torch.Tensor,
    edits: torch.Tensor,
    token_mask: torch.Tensor,
    workspace: LogitsWorkspace,
    keep_all: bool = False,
) -> None:
    """Change the first num_rows rows of logits [B, V] fp32 in place, each as its slot asks.

    slots [B] int32 names the row of the request table; num_rows [1] int32. Of the table: columns
    [C, R] int32, sampling [6, R] fp32, token_ids [R, L] int32, edits [R, WORDS] int32 (see
    logit_edits.py) and token_mask [R, V / 32] int32, token i being bit i % 32 of word i / 32.
    workspace: `logits_workspace` of at least B rows and of V. keep_all: fill it for every row,
    because something else will change the logits too.
    ValueError if a shape, a dtype or contiguity is not as said.
    """
    check_tensor("logits", logits, (None, None), torch.float32)
    rows, vocab_size = logits.shape
    num_slots, max_len = token_ids.shape
    check_tensor("slots", slots, (rows,), torch.int32)
    check_tensor("num_rows", num_rows, (1,), torch.int32)
    check_tensor("columns", columns, (None, num_slots), torch.int32)
    check_tensor("sampling", sampling, (6, num_slots), torch.float32)
    check_tensor("token_ids", token_ids, (num_slots, max_len), torch.int32)
    check_tensor("edits", edits, (num_slots, WORDS), torch.int32)
    check_tensor("token_mask", token_mask, (num_slots, mask_words(vocab_size)), torch.int32)
    tiles = choose_tiles(rows, vocab_size)
    blocks = triton.cdiv(vocab_size, tiles.edit_v)
    raw, sums, top = workspace
    check_tensor("workspace.raw", raw, (None, vocab_size), torch.float32)
    check_tensor("workspace.sums", sums, (None, 2, blocks), torch.float32)
    check_tensor("workspace.top", top, (None, 2, blocks, TOP.value), torch.float32)
    if min(part.shape[0] for part in workspace) < rows:
        raise ValueError(f"workspace must be for {rows} rows or more, got {raw.shape[0]}")
    if rows == 0:
        return
    programs = 1 if interpreted() else min(NUM_PROGRAMS, rows * blocks)
    _edit_logits_kernel[(programs,)](
        logits, slots, num_rows, columns, sampling, token_ids, edits, token_mask, raw, sums, top,
        rows, vocab_size, blocks, R=num_slots, MAX_LEN=max_len, EDIT_WORDS=WORDS,
        MASK_WORDS=token_mask.shape[1], LANES=triton.next_power_of_2(rows), BLOCK_V=tiles.edit_v,
        TILE=8192 if interpreted() else 1024, TOP=TOP, ALL=keep_all,
        num_warps=max(4, tiles.edit_v // 256), **pdl(),
    )  # fmt: skip
