"""The reference of sampling.py in plain torch, and the inputs that its tests and timings share."""

import torch

from paged.kernels import sampling_tiles
from paged.kernels.filtered_draw import GREEDY_BELOW
from paged.kernels.floor_search import keep_ref
from paged.kernels.logit_process import NUM_STOP_IDS
from paged.kernels.philox import draw_numbers_ref, gumbel_noise_ref
from paged.kernels.sampling import greedy_score, gumbel_score


def sample_ref(
    logits, slots, num_rows, temperature, top_k, top_p, min_p, seed, position, stop_ids, min_len,
    out_tokens, out_logprobs, workspace=None, score=gumbel_score, offsets=None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(tokens [B], logprobs [B]) row by row, for the scores greedy_score and gumbel_score."""
    tokens, logprobs = out_tokens.clone(), out_logprobs.clone()
    for row in range(int(num_rows)):
        slot = int(slots[row])
        at = int(position[slot]) + (0 if offsets is None else int(offsets[row]))
        masked = logits[row].clone()
        if at < int(min_len[slot]):
            masked[stop_ids[slot][stop_ids[slot] >= 0].long()] = float("-inf")
        tokens[row], logprobs[row] = -1, 0
        if not logits[row].logsumexp(0).isfinite() or masked.max() == float("-inf"):
            continue
        heat = float(temperature[slot])
        scores = masked
        if score is not greedy_score and heat >= GREEDY_BELOW.value:
            filters = (int(top_k[slot]), float(top_p[slot]), float(min_p[slot]))
            key = (int(seed[slot]), at)
            noise = gumbel_noise_ref(*key, masked.shape[0]).to(masked.device)
            scores = masked / heat + noise
            scores = scores.where(keep_ref(masked, heat, *filters), float("-inf"))
            if not is_filtered(*filters, masked.shape[0]):
                scores = scores.where(drawn_token(masked / heat, *key), float("-inf"))
        tokens[row] = int((scores == scores.max()).nonzero()[0])
        logprobs[row] = logits[row].log_softmax(0)[tokens[row]]
    return tokens, logprobs


def is_filtered(top_k: int, top_p: float, min_p: float, vocab_size: int) -> bool:
    """Whether a filter is on."""
    return 0 < top_k < vocab_size or top_p < 1 or min_p > 0


def drawn_token(logits: torch.Tensor, seed: int, position: int) -> torch.Tensor:
    """Which token a row without filters draws: bool [V] with one True."""
    tiles = sampling_tiles.choose_tiles(1, logits.shape[0])
    strands = tiles.block_v // tiles.strand
    ids = torch.arange(logits.shape[0], device=logits.device)
    of_block = ids // tiles.block_v
    weights = (logits - logits.max()).double().exp()
    drawn = torch.ones_like(ids, dtype=torch.bool)
    parts = (of_block, of_block * strands + ids // 4 % strands, ids)
    for part, u in zip(parts, draw_numbers_ref(seed, position)):
        masses = torch.zeros(int(part.max()) + 1, dtype=torch.float64, device=logits.device)
        sums = masses.index_add_(0, part, weights.where(drawn, 0)).cumsum(0)
        drawn = part == int((sums > u * sums[-1]).nonzero()[0])
    return drawn


def sample_inputs(
    device="cpu", dtype=torch.float32, rows=6, vocab_size=300, score=gumbel_score, offset=None
):
    """Rows that cycle through greedy, plain, top-k, top-p, min-p and all filters at once.

    The logits are fp32 but rounded to `dtype`, as from a head in that dtype, so bf16 has ties.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, vocab_size, generator=generator)
    kinds = torch.arange(rows) % 6

    slots = torch.arange(rows, dtype=torch.int32, device=device).flip(0)

    def column(*values):
        return torch.tensor(values)[kinds].to(device)

    return {
        "logits": logits.to(dtype).float().to(device),
        "slots": slots,
        "num_rows": torch.tensor([rows], dtype=torch.int32, device=device),
        "temperature": column(0.0, 1.0, 0.7, 1.3, 1.0, 0.9),
        "top_k": column(5, 0, 7, -1, vocab_size, 40).int(),
        "top_p": column(0.5, 1.0, 1.0, 0.8, 1.0, 0.95),
        "min_p": column(0.5, 0.0, 0.0, 0.0, 0.1, 0.02),
        "seed": torch.arange(rows, device=device) * 0x123456789AB - 7,
        "position": torch.arange(rows, dtype=torch.int32, device=device) + 5,
        "stop_ids": torch.full((rows, NUM_STOP_IDS), -1, dtype=torch.int32, device=device),
        "min_len": torch.zeros(rows, dtype=torch.int32, device=device),
        "out_tokens": torch.full((rows,), -7, dtype=torch.int32, device=device),
        "out_logprobs": torch.full((rows,), float("nan"), device=device),
        "workspace": sampling_tiles.sample_workspace(rows, vocab_size, device),
        "score": score,
        "offsets": None if offset is None else torch.full_like(slots, offset),
    }


SAMPLE_VARIANTS = ({"score": greedy_score}, {"vocab_size": 20000}, {"offset": 1})
