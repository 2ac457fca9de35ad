"""Draw a token of a row without filters: first a block of the vocabulary, then a strand of it, then
a token of that, each with a number u of its own, uniform between 0 and 1:

    block  = the first b such that blocks  <= b of the row   weigh more than u_1 of the row
    strand = the first s such that strands <= s of the block weigh more than u_2 of the block
    token  = the first i such that tokens  <= i of the strand weigh more than u_3 of the strand

    weight of a token = exp(logit / temperature)

so a row costs one Philox call and no noise of its tokens, and only one strand of it is read again.
Sums are float32: a part that weighs less than 2^-24 of its level may be drawn a little more or less
often than that.

A strand is what one thread of the blocks' kernel loads, four neighbours at a time, so its sum costs
no exchange. In a block of NUM strands of 4 x QUADS tokens, token i of quad q of strand s is
4 (q NUM + s) + i.
"""

import triton
import triton.language as tl

from paged.kernels.fast_math import LOG2_E, fast_exp2
from paged.kernels.logit_process import process_logits
from paged.kernels.philox import draw_numbers
from paged.kernels.sampling_rows import column

# Under 1 by more than sums in different orders differ: the last part of weight is never missed.
LARGEST_SHARE = tl.constexpr(1 - 2**-18)


@triton.jit
def strand_masses(weights, ROWS: tl.constexpr, BLOCK_V: tl.constexpr, STRAND: tl.constexpr):
    """The sum of each strand of a block of weights [ROWS, BLOCK_V]: [ROWS, BLOCK_V // STRAND]."""
    quads = tl.reshape(weights, [ROWS, STRAND // 4, BLOCK_V // STRAND, 4])
    return tl.sum(tl.sum(quads, axis=3), axis=1)


@triton.jit
def _draw_part(masses, u, ROWS: tl.constexpr, NUM: tl.constexpr):
    """Which of the parts of weight masses [ROWS, NUM] a number u draws: [ROWS], NUM if none can."""
    sums = tl.cumsum(masses, axis=1)
    wanted = tl.minimum(u, LARGEST_SHARE) * tl.sum(masses, axis=1)
    drawn = (sums > column(wanted, ROWS)) & (masses > 0)
    return tl.min(tl.where(drawn, tl.arange(0, NUM)[None, :], NUM), axis=1)


@triton.jit
def draw_plain(
    logits_ptr, rows, vocab_size, slots, too_short, stop_ids_ptr, masses, peaks, strands_ptr,
    num_blocks, temperature, seeds, positions, wanted,
    NUM_STOP_IDS: tl.constexpr, ROWS: tl.constexpr, BLOCK_V: tl.constexpr, BLOCKS: tl.constexpr,
    STRAND: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """(tokens, logits) of the `wanted` rows, the logits as they are in memory; token vocab_size if
    nothing has weight.

    peaks, masses [ROWS, BLOCKS]: of each block its largest logit, and its sum of
    exp((logit - that) / temperature); strands_ptr to the `strand_masses` of all blocks.
    """
    NUM: tl.constexpr = BLOCK_V // STRAND
    u_block, u_strand, u_token = draw_numbers(seeds, positions)
    heat = column(1 / temperature * LOG2_E, ROWS)
    blocks = tl.arange(0, BLOCKS)[None, :]
    peak = column(tl.max(peaks, axis=1), ROWS)
    block = _draw_part(masses * fast_exp2((peaks - peak) * heat, NVIDIA), u_block, ROWS, BLOCKS)
    wanted = wanted & (block < num_blocks)
    # The peak of the block: what its strands' masses are about.
    peak = tl.sum(tl.where(blocks == column(block, ROWS), peaks, 0.0), axis=1)
    strands = column((rows * num_blocks + block) * NUM, ROWS) + tl.arange(0, NUM)[None, :]
    masses = tl.load(strands_ptr + strands, mask=column(wanted, ROWS), other=0.0)
    strand = _draw_part(masses, u_strand, ROWS, NUM)
    wanted = wanted & (strand < NUM)
    lanes = tl.arange(0, STRAND)[None, :]
    ids = column(block * BLOCK_V + strand * 4, ROWS) + lanes // 4 * (NUM * 4) + lanes % 4
    mask = (ids < vocab_size) & column(wanted, ROWS)
    row_ptr = logits_ptr + column(rows.to(tl.int64), ROWS) * vocab_size
    raw = tl.load(row_ptr + ids, mask=mask, other=float("-inf"))
    logits = process_logits(raw, ids, slots, too_short, stop_ids_ptr, NUM_STOP_IDS)
    weights = fast_exp2((logits - column(peak, ROWS)) * heat, NVIDIA)
    drawn = _draw_part(weights, u_token, ROWS, STRAND)
    is_drawn = lanes == column(drawn, ROWS)
    token = tl.min(tl.where(is_drawn, ids, vocab_size), axis=1)
    return token, tl.sum(tl.where(is_drawn, raw, 0.0), axis=1)
