"""The most probable token of every row, whatever its request asks for."""

from paged.kernels.sampling import greedy_score
from paged.samplers.base import ScoreSampler


class GreedySampler(ScoreSampler):
    """Ignores temperature, filters and seed, but keeps min_tokens."""

    def __init__(self) -> None:
        super().__init__(greedy_score)
