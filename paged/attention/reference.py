"""Attention in plain torch, sequence by sequence: what other implementations are held against."""

import torch

from paged.attention.alibi import alibi_slopes
from paged.interfaces import Attention, AttentionMeta, AttentionSpec


class ReferenceAttention(Attention):
    """Softmax over the gathered pages in fp32. Reads sizes on the host: for checks, not serving."""

    capturable = False

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv_cache: tuple[torch.Tensor, torch.Tensor],
        meta: AttentionMeta,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> torch.Tensor:
        starts = meta.cu_seqlens_q.tolist()
        for seq in range(int(meta.num_seqs.item())):
            rows = slice(starts[seq], starts[seq + 1])
            seq_len = int(meta.seq_lens[seq].item())
            num_pages = -(-seq_len // meta.page_size)
            pages = meta.block_table[seq, :num_pages].long()
            keys, values = (gather(cache, pages, seq_len) for cache in kv_cache)
            out[rows] = attend(q[rows], keys, values, spec)
        return out


def gather(cache: torch.Tensor, pages: torch.Tensor, seq_len: int) -> torch.Tensor:
    """[seq_len, num_kv_heads, head_dim] from a cache [N, num_kv_heads, page_size, head_dim].

    Pages that a sliding window has left behind may be gone from the block table (-1): their
    keys are masked, any page stands in for them.
    """
    return cache[pages.clamp_min(0)].transpose(1, 2).flatten(0, 1)[:seq_len]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Attention of one sequence's last q_len positions; q [q_len, H, D], k and v [seq_len, Hkv, D].

    Returns [q_len, H, D] in the dtype of q.
    """
    group = spec.num_heads // spec.num_kv_heads
    keys, values = k.float().repeat_interleave(group, 1), v.float().repeat_interleave(group, 1)
    key = torch.arange(k.shape[0], device=q.device)
    distance = key[k.shape[0] - q.shape[0] :, None] - key  # [q_len, seq_len]
    is_seen = distance >= 0
    if spec.sliding_window is not None:
        is_seen &= distance < spec.sliding_window

    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * spec.softmax_scale
    if spec.logit_softcap is not None:
        scores = spec.logit_softcap * torch.tanh(scores / spec.logit_softcap)
    if spec.alibi:
        scores = scores - alibi_slopes(spec.num_heads, q.device)[:, None, None] * distance
    weights = scores.masked_fill(~is_seen, float("-inf")).softmax(-1)
    values = values.where(is_seen.any(0)[:, None, None], 0.0)
    return torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
