"""Draw a token of a row without filters: first a chunk of the vocabulary, then a token of it.

The largest of several Gumbel-perturbed logits is itself Gumbel-distributed, about the logarithm of
their summed weights, so

    chunk = argmax over chunks c of   log sum_{i in c} exp(logit_i / temperature) + gumbel noise
    token = argmax over i in chunk of logit_i / temperature + noise of its own

has the distribution of one argmax over all tokens, with CHUNK times less noise to make. The noise
of chunks and that of tokens come from different counters (see philox.py).

Maddison, Tarlow, Minka: "A* sampling" (2014), top-down construction.
"""

import triton
import triton.language as tl

from paged.kernels.floor_search import LOWEST
from paged.kernels.logit_process import process_logits
from paged.kernels.philox import CHUNKS_LEVEL, TOKENS_LEVEL, gumbel_noise


@triton.jit
def chunk_logits(
    logits, temperature, ROWS: tl.constexpr, BLOCK_V: tl.constexpr, CHUNK: tl.constexpr
):
    """log sum exp(logit / temperature) of each chunk: [ROWS, BLOCK_V // CHUNK] of logits
    [ROWS, BLOCK_V]."""
    NUM: tl.constexpr = BLOCK_V // CHUNK
    heat = (1 / temperature)[:, None]
    peak = tl.maximum(tl.max(logits, axis=1), LOWEST)[:, None]
    weights = tl.reshape(tl.exp((logits - peak) * heat), [ROWS, NUM, CHUNK])
    mass = tl.sum(weights, axis=2)
    return tl.where(mass > 0, tl.log(mass) + peak * heat, float("-inf"))


@triton.jit
def draw_by_chunks(
    row_ptrs, vocab_size, slots, too_short, stop_ids_ptr, chunk_ptrs, num_chunks, temperature,
    seeds, positions, wanted, score: tl.constexpr, NUM_STOP_IDS: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, NVIDIA: tl.constexpr,
):  # fmt: skip
    """The tokens of the `wanted` rows; chunk_ptrs point to num_chunks of `chunk_logits` a row."""
    chunks = tl.arange(0, CHUNKS)[None, :]
    there = (chunks < num_chunks) & wanted[:, None]
    logits = tl.load(chunk_ptrs[:, None] + chunks, mask=there, other=float("-inf"))
    groups = tl.arange(0, CHUNKS // 4)[None, :]
    noise = gumbel_noise(seeds, positions, groups, CHUNKS_LEVEL, ROWS, CHUNKS, NVIDIA)
    _, chunk = tl.max(logits + noise, axis=1, return_indices=True)
    ids = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    mask = (ids < vocab_size) & wanted[:, None]
    raw = tl.load(row_ptrs[:, None] + ids, mask=mask, other=float("-inf"))
    logits = process_logits(raw, ids, slots, too_short, stop_ids_ptr, NUM_STOP_IDS)
    groups = chunk[:, None] * (CHUNK // 4) + tl.arange(0, CHUNK // 4)[None, :]
    noise = gumbel_noise(seeds, positions, groups, TOKENS_LEVEL, ROWS, CHUNK, NVIDIA)
    scores = score(logits, noise, temperature[:, None])
    scores = tl.where(logits >= LOWEST, scores, float("-inf"))
    best = tl.max(scores, axis=1)[:, None]
    is_best = (scores == best) & (best > float("-inf"))
    return tl.min(tl.where(is_best, ids, vocab_size), axis=1)
