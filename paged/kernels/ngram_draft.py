"""Drafts by prompt lookup: what followed the last tokens of a sequence where they stood before.

Of the tokens t[0..n) of slot slots[i], with end(e) the length of the longest suffix of t[..e) that
is also a suffix of t, at most MAX_NGRAM:

    e        = the e in [1, n) with the largest end(e), the first of them on a tie
    drafts_i = t[e .. min(e + K, n)) if end(e) >= MIN_NGRAM, else none

as vLLM's ngram proposer has it. Grid [S / ROWS], ROWS sequences a program (1 on a GPU); a program
without a live sequence ends at once. A sequence's tokens are read MAX_NGRAM times, through the
cache. Everything contiguous.

Saxena, "Prompt lookup decoding" (2023).
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted, rows_per_program

MAX_TOKENS = 2**24  # of a sequence; with MAX_NGRAM they share the 31 bits of a match's key
LARGEST_NGRAM = 127


@triton.jit
def _ngram_draft_kernel(
    token_ids, total_lens, draws, slots_ptr, num_seqs_ptr, draft_tokens, num_drafts,
    MAX_LEN: tl.constexpr, MIN_NGRAM: tl.constexpr, MAX_NGRAM: tl.constexpr, DRAFTS: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = seq < tl.load(num_seqs_ptr)
    slot = tl.load(slots_ptr + seq, mask=live, other=0)
    wanted = live & (tl.load(draws + slot, mask=live, other=-1) >= 0)
    total = tl.load(total_lens + slot, mask=wanted, other=0)
    tokens = token_ids + slot.to(tl.int64)[:, None] * MAX_LEN
    best = tl.zeros([ROWS], tl.int32)
    for first in range(1, tl.max(total, axis=0), TILE):
        end = first + tl.arange(0, TILE)[None, :]
        matches = end < total[:, None]
        length = tl.zeros([ROWS, TILE], tl.int32)
        for back in tl.static_range(1, MAX_NGRAM + 1):
            own = tl.load(
                token_ids + slot.to(tl.int64) * MAX_LEN + total - back, mask=total > back, other=-1
            )
            matches = matches & (end >= back)
            there = tl.load(tokens + end - back, mask=matches, other=-2)
            matches = matches & (there == own[:, None])
            length += matches.to(tl.int32)
        key = (length << 24) | (0xFFFFFF - end)  # the longest, then the first
        key = tl.where(length >= MIN_NGRAM, key, 0)
        best = tl.maximum(best, tl.max(key, axis=1))
    end = 0xFFFFFF - (best & 0xFFFFFF)
    count = tl.where(best > 0, tl.minimum(total - end, DRAFTS), 0)
    place = tl.arange(0, WIDTH)[None, :]
    there = place < count[:, None]
    draft = tl.load(tokens + end[:, None] + place, mask=there, other=0)
    tl.store(draft_tokens + seq[:, None] * DRAFTS + place, draft, mask=there)
    tl.store(num_drafts + seq, count, mask=live)


def ngram_draft(
    token_ids: torch.Tensor,
    total_lens: torch.Tensor,
    draws: torch.Tensor,
    slots: torch.Tensor,
    num_seqs: torch.Tensor,
    draft_tokens: torch.Tensor,
    num_drafts: torch.Tensor,
    min_ngram: int,
    max_ngram: int,
) -> None:
    """Write the drafts of the first num_seqs sequences.

    token_ids [R, L] int32, of which the first total_lens [R] int32 count; sequences whose
    draws [R] int32 is below 0 get no drafts; slots [S] int32 and num_seqs [1] int32; results
    draft_tokens [S, K] int32 and num_drafts [S] int32. Suffixes of min_ngram to max_ngram tokens
    are looked for. ValueError if a shape, a dtype or an n-gram's size is not as said.
    """
    check_tensor("token_ids", token_ids, (None, None), torch.int32)
    num_slots, max_len = token_ids.shape
    check_tensor("total_lens", total_lens, (num_slots,), torch.int32)
    check_tensor("draws", draws, (num_slots,), torch.int32)
    check_tensor("slots", slots, (None,), torch.int32)
    check_tensor("num_seqs", num_seqs, (1,), torch.int32)
    max_seqs = slots.shape[0]
    check_tensor("draft_tokens", draft_tokens, (max_seqs, None), torch.int32)
    check_tensor("num_drafts", num_drafts, (max_seqs,), torch.int32)
    if not 1 <= min_ngram <= max_ngram <= LARGEST_NGRAM:
        raise ValueError(
            f"n-grams must have from 1 to {LARGEST_NGRAM} tokens, the least of them first, got "
            f"{min_ngram} to {max_ngram}"
        )
    if max_len >= MAX_TOKENS:
        raise ValueError(f"token_ids must have fewer than {MAX_TOKENS} columns, got {max_len}")
    if max_seqs == 0:
        return
    rows = rows_per_program(max_seqs, max_len)
    tile = min(triton.next_power_of_2(max_len), 16384 if interpreted() else 4096)
    _ngram_draft_kernel[(triton.cdiv(max_seqs, rows),)](
        token_ids, total_lens, draws, slots, num_seqs, draft_tokens, num_drafts,
        MAX_LEN=max_len, MIN_NGRAM=min_ngram, MAX_NGRAM=max_ngram, DRAFTS=draft_tokens.shape[1],
        WIDTH=triton.next_power_of_2(draft_tokens.shape[1]), ROWS=rows, TILE=tile, num_warps=8,
    )  # fmt: skip


def ngram_draft_ref(
    token_ids, total_lens, draws, slots, num_seqs, draft_tokens, num_drafts, min_ngram, max_ngram
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(draft_tokens, num_drafts) as they must become."""
    tokens_out, counts = draft_tokens.clone(), num_drafts.clone()
    for seq, slot in enumerate(slots[: int(num_seqs)].tolist()):
        known = token_ids[slot, : int(total_lens[slot])].tolist()
        counts[seq] = 0
        for size in range(max_ngram, min_ngram - 1, -1):
            places = [
                end for end in range(size, len(known)) if known[end - size : end] == known[-size:]
            ]
            if places and int(draws[slot]) >= 0:
                drafts = known[places[0] :][: draft_tokens.shape[1]]
                counts[seq] = len(drafts)
                tokens_out[seq, : len(drafts)] = torch.tensor(drafts, dtype=torch.int32)
                break
    return tokens_out, counts


def ngram_draft_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    max_len: int = 40,
    drafts: int = 3,
    vocab_size: int = 3,
    ngrams: tuple[int, int] = (2, 4),
    seqs: int = 7,
) -> dict:
    """Arguments of `ngram_draft`: lengths from 1 to max_len, one sequence not live, some that do
    not draw; few token ids, so that much repeats. dtype is not used."""
    generator = torch.Generator().manual_seed(max_len + drafts)
    num_slots = seqs + 2

    def ints(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).int().to(device)

    total_lens = ints(1, max_len + 1, num_slots)
    total_lens[:3] = torch.tensor([1, 2, max_len])
    return {
        "token_ids": ints(0, vocab_size, num_slots, max_len),
        "total_lens": total_lens,
        "draws": ints(-1, 5, num_slots),
        "slots": torch.randperm(num_slots, generator=generator)[:seqs].int().to(device),
        "num_seqs": torch.tensor([seqs - 1], dtype=torch.int32, device=device),
        "draft_tokens": torch.full((seqs, drafts), -7, dtype=torch.int32, device=device),
        "num_drafts": torch.full((seqs,), -7, dtype=torch.int32, device=device),
        "min_ngram": ngrams[0],
        "max_ngram": ngrams[1],
    }


NGRAM_DRAFT_VARIANTS = ({"max_len": 5000, "drafts": 4}, {"ngrams": (1, 1), "drafts": 1})
