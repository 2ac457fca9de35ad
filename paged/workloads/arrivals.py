"""When requests come, and how long they are: the distributions of synthetic workloads."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def arrival_times(
    rng: np.random.Generator,
    count: int,
    rate: float | None,
    cv: float = 1.0,
    bursts: Sequence[float] | None = None,
) -> np.ndarray:
    """Seconds [count] from the first arrival, in order.

    Args:
        rate: requests a second on average; None is all at once.
        cv: of the gaps, which are gamma distributed: 1 is a Poisson process, 0 a metronome, more
            than 1 comes in clumps (as BurstGPT, Wang et al., 2024, finds of real services).
        bursts: [on, off] seconds: requests come only in the first part of each period, so much
            faster that the average holds.
    """
    if rate is None:
        return np.zeros(count)
    if rate <= 0:
        raise ValueError(f"workload.rate must be positive, got {rate}")
    if cv < 0:
        raise ValueError(f"workload.cv must be at least 0, got {cv}")
    gaps = np.full(count, 1 / rate)
    if cv > 0:
        gaps = rng.gamma(1 / cv**2, cv**2 / rate, count)
    times = np.cumsum(gaps) - gaps[0]
    if bursts is None:
        return times
    if len(bursts) != 2 or bursts[0] <= 0 or bursts[1] < 0:
        raise ValueError(f"workload.bursts must be [on, off] seconds, got {list(bursts)!r}")
    on, off = bursts
    busy = times * on / (on + off)  # time of the parts in which requests come
    return busy + np.floor(busy / on) * off


def lengths(
    rng: np.random.Generator, count: int, mean: float, cv: float, longest: int
) -> np.ndarray:
    """Log-normal lengths [count] int64 in [1, longest] whose mean, after clipping, is `mean`.

    `cv` is the coefficient of variation before clipping; 0 gives all the same length.
    """
    if not 1 <= mean <= longest:
        raise ValueError(f"workload: a mean length must be in [1, {longest}], got {mean}")
    if cv < 0:
        raise ValueError(f"workload: the cv of a length must be at least 0, got {cv}")
    if cv == 0 or mean == longest:
        return np.full(count, round(mean))
    sigma = math.sqrt(math.log(1 + cv**2))
    drawn = np.exp(_location(mean, sigma, longest) + sigma * rng.normal(size=count))
    return np.clip(np.rint(drawn), 1, longest).astype(np.int64)


def _location(mean: float, sigma: float, longest: int) -> float:
    """mu for which min(exp(N(mu, sigma)), longest) has this mean, by bisection."""
    below = NormalDist().cdf
    end = math.log(longest)
    low, high = 0.0, end + 10 * sigma
    for _ in range(60):
        mu = (low + high) / 2
        body = math.exp(mu + sigma**2 / 2) * below((end - mu - sigma**2) / sigma)
        if body + longest * (1 - below((end - mu) / sigma)) < mean:
            low = mu
        else:
            high = mu
    return mu
