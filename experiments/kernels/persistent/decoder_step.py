"""All layers of a decode step in one launch of programs that stay, with a barrier between phases.

A layer of a Llama or Qwen3 decoder, one token of each sequence, has five phases:

    0  norm of the residual, qkv                  3  norm of the residual, gate and up, activation
    1  q/k norm, rope, KV write, split attention  4  down, added to the residual
    2  merge of the splits, o, added to the residual

Norms and merges are repeated by every program. A program owns rows of each weight, over all of K,
so no sum is split between programs and the residual is updated in place by the owner of a column.

Grid: NUM_PROGRAMS, all on the device at once. Weights of all layers are stacked, [layers, N, K].
"""

import triton
import triton.language as tl
from attention import attend_split, load_keys, merged_pieces, prefetch_pages
from grid import arrive, leave, wait
from products import load_first, load_pieces, normed_rows, prefetch_weight, project
from words import put_words


@triton.jit(do_not_specialize=["first_layer", "end_layer", "max_pages", "poll_limit"])
def decoder_step_kernel(
    residual_ptr, qkv_ptr, partial_ptr, lse_ptr, activated_ptr, cache_ptr,
    attn_norm_ptr, qkv_weight_ptr, q_norm_ptr, k_norm_ptr, o_weight_ptr, mlp_norm_ptr,
    up_weight_ptr, down_weight_ptr, cos_sin_ptr, block_table_ptr, seq_lens_ptr, num_tokens_ptr,
    counter_ptr, words_ptr, zeros_ptr, first_layer, end_layer, value_offset, max_pages,
    score_scale, eps, poll_limit,
    PHASES: tl.constexpr, QKV: tl.constexpr, OUT: tl.constexpr, UP: tl.constexpr,
    DOWN: tl.constexpr, HEADS: tl.constexpr, GRID: tl.constexpr, AHEAD: tl.constexpr,
    EARLY: tl.constexpr, WORDS: tl.constexpr, EMPTY: tl.constexpr, BARRIER: tl.constexpr,
):  # fmt: skip
    """PHASES = (first, end), from -1, which makes words of the residual, to 5.
    HEADS = (NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, SPLITS, STAGES, COMPILED).

    cache_ptr: [layers, 2, num_pages, NUM_KV_HEADS, PAGE_SIZE, HEAD_DIM], values value_offset
    elements behind keys. EMPTY: nothing but the barriers. WORDS: all but attention's partial
    results go through `words` (two of the residual, qkv, activations), and the one barrier that is
    left, between attention and o, keeps a layer from overwriting what the last one still reads.
    """
    NUM_PROGRAMS: tl.constexpr = GRID[0]
    NUM_KV_HEADS: tl.constexpr = HEADS[1]
    SPLITS: tl.constexpr = HEADS[4]
    FIRST: tl.constexpr = PHASES[0]
    END: tl.constexpr = PHASES[1]
    HIDDEN: tl.constexpr = QKV[1]
    num_tokens = tl.load(num_tokens_ptr)
    num_items = num_tokens * (NUM_KV_HEADS * SPLITS)
    polls = poll_limit
    target = 0
    first_epoch = tl.load(counter_ptr + 3) + 2
    flat_zeros, tile_zeros = 0, 0
    if WORDS:
        lines = tl.arange(0, 16)[:, None] * (HEADS[2] // 2) + tl.arange(0, HEADS[2] // 2)[None, :]
        flat_zeros, tile_zeros = (
            tl.load(zeros_ptr + tl.arange(0, HIDDEN)),
            tl.load(zeros_ptr + lines),
        )
    mid_words = words_ptr  # the residual between o and gate_up
    end_words = words_ptr + HIDDEN  # between down and the next layer's qkv
    qkv_words = words_ptr + 2 * HIDDEN
    activated_words = words_ptr + 2 * HIDDEN + QKV[0]
    if WORDS and FIRST < 0:
        column = tl.program_id(0) * DOWN[3] + tl.arange(0, DOWN[3])
        embedded = tl.load(residual_ptr + column, mask=column < HIDDEN, other=0.0)
        put_words(end_words + column, embedded, first_epoch - 1, column < HIDDEN)
    for layer in range(first_layer, end_layer):
        wide = tl.full([], 1, tl.int64) * layer
        after = tl.full([], 1, tl.int64) * tl.minimum(layer + 1, end_layer - 1)
        qkv_weight = qkv_weight_ptr + wide * (QKV[0] * QKV[1])
        next_qkv_weight = qkv_weight_ptr + after * (QKV[0] * QKV[1])
        o_weight = o_weight_ptr + wide * (OUT[0] * OUT[1])
        up_weight = up_weight_ptr + wide * (UP[0] * UP[1])
        down_weight = down_weight_ptr + wide * (DOWN[0] * DOWN[1])
        cache = cache_ptr + wide * 2 * value_offset
        epoch = first_epoch + layer

        if FIRST <= 0 and END > 0:
            if EARLY:
                units = load_first(qkv_weight, QKV, GRID)
            polls = wait(counter_ptr, target, polls, BARRIER and not WORDS)
            if not EMPTY:
                if not EARLY:
                    units = load_first(qkv_weight, QKV, GRID)
                if AHEAD == 2:
                    prefetch_pages(
                        cache, block_table_ptr, seq_lens_ptr, num_tokens, value_offset, max_pages,
                        HEADS, GRID,
                    )  # fmt: skip
                    prefetch_weight(o_weight, OUT, GRID)
                source = end_words if WORDS else residual_ptr
                x = load_pieces(source, flat_zeros, num_tokens, epoch - 1, QKV, GRID)[0]
                x = normed_rows(x, attn_norm_ptr + layer * HIDDEN, eps, QKV, GRID)
                project(
                    units, (x,), qkv_weight, qkv_ptr, qkv_words, num_tokens, epoch, "store", QKV,
                    GRID, WORDS,
                )  # fmt: skip
            if not WORDS:
                arrive(counter_ptr, BARRIER)
                target += NUM_PROGRAMS

        if FIRST <= 1 and END > 1:
            if not EMPTY and AHEAD == 1:
                prefetch_pages(
                    cache, block_table_ptr, seq_lens_ptr, num_tokens, value_offset, max_pages,
                    HEADS, GRID,
                )  # fmt: skip
                prefetch_weight(o_weight, OUT, GRID)
            item = tl.program_id(0)
            if EARLY:
                k_first, k_second, v = load_keys(
                    cache, block_table_ptr, seq_lens_ptr, item, num_items, value_offset, max_pages,
                    HEADS,
                )  # fmt: skip
            polls = wait(counter_ptr, target, polls, BARRIER and not WORDS)
            if not EMPTY:
                if AHEAD == 2:
                    prefetch_weight(up_weight, UP, GRID)
                if not EARLY:
                    k_first, k_second, v = load_keys(
                        cache, block_table_ptr, seq_lens_ptr, item, num_items, value_offset,
                        max_pages, HEADS,
                    )  # fmt: skip
                source = qkv_words if WORDS else qkv_ptr
                while item < num_items:
                    attend_split(
                        k_first, k_second, v, source, q_norm_ptr + layer * HEADS[2],
                        k_norm_ptr + layer * HEADS[2], cos_sin_ptr, cache, block_table_ptr,
                        seq_lens_ptr, partial_ptr, lse_ptr, item, value_offset, max_pages,
                        score_scale, eps, epoch, tile_zeros, HEADS,
                    )  # fmt: skip
                    item += NUM_PROGRAMS
                    k_first, k_second, v = load_keys(
                        cache, block_table_ptr, seq_lens_ptr, item, num_items, value_offset,
                        max_pages, HEADS,
                    )  # fmt: skip
            arrive(counter_ptr, BARRIER)
            target += NUM_PROGRAMS

        if FIRST <= 2 and END > 2:
            if EARLY:
                units = load_first(o_weight, OUT, GRID)
            polls = wait(counter_ptr, target, polls, BARRIER)
            if not EMPTY:
                if not EARLY:
                    units = load_first(o_weight, OUT, GRID)
                x = merged_pieces(partial_ptr, lse_ptr, num_tokens, OUT, HEADS, GRID)
                project(
                    units, x, o_weight, residual_ptr, mid_words, num_tokens, epoch, "add", OUT,
                    GRID, WORDS,
                )  # fmt: skip
            if not WORDS:
                arrive(counter_ptr, BARRIER)
                target += NUM_PROGRAMS

        if FIRST <= 3 and END > 3:
            if not EMPTY and AHEAD == 1:
                prefetch_weight(up_weight, UP, GRID)
            if EARLY:
                units = load_first(up_weight, UP, GRID)
            polls = wait(counter_ptr, target, polls, BARRIER and not WORDS)
            if not EMPTY:
                if not EARLY:
                    units = load_first(up_weight, UP, GRID)
                if AHEAD == 2:
                    prefetch_weight(down_weight, DOWN, GRID)
                source = mid_words if WORDS else residual_ptr
                x = load_pieces(source, flat_zeros, num_tokens, epoch, UP, GRID)[0]
                x = normed_rows(x, mlp_norm_ptr + layer * HIDDEN, eps, UP, GRID)
                project(
                    units, (x,), up_weight, activated_ptr, activated_words, num_tokens, epoch,
                    "gated", UP, GRID, WORDS,
                )  # fmt: skip
            if not WORDS:
                arrive(counter_ptr, BARRIER)
                target += NUM_PROGRAMS

        if FIRST <= 4 and END > 4:
            if not EMPTY and AHEAD == 1:
                prefetch_weight(down_weight, DOWN, GRID)
            if EARLY:
                units = load_first(down_weight, DOWN, GRID)
            polls = wait(counter_ptr, target, polls, BARRIER and not WORDS)
            if not EMPTY:
                if not EARLY:
                    units = load_first(down_weight, DOWN, GRID)
                if AHEAD == 2:
                    prefetch_weight(next_qkv_weight, QKV, GRID)
                source = activated_words if WORDS else activated_ptr
                x = load_pieces(source, flat_zeros, num_tokens, epoch, DOWN, GRID)
                project(
                    units, x, down_weight, residual_ptr, end_words, num_tokens, epoch, "add", DOWN,
                    GRID, WORDS,
                )  # fmt: skip
            if not WORDS:
                arrive(counter_ptr, BARRIER)
                target += NUM_PROGRAMS
            if not EMPTY and AHEAD == 1:
                prefetch_weight(next_qkv_weight, QKV, GRID)
    leave(counter_ptr, polls, first_epoch + end_layer, NUM_PROGRAMS, BARRIER)
