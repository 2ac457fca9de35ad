"""Reference and inputs of `page_attention`, apart because its kernels and launcher fill a file."""

import torch

from paged.kernels.control.budget import UNLIMITED
from paged.kernels.page_attention import ONE, UNSEEN


def page_attention_ref(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    num_seqs: torch.Tensor,
    seq_slots: torch.Tensor,
    seq_start: torch.Tensor,
    prompt_len: torch.Tensor,
    lse: torch.Tensor,
    attention: torch.Tensor,
    softmax_scale: float,
    window: int = UNLIMITED,
    prompt_only: bool = False,
    first_layer: bool = True,
    logit_softcap: float | None = None,
    **_how: object,
) -> torch.Tensor:
    """What `attention` becomes, as a copy."""
    attention, page_size = attention.clone(), k_cache.shape[2]
    group = q.shape[1] // k_cache.shape[1]
    for seq in range(int(num_seqs)):
        slot, end = int(seq_slots[seq]), int(seq_lens[seq])
        begin, stop = cu_seqlens_q[seq : seq + 2].tolist()
        start, prompt = end - (stop - begin), int(prompt_len[slot])
        in_prompt = int(seq_start[seq]) < prompt
        choice = prompt if in_prompt else (start // page_size + 1) * page_size
        first = max(choice - window, 0)
        if window < UNLIMITED and not in_prompt:
            dropped = int(seq_start[seq]) - start
            first = max(first, start // page_size * page_size, prompt - dropped)
        if prompt_only and not in_prompt:
            first = end

        key = torch.arange(end, device=q.device)
        page = block_table[seq, key // page_size].long()
        keys = k_cache[page, :, key % page_size].float().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->qhk", q[begin:stop].float(), keys) * softmax_scale
        if logit_softcap is not None:
            scores = logit_softcap * torch.tanh(scores / logit_softcap)
        hidden = key[None, :] > key[start:, None]
        weights = scores.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
        counted = (weights[key[start:] >= first] * ONE.value).round().long().sum((0, 1))
        paid = torch.zeros(-(-end // page_size) * page_size, dtype=torch.int64, device=q.device)
        paid[:end] = counted
        paid = paid.view(-1, page_size).sum(1)

        sums = attention[slot, : len(paid)]
        begins = torch.arange(len(paid), device=q.device) * page_size
        if first_layer:
            sums[(begins >= start) | (start <= first < end)] = 0
        sums += paid
        if first_layer and first >= end:
            sums[begins >= start] = UNSEEN.value
    return attention


def page_attention_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    page_size: int = 16,
    window: int = UNLIMITED,
    prompt_only: bool = False,
    first_layer: bool = True,
    logit_softcap: float | None = None,
) -> dict:
    """Arguments of `page_attention`: whole prompts, chunks and decodes, with and without drops.

    NaN stands where nothing may be read; slots and pages are shuffled, one sequence is to spare.
    """
    # queries of this step, tokens before it, of the prompt, pages dropped
    rows = ((70, 0, 70, 0), (33, 40, 73, 0), (20, 30, 90, 0), (1, 85, 20, 2), (5, 64, 41, 1))
    rows += ((1, page_size * 4 - 1, 9, 0), (1, 37, 37, 0))
    generator = torch.Generator().manual_seed(0)
    lens = [
        tokens + before - page_size * min(drop, before // page_size)
        for tokens, before, _, drop in rows
    ]
    seqs, capacity = len(rows), sum(tokens for tokens, *_ in rows) + 3
    max_pages = -(-max(lens) // page_size) + 1
    table = torch.randperm((seqs + 1) * max_pages, generator=generator).view(seqs + 1, -1).int()
    cache = torch.full((table.numel(), num_kv_heads, page_size, head_dim), float("nan"))
    for seq, length in enumerate(lens):
        key = torch.arange(length)
        keys = torch.randn(length, num_kv_heads, head_dim, generator=generator) * 2
        cache[table[seq, key // page_size].long(), :, key % page_size] = keys
    qkv = torch.full((capacity, num_heads + 2, head_dim), float("nan"))
    qkv[: capacity - 3] = torch.randn(capacity - 3, num_heads + 2, head_dim, generator=generator)
    slots = torch.randperm(seqs + 2, generator=generator)[: seqs + 1].int()
    prompt_len = torch.zeros(seqs + 2, dtype=torch.int32)
    prompt_len[slots[:seqs].long()] = torch.tensor([prompt for _, _, prompt, _ in rows]).int()

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    starts = torch.tensor([0, *(tokens for tokens, *_ in rows)]).cumsum(0).tolist()
    before = [before for _, before, _, _ in rows]
    sums = torch.randint(2**40, (seqs + 2, max_pages), generator=generator)
    return {
        "q": qkv.to(device, dtype)[:, :num_heads],
        "k_cache": cache.to(device, dtype),
        "block_table": table.to(device),
        "cu_seqlens_q": ints([*starts, 2**30]),
        "seq_lens": ints([*lens, 2**30]),
        "num_seqs": ints([seqs]),
        "seq_slots": slots.to(device),
        "seq_start": ints([*before, 2**30]),
        "prompt_len": prompt_len.to(device),
        "lse": torch.full((capacity, num_heads), float("nan"), device=device),
        "attention": sums.to(device),
        "softmax_scale": head_dim**-0.5,
        "window": window,
        "prompt_only": prompt_only,
        "first_layer": first_layer,
        "logit_softcap": logit_softcap,
    }
