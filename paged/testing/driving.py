"""Random work for `Steps`, the same for every implementation of the stages."""

import random
from typing import Any

from paged.testing.hash_model import Tracked
from paged.testing.steps import Steps

LENGTHS = (1, 15, 16, 17, 33, 50, 80)  # of prompts, around the bounds of pages of 16


def drive(
    steps: Steps, seed: int, *, requests: int = 8, longest: int = 8, lengths=LENGTHS,
    aborts: float = 0.0, nans: float = 0.0, samples: int = 1,
) -> None:  # fmt: skip
    """Random submissions and aborts, `requests` in all, then run to the end.

    Args:
        longest: output tokens at most; `lengths`: of prompts.
        aborts, nans: how probable an abort is in a step, NaN logits in a request.
        samples: outputs of a request at most.
    """
    rng = random.Random(seed)
    stems = [[rng.randrange(64) for _ in range(80)] for _ in range(2)]
    submitted: list[Tracked] = []
    while len(submitted) < requests:
        for _ in range(rng.choice((1, 1, 4))):
            prompt = rng.choice(stems)[: rng.choice(lengths)]
            if rng.random() < 0.3:
                prompt = [*prompt, rng.randrange(64)]
            tokens = rng.randrange(1, longest + 1)
            fields: dict[str, Any] = {
                "priority": rng.randrange(3),
                "predicted_len": len(prompt) + tokens,
            }
            if rng.random() < 0.3:
                fields |= {"stop_ids": (7, 21, 40), "min_len": len(prompt) + rng.randrange(3)}
            if rng.random() < nans:
                fields["nan_at"] = len(prompt) + rng.randrange(-1, 3)
            n = rng.randrange(1, samples + 1) if samples > 1 else 1
            submitted += steps.submit_samples(prompt, tokens, n, **fields)
        if rng.random() < aborts:
            steps.abort(rng.choice(submitted))
        steps.step()
    steps.finish()
