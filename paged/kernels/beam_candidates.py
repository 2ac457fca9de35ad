"""The continuations of each beam that its group may choose from, with their log-probabilities.

For row i of the logits, which belongs to a beam of a group of `width` (slot slots[i]):

    logprob = log_softmax(logits[i] / temperature)
    tokens[i, :width]      = the `width` most probable tokens that do not end the sequence
    tokens[i, WIDTH + e]   = stop id e, with its own log-probability; -inf where there is none

That is all the group can need: it goes on with `width` tokens that do not end. Two kernels: grid
[blocks of the vocabulary, B] finds each block's best tokens by taking the maximum `width` times,
and its softmax sum; grid [B] does the same over the blocks. No sort. Rows of requests that are no
beams, and rows from num_rows on, are left alone. Everything contiguous. How a row is cut follows
the vocabulary alone, so its bits do not depend on the batch.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import BEAM_WIDTH, MAX_BEAM_WIDTH, NUM_STOP_IDS
from paged.kernels.launch import check_tensor, interpreted, pdl

CANDIDATES = MAX_BEAM_WIDTH.value + NUM_STOP_IDS.value  # columns of the result
BEAM_CANDIDATES_VARIANTS = ({"vocab_size": 9000},)
LEAST = tl.constexpr(-3.4e38)


@triton.jit
def _beam_blocks_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, columns_ptr, temperature_ptr, stop_ids_ptr, block_best_ptr,
    block_ids_ptr, block_sums_ptr, vocab_size,
    R: tl.constexpr, WIDTH: tl.constexpr, NUM_STOP_IDS: tl.constexpr, BLOCK_V: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    block, row = tl.program_id(0), tl.program_id(1)
    if row >= tl.load(num_rows_ptr):
        return
    slot = tl.load(slots_ptr + row)
    width = tl.load(columns_ptr + BEAM_WIDTH * R + slot)
    if width == 0:
        return
    ids = block * BLOCK_V + tl.arange(0, BLOCK_V)
    logits = tl.load(
        logits_ptr + tl.cast(row, tl.int64) * vocab_size + ids, mask=ids < vocab_size,
        other=float("-inf"),
    )  # fmt: skip
    logits = logits / tl.load(temperature_ptr + slot)
    peak = tl.maximum(tl.max(logits, axis=0), LEAST)
    at = tl.cast(row, tl.int64) * tl.num_programs(0) + block
    tl.store(block_sums_ptr + at * 2, peak)
    tl.store(block_sums_ptr + at * 2 + 1, tl.sum(tl.exp(logits - peak), axis=0))
    for stop in tl.static_range(NUM_STOP_IDS):
        ends = ids == tl.load(stop_ids_ptr + slot * NUM_STOP_IDS + stop)
        logits = tl.where(ends, float("-inf"), logits)
    for k in range(width):
        best = tl.max(logits, axis=0)
        chosen = tl.min(tl.where(logits == best, ids, vocab_size), axis=0)
        tl.store(block_best_ptr + at * WIDTH + k, best)
        tl.store(block_ids_ptr + at * WIDTH + k, chosen)
        logits = tl.where(ids == chosen, float("-inf"), logits)


@triton.jit
def _beam_rows_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, columns_ptr, temperature_ptr, stop_ids_ptr, block_best_ptr,
    block_ids_ptr, block_sums_ptr, out_tokens_ptr, out_logprobs_ptr, vocab_size, num_blocks,
    R: tl.constexpr, WIDTH: tl.constexpr, NUM_STOP_IDS: tl.constexpr, BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    if row >= tl.load(num_rows_ptr):
        return
    slot = tl.load(slots_ptr + row)
    width = tl.load(columns_ptr + BEAM_WIDTH * R + slot)
    if width == 0:
        return
    blocks = tl.arange(0, BLOCKS)
    at = tl.cast(row, tl.int64) * num_blocks + blocks
    peaks = tl.load(block_sums_ptr + at * 2, mask=blocks < num_blocks, other=LEAST)
    sums = tl.load(block_sums_ptr + at * 2 + 1, mask=blocks < num_blocks, other=0.0)
    peak = tl.max(peaks, axis=0)
    log_sum = tl.log(tl.sum(sums * tl.exp(peaks - peak), axis=0)) + peak

    lane = tl.arange(0, BLOCKS * WIDTH)
    inside = (lane < num_blocks * WIDTH) & (lane % WIDTH < width)
    source = tl.cast(row, tl.int64) * num_blocks * WIDTH + lane
    best = tl.load(block_best_ptr + source, mask=inside, other=float("-inf"))
    ids = tl.load(block_ids_ptr + source, mask=inside, other=vocab_size)
    out = row * (WIDTH + NUM_STOP_IDS)
    for k in range(width):
        value = tl.max(best, axis=0)
        chosen = tl.min(tl.where(best == value, ids, vocab_size), axis=0)
        tl.store(out_tokens_ptr + out + k, chosen)
        tl.store(out_logprobs_ptr + out + k, value - log_sum)
        best = tl.where(ids == chosen, float("-inf"), best)
    stop = tl.arange(0, NUM_STOP_IDS)
    stop_ids = tl.load(stop_ids_ptr + slot * NUM_STOP_IDS + stop)
    known = (stop_ids >= 0) & (stop_ids < vocab_size)
    logits = tl.load(
        logits_ptr + tl.cast(row, tl.int64) * vocab_size + stop_ids, mask=known,
        other=float("-inf"),
    )  # fmt: skip
    tl.store(out_tokens_ptr + out + WIDTH + stop, stop_ids)
    logprobs = tl.where(known, logits / tl.load(temperature_ptr + slot) - log_sum, float("-inf"))
    tl.store(out_logprobs_ptr + out + WIDTH + stop, logprobs)


def beam_workspace(
    max_rows: int, vocab_size: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Memory between the two kernels: a block's best logits, their tokens, its softmax sum."""
    blocks, width = triton.cdiv(vocab_size, _block_size(vocab_size)), MAX_BEAM_WIDTH.value
    return (
        torch.zeros(max_rows, blocks, width, device=device),
        torch.zeros(max_rows, blocks, width, dtype=torch.int32, device=device),
        torch.zeros(max_rows, blocks, 2, device=device),
    )


def _block_size(vocab_size: int) -> int:
    return triton.next_power_of_2(vocab_size) if interpreted() else 4096


def beam_candidates(
    logits: torch.Tensor,
    slots: torch.Tensor,
    num_rows: torch.Tensor,
    columns: torch.Tensor,
    temperature: torch.Tensor,
    stop_ids: torch.Tensor,
    workspace: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out_tokens: torch.Tensor,
    out_logprobs: torch.Tensor,
) -> None:
    """Write the candidates of the first num_rows rows of logits [B, V] float32 that are beams.

    slots [B] int32; num_rows [1] int32; columns [C, R] int32; temperature [R] float32, positive;
    stop_ids [R, 8] int32, -1 for none; workspace: `beam_workspace` of at least B rows. Results:
    out_tokens [>= B, CANDIDATES] int32 and out_logprobs float32. Raises ValueError on a wrong shape
    or dtype.
    """
    check_tensor("logits", logits, (None, None), torch.float32)
    rows, vocab_size = logits.shape
    num_slots = temperature.shape[0]
    check_tensor("slots", slots, (rows,), torch.int32)
    check_tensor("num_rows", num_rows, (1,), torch.int32)
    check_tensor("columns", columns, (None, num_slots), torch.int32)
    check_tensor("stop_ids", stop_ids, (num_slots, NUM_STOP_IDS.value), torch.int32)
    check_tensor("out_tokens", out_tokens, (None, CANDIDATES), torch.int32)
    check_tensor("out_logprobs", out_logprobs, tuple(out_tokens.shape), torch.float32)
    blocks = triton.cdiv(vocab_size, _block_size(vocab_size))
    check_tensor("workspace[0]", workspace[0], (None, blocks, MAX_BEAM_WIDTH.value), torch.float32)
    if min(out_tokens.shape[0], workspace[0].shape[0]) < rows:
        raise ValueError(f"workspace and results must be for {rows} rows or more")
    if rows == 0:
        return
    shared = {
        "R": num_slots, "WIDTH": MAX_BEAM_WIDTH.value, "NUM_STOP_IDS": NUM_STOP_IDS.value, **pdl(),
    }  # fmt: skip
    inputs = (logits, slots, num_rows, columns, temperature, stop_ids, *workspace)
    _beam_blocks_kernel[(blocks, rows)](
        *inputs, vocab_size, BLOCK_V=_block_size(vocab_size), **shared
    )
    _beam_rows_kernel[(rows,)](
        *inputs, out_tokens, out_logprobs, vocab_size, blocks,
        BLOCKS=triton.next_power_of_2(blocks), **shared,
    )  # fmt: skip


def beam_candidates_ref(
    logits: torch.Tensor,
    slots: torch.Tensor,
    num_rows: torch.Tensor,
    columns: torch.Tensor,
    temperature: torch.Tensor,
    stop_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens [B, CANDIDATES] and log-probabilities of beams; -1 and -inf elsewhere."""
    most = MAX_BEAM_WIDTH.value
    tokens = torch.full((logits.shape[0], CANDIDATES), -1, dtype=torch.int32)
    logprobs = torch.full((logits.shape[0], CANDIDATES), float("-inf"))
    for row, slot in enumerate(slots[: int(num_rows)].tolist()):
        width = int(columns[BEAM_WIDTH.value, slot])
        if width == 0:
            continue
        stops = stop_ids[slot].cpu()
        known = (stops >= 0) & (stops < logits.shape[1])
        every = torch.log_softmax(logits[row].cpu() / float(temperature[slot]), 0)
        tokens[row, most:] = stops
        logprobs[row, most:][known] = every[stops[known].long()]
        every[stops[known].long()] = float("-inf")
        best = every.sort(descending=True, stable=True)
        tokens[row, :width], logprobs[row, :width] = best.indices[:width], best.values[:width]
    return tokens, logprobs


def beam_candidates_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    rows: int = 4,
    vocab_size: int = 301,
    widths: tuple[int, ...] = (4, 0, 1, 16),
) -> dict:
    """Arguments of `beam_candidates`: rows of several widths, the last one not live."""
    del dtype  # logits are float32 whatever the model's precision
    generator = torch.Generator().manual_seed(0)
    num_slots = rows + 3
    columns = torch.zeros(BEAM_WIDTH.value + 1, num_slots, dtype=torch.int32)
    slots = torch.randperm(num_slots, generator=generator)[:rows].int()
    columns[BEAM_WIDTH.value, slots.long()] = torch.tensor(
        [widths[row % len(widths)] for row in range(rows)], dtype=torch.int32
    )
    stop_ids = torch.full((num_slots, NUM_STOP_IDS.value), -1, dtype=torch.int32)
    stop_ids[::2, :3] = torch.randint(vocab_size, (3,), generator=generator).int()
    return {
        "logits": (3 * torch.randn(rows, vocab_size, generator=generator)).to(device),
        "slots": slots.to(device),
        "num_rows": torch.tensor([rows - 1], dtype=torch.int32, device=device),
        "columns": columns.to(device),
        "temperature": (0.5 + torch.rand(num_slots, generator=generator)).to(device),
        "stop_ids": stop_ids.to(device),
        "workspace": beam_workspace(rows, vocab_size, device),
        "out_tokens": torch.full((rows, CANDIDATES), -1, dtype=torch.int32, device=device),
        "out_logprobs": torch.full((rows, CANDIDATES), float("-inf"), device=device),
    }
