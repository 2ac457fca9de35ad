"""Each request's own temperature, top-k, top-p, min-p and seed; temperature 0 is greedy."""

from paged.kernels.sampling import gumbel_score
from paged.samplers.base import ScoreSampler


class StochasticSampler(ScoreSampler):
    """The random numbers of a draw are keyed by (seed, position, token), never by the batch."""

    def __init__(self) -> None:
        super().__init__(gumbel_score)
