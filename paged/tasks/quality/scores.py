"""Figures of quality, of log-probabilities (nats) and tokens."""

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

Logprobs = Sequence[Sequence[float]]  # a list of tokens' log-probabilities for each text


def perplexity(logprobs: Logprobs) -> float:
    """exp of the mean negative log-probability of a token."""
    return math.exp(-float(np.mean(list(chain(*logprobs)))))


def kl_divergence(reference: Logprobs, other: Logprobs) -> float:
    """KL(reference || other) in nats a token, of texts that the reference has drawn.

    Both give the same tokens log-probabilities. With r = p_other / p_reference, r - 1 - log r has
    the divergence as its mean, is never negative and varies less than -log r alone (Schulman,
    "Approximating KL divergence", 2020, k3).
    """
    log_ratio = np.array(list(chain(*other))) - np.array(list(chain(*reference)))
    return float(np.mean(np.expm1(log_ratio) - log_ratio))


def match_len(reference: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = enumerate(zip(reference, other))
    return next((at for at, (one, two) in pairs if one != two), min(len(reference), len(other)))
