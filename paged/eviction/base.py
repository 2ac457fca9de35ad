"""The eviction most policies need: a score, and the engine's exact selection for the rest.

A policy is `score(page, now, *args) -> int32`, smallest goes first, at one of three levels: a
`@triton.jit` function, a plain function on torch tensors ([N] int32 each), or a subclass of
`HostEviction` in plain Python, which synchronises when it runs.

A policy with a memory is a subclass of `ScoreEviction` that keeps tensors of its own: `scores`
brings them up to date and ranks the pages, `settle` notes what was taken. The simulator runs both.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch

from paged.arguments import check_fields
from paged.interfaces import Eviction
from paged.kernels.control.columns import Now, Page
from paged.kernels.control.evict import evict, page_view
from paged.kernels.control.order import now_view
from paged.kernels.launch import is_kernel_function
from paged.state import PagePool


class ScoreEviction(Eviction):
    """Evicts cached pages by `score`, deepest first among equals.

    Args:
        score: Triton or torch function `(page, now, *args) -> int32 scores`.
        args: what `score` gets beside the page and the clock.
    """

    def __init__(self, score: Callable, *, args: tuple = ()) -> None:
        check_fields("eviction", score, Page, Now)
        self.score_function = score
        self.args = tuple(args)

    def scores(self, pool: PagePool) -> torch.Tensor:
        """[N] int32, where `score` is not a Triton function. Pages that are not cached hold what is
        left of earlier contents; their scores are not looked at."""
        return self.score_function(page_view(pool), now_view(pool), *self.args)

    def settle(self, pool: PagePool) -> None:
        """Called after pages were taken; those have `pool.serial` 0 now."""

    def evict(self, pool: PagePool, low_water: int) -> None:
        if is_kernel_function(self.score_function):
            evict(pool, low_water, self.score_function, self.args)
        else:
            pool.score.copy_(self.scores(pool))
            evict(pool, low_water)
        self.settle(pool)


class HostEviction(ScoreEviction):
    """A policy in plain Python: subclass and write `score(page, now) -> int`."""

    capturable = False

    def __init__(self) -> None:
        super().__init__(self.score)

    @abstractmethod
    def score(self, page: Page, now: Now) -> int:
        """The page's score, an int of 32 bits; fields of `page` and `now` are ints."""

    def scores(self, pool: PagePool) -> torch.Tensor:
        now = Now(*(int(value) for value in now_view(pool)))
        pages = zip(*(column.tolist() for column in page_view(pool)))
        scores = [self.score(Page(*page), now) for page in pages]
        for score in scores:
            if not isinstance(score, int) or not -(2**31) <= score < 2**31:
                name = type(self).__name__
                raise ValueError(f"{name}.score must return an int of 32 bits, got {score!r}")
        return torch.tensor(scores, dtype=torch.int32)
