"""After the draw: give the forced tokens, and tell what was drawn in terms of the raw logits.

The sampler knows the changed logits only. Row i of a request that changes its logits, forces tokens
or reports the most probable ones is settled here; the others were settled by the sampler.

    token   = the drawn one, or while total_len < FORCED_LEN the one that token_ids holds there
    token   = -1 if the raw logits hold NaN or +inf, or the token's own is -inf
    logprob = log_softmax(raw)[token], written only where the sampler's is of changed logits
    rank    = how many raw logits are at least the token's own
    top     = the NUM_LOGPROBS largest raw logits and their ids, the lowest id first on a tie

A row that reports writes pairs of 64-bit words to the entry of this step and slot, in pinned
memory, each valid by itself as in control/update.py: the pair (rank, logprob) of the token, then
(id, logprob) of each of the top.

    word 0: step+1 (16) | 0 (24) | rank or id (24)      word 1: step+1 (16) | 0 (16) | float32 bits

Grid [B / ROWS]. The top of a row comes from the tops of its blocks (logits.py), without a sort.
Rows from num_rows on are left alone. Everything contiguous.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import FORCED_LEN, LOGIT_EDITS, NUM_LOGPROBS, STEP, TOTAL_LEN
from paged.kernels.floor_search import LOWEST
from paged.kernels.launch import check_tensor, interpreted, pdl
from paged.kernels.logit_edits import EDIT_FORCED, EDITS, REPORT_WORDS
from paged.kernels.logits import TOP, LogitsWorkspace
from paged.kernels.sampling_tiles import choose_tiles


@triton.jit
def _rank(raw_ptr, own, vocab_size, WALK: tl.constexpr):
    """How many of a row's logits are at least `own`."""
    counts = tl.zeros([WALK], tl.int32)
    for start in range(0, vocab_size, WALK):
        ids = start + tl.arange(0, WALK)
        logits = tl.load(raw_ptr + ids, mask=ids < vocab_size, other=float("-inf"))
        counts += ((logits >= own) & (ids < vocab_size)).to(tl.int32)
    return tl.sum(counts, axis=0)


@triton.jit
def _settle_row(
    row, slot, logits_ptr, raw_ptr, sums_ptr, top_ptr, columns, counters, token_ids, tokens_ptr,
    logprobs_ptr, reports, vocab_size, num_blocks,
    R: tl.constexpr, MAX_LEN: tl.constexpr, DEPTH: tl.constexpr, REPORT_WORDS: tl.constexpr,
    BLOCKS: tl.constexpr, TOP: tl.constexpr, WALK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    asked = tl.load(columns + LOGIT_EDITS * R + slot)
    num_top = tl.load(columns + NUM_LOGPROBS * R + slot)
    if ALL or (asked | num_top) != 0:
        changed = ALL or (asked & EDITS) != 0
        base = row.to(tl.int64) * vocab_size
        # Of a row that nothing changed, the logits are still the raw ones.
        own_ptr = logits_ptr + base
        if changed:
            own_ptr = raw_ptr + base
        blocks = tl.arange(0, BLOCKS)
        sums = sums_ptr + row * 2 * num_blocks + blocks
        peaks = tl.load(sums, mask=blocks < num_blocks, other=LOWEST)
        masses = tl.load(sums + num_blocks, mask=blocks < num_blocks, other=0.0)
        peak = tl.max(peaks, axis=0)
        mass = tl.sum(masses * tl.exp(peaks - peak), axis=0)

        token = tl.load(tokens_ptr + row)
        total_len = tl.load(columns + TOTAL_LEN * R + slot)
        forced = total_len < tl.load(columns + FORCED_LEN * R + slot)
        forced = forced & ((asked & EDIT_FORCED) != 0)
        given = tl.load(token_ids + slot.to(tl.int64) * MAX_LEN + total_len, mask=forced, other=0)
        token = tl.where(forced, given, token)
        own = tl.load(own_ptr + tl.maximum(token, 0))
        # NaN or +inf anywhere makes the mass NaN, and a comparison with it false.
        valid = (token >= 0) & (mass > 0) & (own >= LOWEST)
        log_mass = tl.log(tl.where(mass > 0, mass, 1.0))
        logprob = tl.where(valid, own - peak - log_mass, 0.0)
        token = tl.where(valid, token, -1)
        tl.store(tokens_ptr + row, token)
        tl.store(logprobs_ptr + row, logprob, mask=changed | forced | (valid == 0))

        if (num_top > 0) & valid:
            step = tl.load(counters + STEP)
            tag = ((step + 1) & 0xFFFF) << 48
            report = reports + ((step % DEPTH) * R + slot) * REPORT_WORDS
            rank = _rank(own_ptr, own, vocab_size, WALK)
            tl.store(report, tag | rank.to(tl.int64))
            bits = logprob.to(tl.int32, bitcast=True)
            tl.store(report + 1, tag | (bits.to(tl.int64) & 0xFFFFFFFF))
            places = tl.arange(0, TOP)[None, :]
            top = top_ptr + row * 2 * num_blocks * TOP + blocks[:, None] * TOP + places
            there = (blocks < num_blocks)[:, None] & (places < num_top)
            rest = tl.load(top, mask=there, other=float("-inf"))
            ids = tl.load(top + num_blocks * TOP, mask=there, other=0.0).to(tl.int32, bitcast=True)
            for place in range(num_top):
                best = tl.max(tl.max(rest, axis=1), axis=0)
                is_best = (rest == best) & there
                found = tl.min(tl.min(tl.where(is_best, ids, vocab_size), axis=1), axis=0)
                bits = (best - peak - log_mass).to(tl.int32, bitcast=True)
                at = report + 2 * (1 + place)
                tl.store(at, tag | found.to(tl.int64))
                tl.store(at + 1, tag | (bits.to(tl.int64) & 0xFFFFFFFF))
                there = there & (ids != found)
                rest = tl.where(there, rest, float("-inf"))


@triton.jit
def _report_draws_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, columns, counters, token_ids, tokens_ptr, logprobs_ptr,
    raw_ptr, sums_ptr, top_ptr, reports, max_rows, vocab_size, num_blocks,
    R: tl.constexpr, MAX_LEN: tl.constexpr, DEPTH: tl.constexpr, REPORT_WORDS: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, TOP: tl.constexpr, WALK: tl.constexpr,
    ALL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    first = tl.program_id(0) * ROWS
    rows = first + tl.arange(0, ROWS)
    num_rows = tl.minimum(tl.load(num_rows_ptr), max_rows)
    slots = tl.load(slots_ptr + rows, mask=rows < num_rows, other=0)
    asked = tl.load(columns + LOGIT_EDITS * R + slots, mask=rows < num_rows, other=0)
    asked |= tl.load(columns + NUM_LOGPROBS * R + slots, mask=rows < num_rows, other=0)
    if not ALL and tl.max(asked, axis=0) == 0:
        return
    for place in range(tl.minimum(ROWS, num_rows - first)):
        row = first + place
        _settle_row(
            row, tl.load(slots_ptr + row), logits_ptr, raw_ptr, sums_ptr, top_ptr, columns,
            counters, token_ids, tokens_ptr, logprobs_ptr, reports, vocab_size, num_blocks,
            R, MAX_LEN, DEPTH, REPORT_WORDS, BLOCKS, TOP, WALK, ALL,
        )  # fmt: skip


def report_draws(
    logits: torch.Tensor,
    slots: torch.Tensor,
    num_rows: torch.Tensor,
    columns: torch.Tensor,
    counters: torch.Tensor,
    token_ids: torch.Tensor,
    tokens: torch.Tensor,
    logprobs: torch.Tensor,
    workspace: LogitsWorkspace,
    reports: torch.Tensor,
    keep_all: bool = False,
) -> None:
    """Settle tokens [B] int32 and logprobs [B] fp32 of the first num_rows rows.

    logits [B, V], slots, num_rows, columns [C, R], token_ids [R, L] and workspace as `edit_logits`
    was given them and left them, keep_all as its keep_all; counters int64, whose STEP names the
    entry of reports [depth, R, REPORT_WORDS] int64.
    ValueError if a shape, a dtype or contiguity is not as said.
    """
    check_tensor("logits", logits, (None, None), torch.float32)
    rows, vocab_size = logits.shape
    num_slots, max_len = token_ids.shape
    check_tensor("slots", slots, (rows,), torch.int32)
    check_tensor("num_rows", num_rows, (1,), torch.int32)
    check_tensor("columns", columns, (None, num_slots), torch.int32)
    check_tensor("counters", counters, (None,), torch.int64)
    check_tensor("token_ids", token_ids, (num_slots, max_len), torch.int32)
    check_tensor("tokens", tokens, (rows,), torch.int32)
    check_tensor("logprobs", logprobs, (rows,), torch.float32)
    check_tensor("reports", reports, (None, num_slots, REPORT_WORDS), torch.int64)
    blocks = triton.cdiv(vocab_size, choose_tiles(rows, vocab_size).edit_v)
    raw, sums, top = workspace
    check_tensor("workspace.raw", raw, (None, vocab_size), torch.float32)
    check_tensor("workspace.sums", sums, (None, 2, blocks), torch.float32)
    check_tensor("workspace.top", top, (None, 2, blocks, TOP.value), torch.float32)
    if min(part.shape[0] for part in workspace) < rows:
        raise ValueError(f"workspace must be for {rows} rows or more, got {raw.shape[0]}")
    if rows == 0:
        return
    together = min(64, triton.next_power_of_2(rows)) if interpreted() else 1
    _report_draws_kernel[(triton.cdiv(rows, together),)](
        logits, slots, num_rows, columns, counters, token_ids, tokens, logprobs, raw, sums, top,
        reports, rows, vocab_size, blocks, R=num_slots, MAX_LEN=max_len, DEPTH=reports.shape[0],
        REPORT_WORDS=REPORT_WORDS, ROWS=together, BLOCKS=triton.next_power_of_2(blocks), TOP=TOP,
        WALK=16384 if interpreted() else 4096, ALL=keep_all, num_warps=8, **pdl(),
    )  # fmt: skip
