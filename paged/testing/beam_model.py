"""Beam search over the stand-in model of hash_model.py: what it scores, and what must be found."""

import numpy as np
import torch

from paged.beams import BeamSearchParams
from paged.kernels.control.columns import MAX_BEAM_WIDTH, NUM_STOP_IDS
from paged.kernels.control.hashing import mix_ref
from paged.testing.hash_model import VOCAB, kv_word


def token_logprobs(total: int) -> torch.Tensor:
    """[VOCAB] float32 after a prefix whose words add up to `total`; sums of them are exact."""
    words = mix_ref(torch.arange(VOCAB), torch.full((VOCAB,), total % 65521))
    return -(words & 0x3FFFF).float() / 65536


def candidates(total: int, width: int, stop_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What `beam_candidates` finds: tokens and log-probabilities, those of stop ids apart."""
    most = MAX_BEAM_WIDTH.value
    tokens = torch.full((most + NUM_STOP_IDS.value,), -1, dtype=torch.int32)
    logprobs = torch.full(tokens.shape, float("-inf"))
    every = token_logprobs(total)
    stops = torch.tensor(stop_ids, dtype=torch.int32)
    tokens[most : most + len(stops)] = stops
    logprobs[most : most + len(stops)] = every[stops.long()]
    every[stops.long()] = float("-inf")
    best = every.sort(descending=True, stable=True)
    tokens[:width], logprobs[:width] = best.indices[:width].int(), best.values[:width]
    return tokens, logprobs


def beam_oracle(
    prompt: list[int], params: BeamSearchParams, stop_ids: list[int]
) -> list[tuple[list[int], float]]:
    """(output tokens, sum of log-probabilities) of the best sequences, best first: the algorithm
    of `transformers`, over whole lists."""
    width, penalty = params.beam_width, params.length_penalty
    words = kv_word(torch.tensor(prompt), torch.arange(len(prompt)))
    beams: list[tuple[float, list[int], int]] = [(0.0, [], int(words.sum()))]
    ended: list[tuple[float, float, list[int]]] = []
    for length in range(1, params.max_tokens + 1):
        scored = [
            (score + float(logprob), tokens, token, total)
            for score, tokens, total in beams
            for token, logprob in enumerate(token_logprobs(total))
        ]
        scored.sort(key=lambda one: -one[0])
        norm = np.float32(length) ** np.float32(penalty)
        for score, tokens, token, _ in scored[:width]:
            if token in stop_ids or length == params.max_tokens:
                ended.append((float(score / norm), score, [*tokens, token]))
        ended.sort(key=lambda one: -one[0])
        ended = ended[:width]
        beams = []
        for score, tokens, token, total in scored:
            if token not in stop_ids and len(beams) < width:
                at = torch.tensor([len(prompt) + length - 1])
                word = int(kv_word(torch.tensor([token]), at))
                total = (total + word + 2**63) % 2**64 - 2**63
                beams.append((score, [*tokens, token], total))
        if len(ended) == width and (params.early_stopping or beams[0][0] / norm <= ended[-1][0]):
            break
    return [(tokens, score) for _, score, tokens in ended]
