import pytest
import torch

from paged.testing.tiny_models import save_tiny_model, transformers_logprobs


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    """A text of 33 tokens that every tiny vocabulary has."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 250, (33,), generator=generator).tolist()


@pytest.fixture(scope="session")
def saved_tiny(tmp_path_factory, token_ids):
    """case -> (folder, log-probabilities by transformers), made once a session."""
    made = {}

    def saved(case: str):
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            made[case] = folder, transformers_logprobs(save_tiny_model(case, folder), token_ids)
        return made[case]

    return saved
