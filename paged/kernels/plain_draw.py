"""Draw a token of a row without filters: first a block of the vocabulary, then a strand of it, then
a token of that.

The largest of several Gumbel-perturbed logits is itself Gumbel-distributed, about the logarithm of
their summed weights, so

    block  = argmax over blocks b of    log sum_{i in b} exp(logit_i / temperature) + gumbel noise
    strand = argmax over strands s of b of log sum_{i in s} exp(logit_i / temperature) + noise
    token  = argmax over i in s of      logit_i / temperature + noise

has the distribution of one argmax over all tokens, with noise for some 200 of 128k. The noise of
the three levels comes from different counters (see philox.py).

A strand is what one thread of the blocks' kernel loads, four neighbours at a time, so its sum costs
no exchange. In a block of NUM strands of 4 x QUADS tokens, token i of quad q of strand s is
4 (q NUM + s) + i.

Maddison, Tarlow, Minka: "A* sampling" (2014), top-down construction.
"""

import triton
import triton.language as tl

from paged.kernels.fast_math import fast_log
from paged.kernels.floor_search import LOWEST
from paged.kernels.logit_process import process_logits
from paged.kernels.philox import BLOCKS_LEVEL, STRANDS_LEVEL, TOKENS_LEVEL, gumbel_noise_of


@triton.jit
def strand_masses(weights, ROWS: tl.constexpr, BLOCK_V: tl.constexpr, STRAND: tl.constexpr):
    """The sum of each strand of a block of weights [ROWS, BLOCK_V]: [ROWS, BLOCK_V // STRAND]."""
    quads = tl.reshape(weights, [ROWS, STRAND // 4, BLOCK_V // STRAND, 4])
    return tl.sum(tl.sum(quads, axis=3), axis=1)


@triton.jit
def _draw_part(masses, noise, NVIDIA: tl.constexpr):
    """Which of the parts of weight masses [ROWS, N] is drawn: [ROWS, 1]."""
    logs = fast_log(tl.where(masses > 0, masses, 1.0), NVIDIA)
    _, part = tl.max(tl.where(masses > 0, logs + noise, float("-inf")), axis=1, return_indices=True)
    return part[:, None]


@triton.jit
def draw_plain(
    row_ptrs, vocab_size, slots, too_short, stop_ids_ptr, masses, strand_ptrs, temperature, seeds,
    positions, wanted, score: tl.constexpr, NUM_STOP_IDS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCKS: tl.constexpr, STRAND: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """(tokens, logits) of the `wanted` rows, the logits as they are in memory.

    masses [ROWS, BLOCKS], all relative to one logit; strand_ptrs point to the `strand_masses` of a
    row, block by block.
    """
    NUM: tl.constexpr = BLOCK_V // STRAND
    blocks = tl.arange(0, BLOCKS)[None, :]
    noise = gumbel_noise_of(seeds, positions, blocks, BLOCKS_LEVEL, ROWS, BLOCKS, NVIDIA)
    block = _draw_part(masses, noise, NVIDIA)
    strands = block * NUM + tl.arange(0, NUM)[None, :]
    masses = tl.load(strand_ptrs[:, None] + strands, mask=wanted[:, None], other=0.0)
    noise = gumbel_noise_of(seeds, positions, strands, STRANDS_LEVEL, ROWS, NUM, NVIDIA)
    strand = _draw_part(masses, noise, NVIDIA)
    lanes = tl.arange(0, STRAND)[None, :]
    ids = block * BLOCK_V + (lanes // 4 * NUM + strand) * 4 + lanes % 4
    mask = (ids < vocab_size) & wanted[:, None]
    raw = tl.load(row_ptrs[:, None] + ids, mask=mask, other=float("-inf"))
    logits = process_logits(raw, ids, slots, too_short, stop_ids_ptr, NUM_STOP_IDS)
    noise = gumbel_noise_of(seeds, positions, ids, TOKENS_LEVEL, ROWS, STRAND, NVIDIA)
    scores = score(logits, noise, temperature[:, None])
    scores = tl.where(logits >= LOWEST, scores, float("-inf"))
    best = tl.max(scores, axis=1)[:, None]
    is_best = (scores == best) & (best > float("-inf"))
    tokens = tl.min(tl.where(is_best, ids, vocab_size), axis=1)
    chosen = tl.sum(tl.where(ids == tokens[:, None], raw, 0.0), axis=1)
    return tokens, chosen
