"""The budget that every compression has, and the score of a key that most are.

A policy is `score(token, *args) -> float32`, a `@triton.jit` function of a cached token's key and
value in one head of one layer, and of the attention that it was paid. A page's score is the mean
over its tokens, heads and layers, since its heads and layers come and go together; the lowest pages
are dropped.
"""

from collections.abc import Callable

import torch

from paged.arguments import check_fields
from paged.interfaces import Attention, Compression, Model
from paged.kernels.control.budget import SHARES, UNLIMITED, PageBudget
from paged.kernels.control.compress import Drops
from paged.kernels.mean_keys import mean_keys
from paged.kernels.page_scores import CachedToken, page_scores
from paged.kv.compression.observed_attention import ObservedAttention
from paged.state import RequestTable, StepPlan


class PageCompression(Compression):
    """A budget of pages for each request, from the end of its prompt on.

    Args:
        pages: a request holds at most; None is no bound.
        ratio: share of its pages that a request keeps, in steps of 1/1024; 1 keeps all.
        sinks: tokens at the start whose pages are never dropped.
        recent: tokens at the end whose pages are never dropped, the prompt's last ones at first.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self, *, pages: int | None = None, ratio: float = 1.0, sinks: int = 4, recent: int = 64
    ) -> None:
        if pages is not None and pages < 1:
            raise ValueError(f"kv.compression.pages must be positive, got {pages}")
        if not 0 < ratio <= 1:
            raise ValueError(f"kv.compression.ratio must be in (0, 1], got {ratio}")
        for name, value in (("sinks", sinks), ("recent", recent)):
            if value < 0:
                raise ValueError(f"kv.compression.{name} must be at least 0, got {value}")
        self.pages, self.ratio, self.sinks, self.recent = pages, ratio, sinks, recent

    def budget(self, page_size: int) -> PageBudget:
        budget = PageBudget(
            pages=UNLIMITED if self.pages is None else self.pages,
            share=max(1, round(self.ratio * SHARES.value)),
            sink_pages=-(-self.sinks // page_size),
            recent=self.recent,
        )
        least = budget.protected(page_size)
        if budget.pages < least:
            raise ValueError(
                f"kv.compression.pages must be at least {least}: sinks={self.sinks} and "
                f"recent={self.recent} tokens are kept, and one page is being filled; got "
                f"{self.pages}; lower them or raise it"
            )
        return budget


class ScoreCompression(PageCompression):
    """Drops the pages whose tokens have the lowest scores.

    Args:
        score: Triton function `(token, *args) -> float32`; see `CachedToken`.
        args: what `score` gets beside the token.
        with_mean_key: give the score `token.mean_key`, at the price of another pass over the keys.
        with_attention: give the score `token.attention`, at the price of two passes over the keys
            in each layer for the queries that count.
        window: queries that count, before each choice of pages; None counts all since the first.
        prompt_only: only queries of the prompt count; later tokens are never the lowest.
        knobs: `PageCompression`'s, by name.
    """

    def __init__(
        self,
        score: Callable,
        *,
        args: tuple = (),
        with_mean_key: bool = False,
        with_attention: bool = False,
        window: int | None = None,
        prompt_only: bool = False,
        **knobs,
    ) -> None:
        super().__init__(**knobs)
        check_fields("kv.compression", score, CachedToken)
        if window is not None and window < 1:
            raise ValueError(
                f"kv.compression.window must be at least 1, or null for all, got {window}"
            )
        self.with_attention, self.prompt_only = with_attention, prompt_only
        self.window = UNLIMITED if window is None else window
        self.score_function, self.args, self.with_mean_key = score, tuple(args), with_mean_key
        self._means: torch.Tensor | None = None
        self._observed: ObservedAttention | None = None

    def budget(self, page_size: int) -> PageBudget:
        budget = super().budget(page_size)
        return budget._replace(uncached=self.window) if self.with_attention else budget

    def observe(
        self, attention: Attention, requests: RequestTable, plan: StepPlan, drops: Drops
    ) -> Attention:
        if not self.with_attention:
            return attention
        if self._observed is None or drops.attention is None:  # of this engine
            self._observed = ObservedAttention(
                attention, requests, plan, drops, self.window, self.prompt_only
            )
        return self._observed

    def scores(self, requests: RequestTable, drops: Drops, model: Model) -> None:
        page_size, table, slots = requests.sizes.page_size, requests.block_table, drops.slots
        pages, rows, head_dim = model.pages, drops.num_rows, model.head_dim
        if self.with_mean_key:
            if self._means is None:  # on the first step, which is not captured
                heads = pages.shape[2] // (page_size * head_dim)
                shape = (len(slots), len(pages) // 2, heads, head_dim)
                self._means = torch.empty(shape, device=pages.device)
            mean_keys(pages, table, rows, slots, drops.lens, self._means, page_size, head_dim)
        page_scores(
            pages, table, rows, slots, drops.ends, drops.scores, self.score_function, page_size,
            head_dim, first=self.budget(page_size).sink_pages, mean_keys=self._means,
            attention=drops.attention, args=self.args,
        )  # fmt: skip
