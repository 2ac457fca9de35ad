"""Paged attention batches that break careless kernels, for any `Attention` implementation.

Sequences are ragged, page ids shuffled, q, k and v are strided views of one buffer. NaN fills
whatever must not be read: unused pages, the tail of last pages, pages a sliding window has left
behind, the rows of q past the live tokens; plan entries past the live sequences are garbage.
"""

from dataclasses import dataclass
from typing import Any

import torch

from paged.interfaces import Attention, AttentionMeta, AttentionSpec
from paged.testing.tolerances import poisoned

# (query tokens, keys): decodes, chunks and whole prefills, around the sizes of pages and tiles
RAGGED: tuple[tuple[int, int], ...] = (
    (1, 1), (1, 16), (1, 129), (15, 15), (16, 33), (17, 17), (3, 130), (1, 65),
)  # fmt: skip

ATTENTION_CASES: dict[str, dict] = {
    "ragged": {},
    "empty": {"lens": ()},
    "decode": {"lens": ((1, 1), (1, 17), (1, 64), (1, 200))},
    "one_prefill": {"lens": ((129, 129),)},
    "chunk_of_long_context": {"lens": ((7, 600), (1, 530))},
    "gqa_5_to_1": {"num_heads": 10, "num_kv_heads": 2},
    "mqa": {"num_heads": 5, "num_kv_heads": 1},
    "mha_wide": {"num_heads": 2, "num_kv_heads": 2, "head_dim": 128},
    "head_dim_80": {"head_dim": 80},
    "head_dim_96": {"head_dim": 96, "page_size": 32},
    "page_64": {"page_size": 64},
    "page_128": {"page_size": 128},
    "sliding_window": {"sliding_window": 20},
    "sliding_window_long": {"sliding_window": 100, "lens": ((1, 600), (9, 300), (40, 140))},
    "softcap": {"logit_softcap": 5.0},
    "alibi": {"alibi": True, "num_heads": 6, "num_kv_heads": 6},
}


@dataclass(frozen=True)
class AttentionCase:
    """Arguments of one `Attention.forward`; `num_tokens` rows of `out` are to be written."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    kv_cache: tuple[torch.Tensor, torch.Tensor]
    meta: AttentionMeta
    spec: AttentionSpec
    num_tokens: int

    def run(self, attention: Attention) -> torch.Tensor:
        """The live rows of the output; asserts that no other row was written."""
        out = poisoned(*self.q.shape, dtype=self.q.dtype, device=self.q.device)
        attention.plan(self.meta)
        result = attention.forward(self.q, self.k, self.v, self.kv_cache, self.meta, self.spec, out)
        assert result.data_ptr() == out.data_ptr(), "forward must return its `out`"
        assert out[self.num_tokens :].isnan().all(), "a row past the live tokens was written"
        return out[: self.num_tokens]


def sequence_values(seq_len: int, num_heads: int, head_dim: int, seed: int) -> torch.Tensor:
    """[seq_len, num_heads, head_dim]: the first rows of an endless sequence that `seed` names."""
    generator = torch.Generator().manual_seed(seed)
    rows = 1024 * (seq_len // 1024 + 1)
    return torch.randn(rows, num_heads, head_dim, generator=generator)[:seq_len]


def attention_case(
    lens: tuple[tuple[int, int], ...] = RAGGED,
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    page_size: int = 16,
    spare_tokens: int = 5,
    spare_seqs: int = 2,
    max_seq_len: int | None = None,
    seeds: tuple[int, ...] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **variant: Any,
) -> AttentionCase:
    """A batch of sequences with `lens` = ((query tokens, keys), ...).

    `spare_tokens` and `spare_seqs` are capacity beyond what the batch needs; `variant` goes to
    the AttentionSpec. A sequence's values follow from its seed (default: its index) and position
    alone, so the same request can be put into different batches.
    """
    spec = AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5, **variant)
    longest = max((seq_len for _, seq_len in lens), default=1)
    max_seq_len = max_seq_len or longest
    num_pages = 2 + sum(-(-seq_len // page_size) for _, seq_len in lens)
    num_tokens = sum(q_len for q_len, _ in lens)
    capacity, max_num_seqs = num_tokens + spare_tokens, len(lens) + spare_seqs
    free = torch.randperm(num_pages, generator=torch.Generator().manual_seed(0)).tolist()
    seeds = seeds or tuple(range(len(lens)))

    cache_shape = (2, num_pages, num_kv_heads, page_size, head_dim)
    caches = poisoned(*cache_shape, dtype=torch.float32, device="cpu")
    qkv_shape = (capacity, num_heads + 2 * num_kv_heads, head_dim)
    qkv = poisoned(*qkv_shape, dtype=torch.float32, device="cpu")
    block_table = torch.full((max_num_seqs, -(-max_seq_len // page_size)), -1, dtype=torch.int32)
    row = 0
    for seq, (q_len, seq_len) in enumerate(lens):
        values = sequence_values(seq_len, qkv.shape[1], head_dim, seeds[seq])
        kv = values[:, num_heads:].unflatten(1, (2, num_kv_heads))
        qkv[row : row + q_len] = values[seq_len - q_len :]
        row += q_len
        first_key = max(0, seq_len - q_len - (spec.sliding_window or seq_len) + 1)
        for index in range(first_key // page_size, -(-seq_len // page_size)):
            block_table[seq, index] = page = free.pop()
            keys = kv[index * page_size : (index + 1) * page_size]
            caches[:, page, :, : len(keys)] = keys.permute(1, 2, 0, 3)

    poison = torch.iinfo(torch.int32).max
    starts = torch.tensor([0, *(q_len for q_len, _ in lens)], dtype=torch.int32).cumsum(0)
    cu_seqlens_q = starts.tolist() + [poison] * spare_seqs
    seq_lens = [seq_len for _, seq_len in lens] + [poison] * spare_seqs
    meta = AttentionMeta(
        block_table=block_table.to(device),
        cu_seqlens_q=torch.tensor(cu_seqlens_q, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        num_seqs=torch.tensor([len(lens)], dtype=torch.int32, device=device),
        num_tokens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        page_size=page_size,
        max_num_tokens=capacity,
        max_seq_len=max_seq_len,
    )
    k_cache, v_cache = caches.to(device, dtype)
    q, k, v = qkv.to(device, dtype).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    return AttentionCase(q, k, v, (k_cache, v_cache), meta, spec, num_tokens)
