"""The rows of logits that a step asks for."""

import pytest
import torch

from paged.attention.reference import ReferenceAttention
from paged.interfaces import AttentionMeta
from paged.models import load_model
from paged.state import Sizes, StepPlan
from paged.testing.interpreting import rowwise_dots

CHUNKS = ((20, 11), (10, 19))  # tokens of two prompts in each step
PAGE_SIZE, NUM_PAGES = 16, 4


def logits_of(decoder, token_ids, samples):
    """Logits of the tokens `samples` [steps][...] of two prompts computed in CHUNKS."""
    capacity, most = max(map(sum, CHUNKS)) + 2, max(map(len, samples))
    sizes = Sizes(2, 2, capacity, 2 * PAGE_SIZE, PAGE_SIZE, NUM_PAGES)
    decoder.allocate(capacity, most, PAGE_SIZE, NUM_PAGES)
    plan = StepPlan(sizes, decoder.device)
    meta = AttentionMeta(
        plan.block_table, plan.cu_seqlens_q, plan.seq_lens, plan.num_seqs, plan.num_tokens,
        page_size=PAGE_SIZE, max_num_tokens=capacity, max_seq_len=2 * PAGE_SIZE,
    )  # fmt: skip
    plan.block_table[:2, :2] = torch.tensor([[3, 0], [1, 2]])
    logits = []
    for chunk, rows in zip(CHUNKS, samples):
        for seq, length in enumerate(chunk):
            start, first = int(plan.seq_lens[seq]), int(plan.cu_seqlens_q[seq])
            position = torch.arange(start, start + length, device=decoder.device)
            tokens = slice(first, first + length)
            plan.input_ids[tokens] = token_ids[seq, start : start + length]
            plan.positions[tokens] = position
            page = plan.block_table[seq, position // PAGE_SIZE].long()
            plan.slot_mapping[tokens] = page * PAGE_SIZE + position % PAGE_SIZE
            plan.cu_seqlens_q[seq + 1] = first + length
            plan.seq_lens[seq] += length
        plan.num_seqs.fill_(2)
        plan.num_tokens.fill_(sum(chunk))
        plan.num_samples.fill_(len(rows))
        plan.logits_indices = torch.full((most,), -(2**31), dtype=torch.int32).to(decoder.device)
        plan.logits_indices[: len(rows)] = torch.tensor(rows)
        decoder.logits.fill_(float("nan"))
        with rowwise_dots():
            out = decoder.forward(plan, meta, ReferenceAttention(), capacity)
        assert out[len(rows) :].isnan().all()
        logits.append(out[: len(rows)].clone())
    return logits


@pytest.mark.parametrize("case", ["qwen3", "opt"])
def test_a_token_has_the_same_logits_whichever_others_are_sampled(case, saved_tiny, device, dtype):
    """Few samples of chunks, in any order, against those of a step that samples every token."""
    folder, _ = saved_tiny(case)
    decoder = load_model(folder, dtype, device).decoder
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(3, 250, (2, 30), generator=generator).int().to(device)
    every = logits_of(decoder, token_ids, [range(sum(chunk)) for chunk in CHUNKS])
    few = ([30, 7], [9, 28, 0])
    for rows, some, all_rows in zip(few, logits_of(decoder, token_ids, few), every):
        assert some.isfinite().all()
        assert torch.equal(some, all_rows[rows])
