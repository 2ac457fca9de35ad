"""beam_select: which candidates of a group of beams go on, and which sequences end.

Runs after the candidates of each beam are known (beam_candidates.py). The beams of a group draw
together or not at all (schedule.py), so all of them are sampled rows of this step. With score(c)
the sum of log-probabilities of candidate c's sequence, over all beams and their candidates:

    ended   = those of the `width` best candidates that end with a stop id; at the length limit all
    going   = the `width` best candidates that do not end
    value   = score / length^length_penalty, length in output tokens, of an ended sequence
    done    = `width` sequences have ended, and (early_stopping, or the best of `going` has no
              larger value now than the worst of the `width` best that have ended)

as `transformers` has it (`GenerationMixin._beam_search`, early_stopping True or False). The first
of `going` that continues a beam stays in that beam's row; the others take the rows of beams that
nobody continues: their output tokens are copied here, beam_repoint.py settles their pages.
`plan.beam_source` says which slot's sequence each row goes on with, `plan.sampled_tokens` and
`sampled_logprobs` get the token and the new score. Ended sequences are listed in `plan.ended_*`.

One program for each sampled row; that of a group's first beam works for the group.

Beam search: Lowerre, "The Harpy speech recognition system" (1976). Length penalty: Wu et al.,
"Google's neural machine translation system" (2016), here as a plain power of the length.
"""

import numpy as np
import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import (
    BEAM_INDEX,
    BEAM_WIDTH,
    EARLY_STOPPING,
    FINISH_REASON,
    FINISHED,
    MAX_BEAM_WIDTH,
    MAX_LEN,
    NUM_STOP_IDS,
    PROMPT_LEN,
    REASON_STOP,
    STATUS,
    TOTAL_LEN,
)  # fmt: skip
from paged.kernels.control.ingest import WORST_SCORE
from paged.kernels.launch import interpreted

NOBODY = tl.constexpr(-3.0e38)  # below every score


@triton.jit
def _take_best(scores, taken, lane, LANES: tl.constexpr):
    """(best score that is not taken, its lane or LANES, taken with it); of equals the first."""
    left = tl.where(taken, float("-inf"), scores)
    best = tl.max(left, axis=0)
    at = tl.min(tl.where((left == best) & ~taken, lane, LANES), axis=0)
    return best, at, taken | (lane == at)


@triton.jit
def _beam_select_kernel(
    columns, token_ids, length_penalty, beam_score, beam_slots, beam_finished, counts, sample_slots,
    slot_sample, sampled_tokens, sampled_logprobs, beam_tokens, beam_logprobs, beam_source,
    ended_source, ended_token, ended_score,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, WIDTH: tl.constexpr, CANDIDATES: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    if tl.program_id(0) >= tl.load(counts + 2):
        return
    first = tl.load(sample_slots + tl.program_id(0))
    width = tl.load(columns + BEAM_WIDTH * R + first)
    if (width == 0) | (tl.load(columns + BEAM_INDEX * R + first) > 0):
        return
    LANES: tl.constexpr = WIDTH * COLUMNS
    beam = tl.arange(0, WIDTH)
    mine = beam < width
    slots = tl.load(beam_slots + first * WIDTH + beam, mask=mine, other=0)
    rows = tl.load(slot_sample + slots, mask=mine, other=0)
    total = tl.load(columns + TOTAL_LEN * R + first)
    prompt_len = tl.load(columns + PROMPT_LEN * R + first)
    final = total + 1 >= tl.load(columns + MAX_LEN * R + first)
    length = (total + 1 - prompt_len).to(tl.float32)
    norm = tl.exp2(tl.load(length_penalty + first) * tl.log2(length))
    failed = mine & (tl.load(sampled_tokens + rows, mask=mine, other=0) < 0)
    if tl.max(failed.to(tl.int32), axis=0) > 0:  # NaN in one beam ends them all
        tl.store(sampled_tokens + rows, -1, mask=mine)
        return

    column = tl.arange(0, COLUMNS)
    there = mine[:, None] & ((column < width) | (column >= WIDTH))[None, :]
    there = there & (column < CANDIDATES)[None, :]
    logprob = tl.load(
        beam_logprobs + rows[:, None] * CANDIDATES + column[None, :], mask=there,
        other=float("-inf"),
    )  # fmt: skip
    score = tl.load(beam_score + slots, mask=mine, other=0.0)
    scores = tl.reshape(score[:, None] + logprob, [LANES])
    lane = tl.arange(0, LANES)
    ends = lane % COLUMNS >= WIDTH
    impossible = scores < NOBODY

    finished = tl.load(beam_finished + first * WIDTH + beam, mask=mine, other=float("inf"))
    taken = impossible
    for rank in range(width):
        best, at, taken = _take_best(scores, taken, lane, LANES)
        if (at < LANES) & (final | (at % COLUMNS >= WIDTH)):
            source = tl.load(beam_slots + first * WIDTH + at // COLUMNS)
            place = tl.load(beam_slots + first * WIDTH + rank)
            at_row = tl.load(slot_sample + source)
            tl.store(ended_source + place, source)
            tl.store(ended_token + place, tl.load(beam_tokens + at_row * CANDIDATES + at % COLUMNS))
            tl.store(ended_score + place, best)
            worst = tl.min(finished, axis=0)
            where = tl.min(tl.where(finished == worst, beam, WIDTH), axis=0)
            finished = tl.where((beam == where) & (best / norm > worst), best / norm, finished)
    tl.store(beam_finished + first * WIDTH + beam, finished, mask=mine)

    taken = impossible | ends
    parent = tl.zeros([WIDTH], dtype=tl.int32)
    token = tl.zeros([WIDTH], dtype=tl.int32)
    new_score = tl.full([WIDTH], WORST_SCORE, tl.float32)
    for rank in range(width):
        best, at, taken = _take_best(scores, taken, lane, LANES)
        found = (beam == rank) & (at < LANES)
        at = tl.minimum(at, LANES - 1)
        source = tl.load(beam_slots + first * WIDTH + at // COLUMNS)
        at_row = tl.load(slot_sample + source)
        drawn = tl.load(beam_tokens + at_row * CANDIDATES + at % COLUMNS)
        parent = tl.where(found, at // COLUMNS, parent)
        token = tl.where(found, drawn, token)
        new_score = tl.where(found, best, new_score)

    best_value = tl.max(tl.where(mine, new_score, NOBODY), axis=0) / norm
    worst = tl.min(finished, axis=0)
    early = tl.load(columns + EARLY_STOPPING * R + first) != 0
    done = (worst > WORST_SCORE) & (early | (best_value <= worst)) & ~final
    if done:
        tl.store(columns + STATUS * R + slots, FINISHED, mask=mine)
        tl.store(columns + FINISH_REASON * R + slots, REASON_STOP, mask=mine)
    if done | final:
        return

    twin = (parent[:, None] == parent[None, :]) & (beam[None, :] < beam[:, None]) & mine[None, :]
    moves = mine & (tl.max(twin.to(tl.int32), axis=1) > 0)
    continued = (parent[None, :] == beam[:, None]) & mine[None, :]
    open_rows = mine & (tl.max(continued.to(tl.int32), axis=1) == 0)
    move_rank = tl.cumsum(moves.to(tl.int32), axis=0)
    open_rank = tl.cumsum(open_rows.to(tl.int32), axis=0)
    match = moves[:, None] & open_rows[None, :] & (move_rank[:, None] == open_rank[None, :])
    place = tl.where(moves, tl.sum(tl.where(match, beam[None, :], 0), axis=1), parent)
    target = tl.load(beam_slots + first * WIDTH + place, mask=mine, other=0)
    source = tl.load(beam_slots + first * WIDTH + parent, mask=mine, other=0)
    target_row = tl.load(slot_sample + target, mask=mine, other=0)
    tl.store(sampled_tokens + target_row, token, mask=mine)
    tl.store(sampled_logprobs + target_row, new_score, mask=mine)
    tl.store(beam_score + target, new_score, mask=mine)
    tl.store(beam_source + target, source, mask=mine)
    tl.debug_barrier()  # sources are read below by threads that did not write them
    for other in range(width):
        slot = tl.load(beam_slots + first * WIDTH + other)
        came_from = tl.load(beam_source + slot)
        if came_from != slot:
            theirs = token_ids + came_from.to(tl.int64) * MAX_LEN_TOKENS
            ours = token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS
            for begin in range(prompt_len, total, TILE):
                at = begin + tl.arange(0, TILE)
                tl.store(ours + at, tl.load(theirs + at, mask=at < total), mask=at < total)


def beam_select(requests, plan) -> None:
    """Choose for every group of beams that is sampled in this step."""
    sizes = requests.sizes
    candidates = plan.beam_tokens.shape[1]
    _beam_select_kernel[(sizes.max_num_samples,)](
        requests.columns, requests.token_ids, requests.length_penalty, requests.beam_score,
        requests.beam_slots, requests.beam_finished, plan.counts, plan.sample_slots,
        plan.slot_sample, plan.sampled_tokens, plan.sampled_logprobs, plan.beam_tokens,
        plan.beam_logprobs, plan.beam_source, plan.ended_source, plan.ended_token,
        plan.ended_score,
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len, WIDTH=MAX_BEAM_WIDTH.value,
        CANDIDATES=candidates, COLUMNS=triton.next_power_of_2(candidates),
        TILE=1024 if interpreted() else 256,
    )  # fmt: skip


def beam_select_ref(requests, plan) -> None:
    """The same, candidate by candidate."""
    for first in plan.sample_slots[: int(plan.num_samples)].tolist():
        width = int(requests.beam_width[first])
        if width and int(requests.beam_index[first]) == 0:
            _select_ref(requests, plan, first, requests.beam_slots[first, :width].tolist())


def _select_ref(requests, plan, first: int, slots: list[int]) -> None:
    width, most = len(slots), MAX_BEAM_WIDTH.value
    rows = [int(plan.slot_sample[slot]) for slot in slots]
    if any(int(plan.sampled_tokens[row]) < 0 for row in rows):
        plan.sampled_tokens[rows] = -1
        return
    total, prompt_len = int(requests.total_len[first]), int(requests.prompt_len[first])
    final = total + 1 >= int(requests.max_len[first])
    length = np.float32(total + 1 - prompt_len)
    norm = torch.tensor(np.exp2(np.float32(requests.length_penalty[first]) * np.log2(length)))
    candidates = []  # (score, beam, token, ends), in the order in which equals are taken
    for beam, (slot, row) in enumerate(zip(slots, rows)):
        for at in (*range(width), *range(most, most + NUM_STOP_IDS.value)):
            score = requests.beam_score[slot] + plan.beam_logprobs[row, at]
            if float(score) >= NOBODY.value:
                candidates.append((score, beam, int(plan.beam_tokens[row, at]), at >= most))
    candidates.sort(key=lambda one: -float(one[0]))  # stable
    finished = requests.beam_finished[first, :width]  # a view
    for place, (score, beam, token, ends) in zip(slots, candidates[:width]):
        if ends or final:
            plan.ended_source[place], plan.ended_token[place] = slots[beam], token
            plan.ended_score[place] = score
            worst = int(finished.argmin())
            finished[worst] = torch.maximum(finished[worst], score / norm)
    going = [one for one in candidates if not one[3]][:width]
    worst_value, best_value = float(finished.min()), float(going[0][0] / norm)
    early = bool(requests.early_stopping[first])
    if final:
        return
    if worst_value > WORST_SCORE.value and (early or best_value <= worst_value):
        requests.status[slots] = FINISHED.value
        requests.finish_reason[slots] = REASON_STOP.value
        return
    continued = {beam for _, beam, _, _ in going}
    open_rows = iter([slot for beam, slot in enumerate(slots) if beam not in continued])
    before = requests.token_ids[slots, prompt_len:total].clone()
    for score, beam, token, _ in going:
        stays = beam in continued
        continued.discard(beam)
        target = slots[beam] if stays else next(open_rows)
        row = int(plan.slot_sample[target])
        plan.sampled_tokens[row], plan.sampled_logprobs[row] = token, score
        requests.beam_score[target] = score
        plan.beam_source[target] = slots[beam]
        requests.token_ids[target, prompt_len:total] = before[beam]
