"""Paged attention over the grid of batches x contexts: ours, torch SDPA's backends, the floor.

    python experiments/kernels/attention/bench.py [--page-size 64] [--heads 32,8]

Correctness comes first: a wrong row ends the run. Times are medians of CUDA-graph replays of
launches that rotate over pages of more than the L2 cache, under programmatic dependent launch, as
in a step. SDPA reads contiguous keys (batch, head, key, d), which no paged engine has: it is a
yardstick. The floor is the keys and values over 4.55 TB/s, or the FLOPs over 790 TFLOP/s.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from paged.attention.triton import TritonAttention
from paged.interfaces import AttentionMeta, AttentionSpec
from paged.testing.tolerances import assert_close

BANDWIDTH, FLOPS = 4.55e12, 790e12
ROTATE_BYTES, MOST_ROTATIONS = 160e6, 48
DECODES = ((1, 512), (1, 4096), (1, 32768), (16, 4096), (64, 570), (64, 2048), (256, 640))
DECODES += ((256, 1024), (256, 4096))
PREFILLS = (2048, 8192, 32768)
# (query tokens, keys) of each kind of row, and how many of it
MIXED = {
    "200 x 500 + chunk 56": ((200, 1, 500), (1, 56, 256)),
    "200 x 500 + prefill 800": ((200, 1, 500), (1, 800, 800)),
    "200 x 500 + 8 x 500": ((200, 1, 500), (8, 500, 500)),
    "800 x 500 + 2 x 100": ((800, 1, 500), (2, 100, 100)),
    "99 x 500 + 1 x 32k": ((99, 1, 500), (1, 1, 32768)),
}
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclass(frozen=True)
class Batch:
    """Sequences of `lens` = ((query tokens, keys), ...) over the pages of one cache."""

    lens: tuple[tuple[int, int], ...]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    caches: tuple[torch.Tensor, torch.Tensor]
    metas: tuple[AttentionMeta, ...]  # the same sequences over other pages, for rotation
    spec: AttentionSpec

    @property
    def bytes(self) -> float:
        """Keys and values of all sequences, read once."""
        width = 2 * self.spec.num_kv_heads * self.spec.head_dim * self.q.element_size()
        return sum(keys for _, keys in self.lens) * width

    @property
    def flops(self) -> float:
        pairs = sum(q * keys - q * (q - 1) / 2 for q, keys in self.lens)
        return 4 * pairs * self.spec.num_heads * self.spec.head_dim

    @property
    def floor(self) -> float:
        """Seconds."""
        return max(self.bytes / BANDWIDTH, self.flops / FLOPS)


def make_batch(
    lens: Sequence[tuple[int, int]],
    capacity: int,
    num_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    page_size: int = 64,
    max_num_seqs: int = 256,
) -> Batch:
    """Random bfloat16 sequences on the GPU, pages shuffled; q, k, v are views of one buffer."""
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"dtype": torch.bfloat16, "device": "cuda", "generator": generator}
    page_counts = [math.ceil(keys / page_size) for _, keys in lens]
    page_bytes = 4 * num_kv_heads * head_dim * page_size
    rotations = math.ceil(ROTATE_BYTES / (sum(page_counts) * page_bytes))
    rotations = max(2, min(MOST_ROTATIONS, rotations))
    num_pages = sum(page_counts) * rotations
    qkv = torch.randn(capacity, num_heads + 2 * num_kv_heads, head_dim, **options)
    q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    shape = (num_pages, num_kv_heads, page_size, head_dim)
    caches = torch.randn(shape, **options), torch.randn(shape, **options)
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(0)).int()
    shares = order.split(sum(page_counts))
    width = 16 * math.ceil(max(page_counts) / 16)  # a multiple of 16 for all: one kernel
    max_num_seqs = max(max_num_seqs, len(lens))
    spare = [0] * (max_num_seqs - len(lens))
    starts = torch.tensor([0, *(q_len for q_len, _ in lens)]).cumsum(0).tolist()
    ints = {"dtype": torch.int32, "device": "cuda"}
    cu_seqlens_q = torch.tensor(starts + spare, **ints)
    seq_lens = torch.tensor([keys for _, keys in lens] + spare, **ints)
    num_seqs, num_tokens = torch.tensor([len(lens)], **ints), torch.tensor([starts[-1]], **ints)
    metas = []
    for share in shares:
        table = torch.zeros(max_num_seqs, width, dtype=torch.int32)
        for row, pages in enumerate(share.split(page_counts)):
            table[row, : len(pages)] = pages
        metas.append(
            AttentionMeta(
                block_table=table.cuda(),
                cu_seqlens_q=cu_seqlens_q,
                seq_lens=seq_lens,
                num_seqs=num_seqs,
                num_tokens=num_tokens,
                page_size=page_size,
                max_num_tokens=capacity,
                max_seq_len=max(4096, *(keys for _, keys in lens)),
            )
        )
    spec = AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5)
    return Batch(tuple(lens), q, k, v, caches, tuple(metas), spec)


def dense(batch: Batch, rotation: int, seq: int) -> tuple[torch.Tensor, ...]:
    """q, k, v of one sequence as SDPA has them: [1, heads, tokens, D]."""
    start = sum(q_len for q_len, _ in batch.lens[:seq])
    q_len, keys = batch.lens[seq]
    pages = batch.metas[rotation].block_table[seq].long()
    pages = pages[: math.ceil(keys / batch.metas[0].page_size)]
    k, v = (cache[pages].transpose(0, 1).flatten(1, 2)[None, :, :keys] for cache in batch.caches)
    return batch.q[start : start + q_len].transpose(0, 1)[None], k, v


def check(batch: Batch, out: torch.Tensor, most_rows: int = 300) -> None:
    """Compare a few sequences of the first rotation with fp32 softmax; raises AssertionError."""
    group = batch.spec.num_heads // batch.spec.num_kv_heads
    for seq in sorted({0, len(batch.lens) // 2, len(batch.lens) - 1}):
        start = sum(q_len for q_len, _ in batch.lens[:seq])
        q_len, keys = batch.lens[seq]
        rows = min(q_len, most_rows)
        q, k, v = dense(batch, 0, seq)
        k, v = (x[0].float().repeat_interleave(group, 0) for x in (k, v))
        scores = q[0, :, -rows:].float() @ k.transpose(1, 2) * batch.spec.softmax_scale
        position = torch.arange(keys - rows, keys, device=q.device)
        scores.masked_fill_(torch.arange(keys, device=q.device) > position[:, None], -torch.inf)
        ref = (scores.softmax(-1) @ v).transpose(0, 1)
        assert_close(out[start + q_len - rows : start + q_len], ref.to(out.dtype))


def measure(launches: Sequence[Callable[[], object]], budget: float = 0.05) -> float:
    """Seconds a launch: the median over replays of one graph that makes all `launches`."""
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    times: list[float] = []
    spent = 0.0
    while (len(times) < 30 and spent < budget) or len(times) < 4:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        graph.replay()
        events[1].record()
        events[1].synchronize()
        times.append(events[0].elapsed_time(events[1]) / 1e3)
        spent += times[-1]
    return statistics.median(times[1:]) / len(launches)


def ours(batch: Batch, attention: TritonAttention) -> float:
    """Seconds a layer of `TritonAttention`, the cutting of items (once a step) left out."""
    out = torch.empty_like(batch.q, memory_format=torch.contiguous_format)
    attention.plan(batch.metas[0])

    def launch(meta: AttentionMeta) -> torch.Tensor:
        return attention.forward(batch.q, batch.k, batch.v, batch.caches, meta, batch.spec, out)

    launch(batch.metas[0])
    check(batch, out)
    return measure([lambda meta=meta: launch(meta) for meta in batch.metas])


def sdpa(batch: Batch, backend: SDPBackend) -> float | None:
    """Seconds of SDPA on contiguous keys; None where the sequences differ or it refuses."""
    if len(set(batch.lens)) > 1 or batch.flops > 1e14:
        return None
    num_seqs, (q_len, _) = len(batch.lens), batch.lens[0]
    stacked = []
    for rotation in range(min(len(batch.metas), 12)):
        parts = [dense(batch, rotation, seq) for seq in range(num_seqs)]
        stacked.append([torch.cat(side).contiguous() for side in zip(*parts)])

    def launch(qkv: list[torch.Tensor]) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*qkv, is_causal=q_len > 1, enable_gqa=True)

    try:
        return measure([lambda qkv=qkv: launch(qkv) for qkv in stacked])
    except RuntimeError:
        return None


def report(name: str, batch: Batch, attention: TritonAttention, is_prefill: bool) -> None:
    seconds = ours(batch, attention)
    others = [sdpa(batch, backend) for backend in BACKENDS.values()]
    if is_prefill:
        rates = [batch.flops / t / 1e12 if t else None for t in (seconds, *others)]
    else:
        rates = [batch.bytes / t / 1e12 if t else None for t in (seconds, *others)]
    cells = [
        "-" if rate is None else f"{rate:.2f}" if rate < 10 else f"{rate:.0f}" for rate in rates
    ]
    known = [t for t in others if t]
    ratio = f"{min(known) / seconds:.2f}x" if known else "-"
    print(
        f"| {name} | {batch.floor * 1e6:.1f} | {seconds * 1e6:.1f} | {batch.floor / seconds:.2f} | "
        + " | ".join(cells)
        + f" | {ratio} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--heads", default="32,8", help="query heads, KV heads")
    arguments = parser.parse_args()
    num_heads, num_kv_heads = map(int, arguments.heads.split(","))
    shape = {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "page_size": arguments.page_size,
    }
    attention = TritonAttention()
    head = (
        "| | floor us | ours us | floor / ours | ours {0} | cuDNN {0} | flash {0} | best / ours |"
    )
    print(head.format("TB/s"), "|---|---|---|---|---|---|---|---|", sep="\n")
    for num_seqs, keys in DECODES:
        capacity = next(c for c in (16, 64, 256) if num_seqs <= c)
        batch = make_batch([(1, keys)] * num_seqs, capacity, **shape)
        report(f"{num_seqs} x {keys}", batch, attention, is_prefill=False)
    for name, kinds in MIXED.items():
        lens = [(tokens, keys) for count, tokens, keys in kinds for _ in range(count)]
        capacity = next(c for c in (256, 1024, 8192) if sum(q for q, _ in lens) <= c)
        report(name, make_batch(lens, capacity, **shape), attention, is_prefill=False)
    print(head.format("TFLOP/s"), "|---|---|---|---|---|---|---|---|", sep="\n")
    for keys in PREFILLS:
        batch = make_batch([(keys, keys)], keys, **shape)
        report(f"prefill {keys}", batch, attention, is_prefill=True)


if __name__ == "__main__":
    main()
