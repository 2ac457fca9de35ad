"""Builders for the tests of the control plane: tiny engines without a model."""

import random

import pytest

from paged.state import Sizes
from paged.testing.sides import Knobs
from paged.testing.steps import Steps

LENGTHS = (1, 15, 16, 17, 33, 50, 80)


@pytest.fixture
def build(device):
    """`build(by=..., num_buckets=..., sizes={...}, **knobs) -> Steps`, tiny unless told."""

    def make(by: str = "both", num_buckets: int | None = None, sizes=None, **knobs) -> Steps:
        capacities = {
            "num_slots": 8, "max_num_seqs": 4, "max_num_batched_tokens": 64,
            "max_model_len": 130, "page_size": 16, "num_pages": 24,
        }  # fmt: skip
        return Steps(
            Sizes(**capacities | (sizes or {})),
            Knobs(**knobs),
            by=by,
            device=device,
            num_buckets=num_buckets,
        )

    return make


@pytest.fixture
def drive():
    """`drive(steps, seed, ...)`: random submissions and aborts, then run to the end."""

    def run(
        steps: Steps, seed: int, *, requests: int = 8, longest: int = 8, lengths=LENGTHS,
        aborts: float = 0.0, nans: float = 0.0, samples: int = 1,
    ) -> None:  # fmt: skip
        rng = random.Random(seed)
        stems = [[rng.randrange(64) for _ in range(80)] for _ in range(2)]
        submitted = []
        while len(submitted) < requests:
            for _ in range(rng.choice((1, 1, 4))):
                prompt = rng.choice(stems)[: rng.choice(lengths)]
                if rng.random() < 0.3:
                    prompt = [*prompt, rng.randrange(64)]
                tokens = rng.randrange(1, longest + 1)
                fields = {"priority": rng.randrange(3), "predicted_len": len(prompt) + tokens}
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

    return run
