"""Which split size, configuration and number of programs? One GPU call answers.

    python experiments/kernels/attention/tune.py

Kernels are compiled first, in parallel, into Triton's cache. Then the bits: a prefill of 600 tokens
in tall tiles against short ones, whole and spread, and again with the counters of the first launch.
Then times, of checked results only: decode by split size, configuration and programs, prefill by
split size and configuration, the cutting of items.
"""

import functools
import itertools
import multiprocessing
from collections.abc import Callable
from typing import NamedTuple

import torch
from bench import BACKENDS, Batch, check, make_batch, measure, sdpa

from paged.kernels.attention_arguments import AttentionConfig, Partials
from paged.kernels.attention_items import ITEM_FIELDS, attention_items, max_attention_tiles
from paged.kernels.paged_attention import paged_attention

WHOLE = 1 << 20  # a split size that leaves every sequence in one split
WORKSPACE_ROWS = 4096
PROGRAMS = (256, 512, 1024, 2048, 4096)  # that the splits should fill
BASE = AttentionConfig(64, 4, 5)
SHORT_OTHERS = (
    *(AttentionConfig(64, 4, stages) for stages in (3, 7)),
    *(AttentionConfig(64, 2, stages) for stages in (3, 5)),
    *(AttentionConfig(32, warps, 7) for warps in (2, 4)),
    *(AttentionConfig(128, warps, 3) for warps in (4, 8)),
)
TALL = (*(AttentionConfig(64, 8, stages) for stages in (3, 4, 5)), AttentionConfig(128, 8, 3))
DECODES = ((1, 512), (1, 4096), (1, 32768), (16, 4096), (64, 570), (256, 640))
PREFILLS = (2048, 8192, 32768)


class Variant(NamedTuple):
    """One kernel: rows of a tile (16: short), keys a split, configuration, page size."""

    rows: int
    split_size: int
    config: AttentionConfig
    page_size: int = 64


SHORT = (
    *(Variant(16, split, BASE) for split in (128, 256, 512)),
    *(Variant(16, 256, config) for config in SHORT_OTHERS),
    *(Variant(16, 256, BASE, page) for page in (16, 128)),
)
TALLS = (
    *(Variant(128, *pair) for pair in itertools.product((256, 512, WHOLE), TALL)),
    *(Variant(128, split, TALL[0]) for split in (128,)),
    *(Variant(128, 256, config, 16) for config in (TALL[0], TALL[2])),
)


def workspace(batch: Batch) -> Partials:
    spec, rows = batch.spec, WORKSPACE_ROWS
    return Partials(
        torch.empty(rows, spec.num_heads, spec.head_dim, device="cuda"),
        torch.empty(rows, spec.num_heads, 2, device="cuda"),
        torch.zeros(rows, spec.num_kv_heads, dtype=torch.int32, device="cuda"),
    )


def launches(
    batch: Batch,
    variant: Variant,
    out: torch.Tensor,
    partials: Partials | None = None,
    programs: int = 0,
) -> list[Callable[[], object]]:
    """One launch for each rotation of the batch's pages."""
    spec, meta = batch.spec, batch.metas[0]
    tokens = max(1, variant.rows // (spec.num_heads // spec.num_kv_heads))
    tiles = max_attention_tiles(sum(q_len for q_len, _ in batch.lens), len(batch.lens), tokens)
    spread = programs // spec.num_kv_heads if partials else 0
    items = torch.empty(tiles + spread, ITEM_FIELDS, dtype=torch.int32, device="cuda")
    sizes = (meta.cu_seqlens_q, meta.seq_lens, meta.num_seqs)
    num_rows = WORKSPACE_ROWS if partials else 0
    attention_items(*sizes, items, tokens, variant.split_size, None, num_rows, spread)
    tail = (items, out, spec.softmax_scale, tokens, variant.split_size)
    how = {"partials": partials, "config": variant.config}
    return [
        lambda meta=meta: paged_attention(batch.q, *batch.caches, meta.block_table, *tail, **how)
        for meta in batch.metas
    ]


def compile_variant(variant: Variant) -> str | None:
    lens = [(1, 600)] if variant.rows == 16 else [(200, 600)]
    batch = make_batch(lens, 256, page_size=variant.page_size)
    try:
        partials = workspace(batch) if variant.rows == 16 else None
        launches(batch, variant, torch.empty_like(batch.q.contiguous()), partials)[0]()
        torch.cuda.synchronize()
    except Exception as error:  # what does not fit the GPU is left out, and said
        return f"{variant}: {type(error).__name__} {str(error)[:200]}"
    return None


def compare_bits() -> None:
    """Every way to compute a token must give the bits of the first; raises AssertionError."""
    batch = make_batch([(600, 600)], 1024)
    for split_size in (128, 256, 512):
        want = torch.zeros_like(batch.q.contiguous())
        launches(batch, Variant(128, split_size, TALL[0]), want)[0]()
        check(batch, want)
        partials = workspace(batch)
        ways = [(None, 0), *((partials, programs) for programs in (2048, 4096, 8192, 8192))]
        for config, (space, programs) in itertools.product((BASE, SHORT_OTHERS[0]), ways):
            out = torch.full_like(want, float("nan"))
            launches(batch, Variant(16, split_size, config), out, space, programs)[0]()
            assert torch.equal(out[:600], want[:600]), (split_size, config, programs)
            assert not partials.arrived.any()
    print("bits: short, tall, whole and spread are equal", flush=True)


def decode(num_heads: int, num_kv_heads: int, variants: list[Variant]) -> None:
    for num_seqs, keys in DECODES:
        lens = [(1, keys)] * num_seqs
        capacity = next(capacity for capacity in (16, 64, 256) if num_seqs <= capacity)
        cells = []
        for page_size, group in itertools.groupby(variants, lambda variant: variant.page_size):
            batch = make_batch(lens, capacity, num_heads, num_kv_heads, page_size=page_size)
            partials, out = workspace(batch), torch.empty_like(batch.q.contiguous())
            for variant in group:
                is_base = variant.config == BASE and page_size == 64
                for programs in PROGRAMS if is_base else PROGRAMS[1:4:2]:
                    calls = launches(batch, variant, out, partials, programs)
                    calls[0]()
                    check(batch, out)
                    config = ",".join(map(str, variant.config))
                    seconds = measure(calls, budget=0.01)
                    name = f"{variant.split_size}/{config}/page {page_size}/{programs}"
                    cells.append((seconds * 1e6, name))
        floor = batch.floor * 1e6
        print(f"decode {num_heads}/{num_kv_heads} {num_seqs} x {keys}, floor {floor:.1f} us:")
        print("  " + "; ".join(f"{name} {time:.1f}" for time, name in cells), flush=True)
        best = ", ".join(f"{name} {time:.1f}" for time, name in sorted(cells)[:3])
        print(f"  best: {best}", flush=True)


def prefill(variants: list[Variant]) -> None:
    for keys in PREFILLS:
        cells = []
        for page_size, group in itertools.groupby(variants, lambda variant: variant.page_size):
            batch = make_batch([(keys, keys)], keys, page_size=page_size)
            out = torch.empty_like(batch.q.contiguous())
            for variant in group:
                calls = launches(batch, variant, out)
                calls[0]()
                check(batch, out, most_rows=64)
                rate = batch.flops / measure(calls[:2], budget=0.02) / 1e12
                config = ",".join(map(str, variant.config))
                cells.append(f"{variant.split_size}/{config}/page {page_size} {rate:.0f}")
        for name, backend in BACKENDS.items():
            seconds = sdpa(batch, backend)
            cells.append(f"{name} {batch.flops / seconds / 1e12:.0f}" if seconds else f"{name} -")
        print(f"prefill {keys}, TFLOP/s: " + "; ".join(cells), flush=True)


def cut() -> None:
    for num_seqs in (64, 256, 1024):
        batch = make_batch([(1, 570)] * num_seqs, num_seqs, max_num_seqs=num_seqs)
        meta = batch.metas[0]
        items = torch.empty(num_seqs + 64, ITEM_FIELDS, dtype=torch.int32, device="cuda")
        sizes = (meta.cu_seqlens_q, meta.seq_lens, meta.num_seqs, items)
        how = {"num_rows": WORKSPACE_ROWS, "spread": 64}
        call = functools.partial(attention_items, *sizes, 4, 256, **how)
        print(f"cut of {num_seqs} sequences: {measure([call] * 20) * 1e6:.2f} us", flush=True)


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(14) as pool:
        failures = dict(zip((*SHORT, *TALLS), pool.map(compile_variant, (*SHORT, *TALLS), 1)))
    print(*filter(None, failures.values()), sep="\n")
    compare_bits()
    cut()
    usable = [variant for variant in SHORT if failures[variant] is None]
    decode(32, 8, usable)
    decode(16, 8, usable[:3])
    prefill([variant for variant in TALLS if failures[variant] is None])


if __name__ == "__main__":
    main()
