"""Prefill attention: tiles of `paged_attention` against `prefill_attention`, and torch SDPA.

    python experiments/kernels/attention/prefill.py [--page-sizes 64,16]

First every variant runs in a process of its own, all at once, which compiles its kernel into
Triton's cache and compares its bits with those of `paged_attention` over chunks of odd sizes; one
that differs, fails or hangs is named and left out. Then TFLOP/s of the others, whose bits are
compared again, beside torch SDPA (cuDNN and flash, on contiguous keys). One Hopper GPU, some 20
seconds of it.
"""

import argparse
import math
import multiprocessing
import queue
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

import torch
from bench import BACKENDS, Batch, make_batch, measure, sdpa

from paged.kernels.attention_arguments import AttentionConfig
from paged.kernels.attention_items import ITEM_FIELDS, attention_items, max_attention_tiles
from paged.kernels.paged_attention import paged_attention
from paged.kernels.prefill_attention import prefill_attention

TOKENS, SPLIT_SIZE = 32, 256  # of a tile of 128 rows of 4 heads; as the engine has them
SHAPES = ((1, 1024), (1, 8192), (1, 16384), (8, 2048))  # sequences, keys of each
CHUNKS = ((600, 600), (200, 1000), (77, 77), (1, 900), (33, 64), (64, 256), (65, 257), (300, 3000))
MOST_SECONDS = 100  # of the checks, processes and the compiler included


class Variant(NamedTuple):
    name: str
    options: dict  # of prefill_attention, or {"config": ...} of paged_attention


def variants(page_size: int) -> list[Variant]:
    """Those to compare; the first is the yardstick of the bits."""
    stages = 3 if page_size >= 64 else 5
    tall = [Variant(f"64 keys, {n} stages", {"config": AttentionConfig(64, 8, n)}) for n in (3, 5)]
    tall.sort(key=lambda variant: variant.options["config"].num_stages != stages)
    return [
        *tall,
        Variant("groups", {}),
    ]


def launches(batch: Batch, variant: Variant, out: torch.Tensor) -> list[Callable[[], object]]:
    """One launch for each rotation of the batch's pages."""
    meta = batch.metas[0]
    tiles = max_attention_tiles(sum(q_len for q_len, _ in batch.lens), len(batch.lens), TOKENS)
    items = torch.empty(tiles, ITEM_FIELDS, dtype=torch.int32, device="cuda")
    attention_items(meta.cu_seqlens_q, meta.seq_lens, meta.num_seqs, items, TOKENS, SPLIT_SIZE)
    kernel = paged_attention if "config" in variant.options else prefill_attention
    tail = (items, out, batch.spec.softmax_scale, TOKENS, SPLIT_SIZE)
    return [
        lambda meta=meta: kernel(batch.q, *batch.caches, meta.block_table, *tail, **variant.options)
        for meta in batch.metas
    ]


def poison(batch: Batch) -> None:
    """NaN in every row of the caches that no sequence of the first rotation has written."""
    meta = batch.metas[0]
    for cache in batch.caches:
        written = torch.zeros(cache.shape[0], cache.shape[2], dtype=torch.bool, device="cuda")
        for seq, (_, keys) in enumerate(batch.lens):
            position = torch.arange(keys, device="cuda")
            pages = meta.block_table[seq].long()[position // meta.page_size]
            written[pages, position % meta.page_size] = True
        cache.transpose(1, 2)[~written] = math.nan


def run(batch: Batch, variant: Variant) -> torch.Tensor:
    """The output over the first rotation; rows that nothing writes stay NaN."""
    out = torch.full_like(batch.q.contiguous(), math.nan)
    launches(batch, variant, out)[0]()
    torch.cuda.synchronize()
    return out


def check(number: int, page_size: int, results: multiprocessing.Queue) -> None:
    """Compare a variant with the first one, twice: {(number, page size): None or what is wrong}."""
    try:
        batch = make_batch(CHUNKS, sum(tokens for tokens, _ in CHUNKS), page_size=page_size)
        poison(batch)
        want = run(batch, variants(page_size)[0])
        wrong = None
        for _ in range(2):
            out = run(batch, variants(page_size)[number])
            if not torch.equal(out, want):
                rows = (out != want).flatten(1).any(1).nonzero().flatten().tolist()
                worst = (out.float() - want.float()).abs().max().item()
                wrong = f"{len(rows)} rows differ, from {rows[0]} on, by up to {worst}"
        results.put((number, page_size, wrong))
    except Exception:
        results.put((number, page_size, traceback.format_exc().strip()[-600:]))


def check_all(page_sizes: list[int]) -> dict[tuple[int, int], str | None]:
    """What is wrong with each (variant, page size); a process that hangs is ended."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = {
        (number, page_size): context.Process(target=check, args=(number, page_size, results))
        for page_size in page_sizes
        for number in range(len(variants(page_size)))
    }
    for process in processes.values():
        process.start()
    found: dict[tuple[int, int], str | None] = {}
    end = time.monotonic() + MOST_SECONDS
    try:
        while len(found) < len(processes):
            number, page_size, wrong = results.get(timeout=max(0.1, end - time.monotonic()))
            found[number, page_size] = wrong
    except queue.Empty:
        pass
    for process in processes.values():
        process.join(timeout=5)
        process.kill()
    return {key: found.get(key, "no answer: it hangs") for key in processes}


def report(num_seqs: int, keys: int, page_size: int, usable: list[Variant]) -> None:
    batch = make_batch([(keys, keys)] * num_seqs, num_seqs * keys, page_size=page_size)
    out = torch.empty_like(batch.q.contiguous())
    want = None
    cells = []
    for variant in usable:
        calls = launches(batch, variant, out.fill_(math.nan))
        calls[0]()
        torch.cuda.synchronize()
        if want is None:
            want = out.clone()
        same = "" if torch.equal(out, want) else " OTHER BITS"
        rate = batch.flops / measure(calls[:4], budget=0.03) / 1e12
        cells.append(f"{variant.name} {rate:.0f}{same}")
    for name, backend in BACKENDS.items():
        seconds = sdpa(batch, backend)
        cells.append(f"{name} {batch.flops / seconds / 1e12:.0f}" if seconds else f"{name} -")
    print(f"{num_seqs} x {keys}, pages of {page_size}: " + "; ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page-sizes", default="64,16")
    page_sizes = [int(size) for size in parser.parse_args().page_sizes.split(",")]
    wrong = check_all(page_sizes)
    for (number, page_size), what in wrong.items():
        if what:
            print(f"LEFT OUT {variants(page_size)[number].name}, pages of {page_size}: {what}")
    print(f"bits: {sum(not what for what in wrong.values())} of {len(wrong)} kernels agree")
    for page_size in page_sizes:
        usable = [
            variant
            for number, variant in enumerate(variants(page_size))
            if not wrong[number, page_size]
        ]
        for num_seqs, keys in SHAPES:
            report(num_seqs, keys, page_size, usable)


if __name__ == "__main__":
    main()
