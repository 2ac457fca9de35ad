"""A model whose right answer is known without running it: for testing everything but the model.

Its "KV cache" holds the token ids themselves, written and read through the plan's slot mapping and
block tables, and its next token is a hash of all tokens it reads back. One page given to the wrong
row, one token computed twice or skipped, and the output differs from `continuation`.
"""

from collections.abc import Sequence

import torch

from paged.interfaces import Attention, AttentionMeta
from paged.kernels.control.hashing import mix_ref
from paged.state import Sizes, StepPlan


class NoAttention(Attention):
    """The attention of a model that has none."""

    def forward(self, *arguments: object) -> torch.Tensor:
        raise NotImplementedError("a model without attention layers was given this one")


class OracleModel:
    """Logits are one-hot at `next_token(all tokens so far)`; NaN after a token in `nan_after`."""

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device | str,
        vocab_size: int = 64,
        nan_after: Sequence[int] = (),
    ) -> None:
        self.sizes, self.vocab_size = sizes, vocab_size
        # -1 stands for a slot never written: it changes the hash if it is read.
        self.cache = torch.full(
            (sizes.num_pages * sizes.page_size + 1,), -1, dtype=torch.int64, device=device
        )
        self.pages = self.cache[:-1].view(1, sizes.num_pages, sizes.page_size)
        self.head_dim = 1
        self.logits = torch.zeros(sizes.max_num_samples, vocab_size, device=device)
        self.nan_after = torch.tensor([-1, *nan_after], device=device)

    def forward(
        self, plan: StepPlan, meta: AttentionMeta, attention: object, capacity: int
    ) -> torch.Tensor:
        del attention
        token = torch.arange(capacity, device=self.cache.device)
        live = token < plan.num_tokens
        slots = torch.where(live, plan.slot_mapping[:capacity], len(self.cache) - 1)
        self.cache[slots] = plan.input_ids[:capacity].long()

        size = meta.page_size
        sample = torch.arange(self.sizes.max_num_samples, device=self.cache.device)
        last = torch.where(sample < plan.num_samples, plan.logits_indices, 0).long()
        seq = torch.searchsorted(plan.cu_seqlens_q, last.to(torch.int32), right=True) - 1
        seq = seq.clamp(0, self.sizes.max_num_seqs - 1)
        position = torch.arange(self.sizes.max_pages_per_seq * size, device=self.cache.device)
        page = plan.block_table[seq][:, position // size].long()  # [B, M * page_size]
        tokens = self.cache[page * size + position % size]
        words = mix_ref(tokens, position)
        words = torch.where(position <= plan.positions[last][:, None], words, 0)
        drawn = words.sum(1) % self.vocab_size
        self.logits.zero_()
        self.logits.scatter_(1, drawn[:, None], 10.0)
        failed = torch.isin(plan.input_ids[last].long(), self.nan_after)
        self.logits.masked_fill_(failed[:, None], float("nan"))
        return self.logits

    def continuation(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """What the engine must answer to `prompt`, computed without it."""
        tokens = list(prompt)
        for _ in range(num_tokens):
            ids = torch.tensor(tokens, dtype=torch.int64)
            word = mix_ref(ids, torch.arange(len(ids))).sum()
            tokens.append(int(word % self.vocab_size))
        return tokens[len(prompt) :]
