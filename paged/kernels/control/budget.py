"""How many pages a row may hold when compression drops pages of live requests.

    kept(n) = min(pages, ceil(share * (n // page_size + 1)))        of n computed tokens

counts the page that the next token goes into. What the protected pages need goes before it.
"""

from typing import NamedTuple

import triton
import triton.language as tl

SHARES = tl.constexpr(1024)  # of a share, which is an integer on the device: no rounding
UNLIMITED = 2**30


class PageBudget(NamedTuple):
    """The pages of a row; constants of an engine."""

    pages: int  # at most
    share: int  # in 1,024ths of the pages that all tokens would take
    sink_pages: int  # never dropped: the first
    recent: int  # tokens at the end whose pages are never dropped
    uncached: int = 1  # tokens at the end of the prompt that are computed, cached or not

    def kept(self, num_tokens: int, page_size: int) -> int:
        """The formula, for one row."""
        pages = num_tokens // page_size + 1
        return min(self.pages, -(-pages * self.share // SHARES.value))

    def protected(self, page_size: int) -> int:
        """Pages that a row keeps whatever the budget says, the one it writes to among them."""
        return self.sink_pages + -(-self.recent // page_size) + 1

    def peak(self, prompt_len: int, total_len: int, page_size: int) -> int:
        """Pages that a row needs at most: the whole prompt is held until it is computed."""
        prompt, total = (-(-length // page_size) for length in (prompt_len, total_len))
        kept = max(self.kept(total_len, page_size), self.protected(page_size))
        return min(total, max(prompt, kept))


@triton.jit
def kept_pages(num_tokens, PAGE_SIZE: tl.constexpr, PAGES: tl.constexpr, SHARE: tl.constexpr):
    """`PageBudget.kept` of every lane."""
    pages = num_tokens // PAGE_SIZE + 1
    return tl.minimum(PAGES, (pages * SHARE + SHARES - 1) // SHARES)


@triton.jit
def peak_pages(
    prompt_len, total_len,
    PAGE_SIZE: tl.constexpr, PAGES: tl.constexpr, SHARE: tl.constexpr, PROTECTED: tl.constexpr,
):  # fmt: skip
    """`PageBudget.peak` of every lane."""
    prompt = (prompt_len + PAGE_SIZE - 1) // PAGE_SIZE
    total = (total_len + PAGE_SIZE - 1) // PAGE_SIZE
    kept = tl.maximum(kept_pages(total_len, PAGE_SIZE, PAGES, SHARE), PROTECTED)
    return tl.minimum(total, tl.maximum(prompt, kept))
