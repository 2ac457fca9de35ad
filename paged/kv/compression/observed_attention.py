"""Attention that takes note of what each page is paid, for scores that look at attention."""

import torch

from paged.interfaces import Attention, AttentionMeta, AttentionSpec
from paged.kernels.control.compress import Drops
from paged.kernels.page_attention import page_attention
from paged.state import RequestTable, StepPlan


class ObservedAttention(Attention):
    """Any attention, with `page_attention` behind each layer.

    Args:
        attention: computes what the model sees; its bits stay what they are.
        drops: gets `drops.attention`, the sums of each row's pages.
        window, prompt_only: which queries count.
    """

    def __init__(
        self,
        attention: Attention,
        requests: RequestTable,
        plan: StepPlan,
        drops: Drops,
        window: int,
        prompt_only: bool,
    ) -> None:
        self.attention, self.requests, self.step_plan = attention, requests, plan
        self.window, self.prompt_only = window, prompt_only
        self.capturable = attention.capturable
        table = requests.block_table
        drops.attention = self.sums = torch.zeros_like(table, dtype=torch.int64)
        self._lse: torch.Tensor | None = None
        self._first_layer = True

    def plan(self, meta: AttentionMeta) -> None:
        self.attention.plan(meta)
        self._first_layer = True

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
        attended = self.attention.forward(q, k, v, kv_cache, meta, spec, out)
        if spec.alibi:
            raise ValueError(
                "kv.compression cannot look at attention with ALiBi's biases; "
                "use one without with_attention"
            )
        if self._lse is None:  # on the first step, which is not captured
            tokens = self.requests.sizes.max_num_batched_tokens
            self._lse = torch.empty(tokens, spec.num_heads, device=q.device)
        plan = self.step_plan
        page_attention(
            q, kv_cache[0], meta.block_table, meta.cu_seqlens_q, meta.seq_lens, meta.num_seqs,
            plan.seq_slots, plan.seq_start, self.requests.prompt_len, self._lse, self.sums,
            spec.softmax_scale, self.window, self.prompt_only, self._first_layer,
            spec.logit_softcap, meta.max_seq_len,
        )  # fmt: skip
        self._first_layer = False
        return attended
