"""Log-probabilities of a given text, token by token, without an engine: one sequence, by hand."""

from collections.abc import Sequence

import torch

from paged.interfaces import Attention, AttentionMeta
from paged.models.decoder import Decoder
from paged.state import Sizes, StepPlan


def score_tokens(
    decoder: Decoder,
    attention: Attention,
    token_ids: Sequence[int],
    chunk_size: int | None = None,
    page_size: int = 16,
) -> torch.Tensor:
    """log p(token i + 1 | tokens 0..i), [len(token_ids) - 1] float32 on the CPU.

    Runs the text through `decoder.forward` in chunks (None: at once), over pages in reverse order.
    Side effect: `decoder.allocate` for this text. Reads the device after every chunk.
    """
    length = len(token_ids)
    chunk = min(chunk_size or length, length)
    num_pages = -(-length // page_size)
    decoder.allocate(chunk, chunk, page_size, num_pages)
    sizes = Sizes(
        num_slots=chunk,
        max_num_seqs=chunk,
        max_num_batched_tokens=chunk,
        max_model_len=length,
        page_size=page_size,
        num_pages=num_pages,
    )
    plan = StepPlan(sizes, decoder.device)
    pages = torch.arange(num_pages - 1, -1, -1, dtype=torch.int32)
    plan.block_table[0] = pages.to(decoder.device)
    plan.logits_indices.copy_(torch.arange(chunk))
    meta = AttentionMeta(
        block_table=plan.block_table,
        cu_seqlens_q=plan.cu_seqlens_q,
        seq_lens=plan.seq_lens,
        num_seqs=plan.num_seqs,
        num_tokens=plan.num_tokens,
        page_size=page_size,
        max_num_tokens=chunk,
        max_seq_len=length,
    )
    ids = torch.tensor(token_ids, dtype=torch.int32)
    logprobs = []
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        position = torch.arange(start, end)
        plan.input_ids[: end - start] = ids[start:end].to(decoder.device)
        plan.positions[: end - start] = position.to(decoder.device, torch.int32)
        slots = pages[position // page_size].long() * page_size + position % page_size
        plan.slot_mapping[: end - start] = slots.to(decoder.device)
        plan.cu_seqlens_q[1] = plan.num_tokens[0] = plan.num_samples[0] = end - start
        plan.num_seqs[0] = 1
        plan.seq_lens[0] = end
        logits = decoder.forward(plan, meta, attention, capacity=chunk)
        logprobs.append(logits[: end - start].cpu().log_softmax(-1))
    following = ids[1:].long()[:, None]
    return torch.cat(logprobs)[:-1].gather(1, following)[:, 0]
