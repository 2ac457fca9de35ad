import pytest
import torch

from paged.attention.reference import ReferenceAttention
from paged.attention.triton import TritonAttention
from paged.models import load_model
from paged.testing.scoring import score_tokens
from paged.testing.tiny_models import TINY_CONFIGS


@pytest.mark.parametrize("case", TINY_CONFIGS)
def test_log_probabilities_equal_transformers(case, saved_tiny, token_ids, device):
    folder, expected = saved_tiny(case)
    decoder = load_model(folder, torch.float32, device).decoder
    logprobs = score_tokens(decoder, TritonAttention(), token_ids)
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("chunk_size", "page_size", "length"), [(1, 16, 9), (7, 32, 33)])
@pytest.mark.parametrize("case", ["mistral", "opt"])
def test_chunks_and_pages_do_not_matter(
    case, chunk_size, page_size, length, saved_tiny, token_ids, device
):
    folder, expected = saved_tiny(case)
    decoder = load_model(folder, torch.float32, device).decoder
    attention = ReferenceAttention()
    logprobs = score_tokens(decoder, attention, token_ids[:length], chunk_size, page_size)
    torch.testing.assert_close(logprobs, expected[: length - 1], atol=1e-4, rtol=0)


def test_half_precision_is_close(saved_tiny, token_ids, device):
    folder, expected = saved_tiny("qwen3")
    decoder = load_model(folder, torch.float16, device).decoder
    logprobs = score_tokens(decoder, TritonAttention(), token_ids, page_size=32)
    torch.testing.assert_close(logprobs, expected, atol=5e-2, rtol=0)
