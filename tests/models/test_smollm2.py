"""SmolLM2-135M against transformers; needs its weights, named by PAGED_SMOLLM2 (folder or GGUF)."""

import math
import os

import pytest
import torch

from paged.attention.triton import TritonAttention
from paged.models.loading import load_model
from paged.testing.scoring import score_tokens
from paged.tokenizer import load_tokenizer

WEIGHTS = os.environ.get("PAGED_SMOLLM2", "")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not WEIGHTS, reason="set PAGED_SMOLLM2 to SmolLM2-135M-Instruct"),
]
PARAGRAPH = (
    "The river rises in the hills to the north of the town and runs for about forty miles before "
    "it reaches the sea. In spring, when the snow melts, the water is high and fast, and the old "
    "stone bridge near the market is sometimes closed for a day or two. In summer the banks are "
    "full of people. Children swim where the water is shallow, and their parents sit in the shade "
    "of the trees and talk. The town has grown a great deal over the past fifty years, but the "
    "river has hardly changed. Most of the land beside it belongs to farmers, who use the water "
    "for their fields and do not want to sell. A few years ago a company from the city offered a "
    "lot of money to build a hotel there. The farmers met, talked about it for an evening, and "
    "decided to refuse. One of them said later that he could always find more money, but that he "
    "would never find another river."
)


@pytest.fixture(scope="module")
def reference():
    from pathlib import Path

    from transformers import AutoModelForCausalLM

    path = Path(WEIGHTS)
    given = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    return model.to("cuda").eval()


def test_log_probabilities_equal_transformers_over_512_tokens(reference):
    loaded = load_model(WEIGHTS, torch.float32, "cuda")
    tokenizer = load_tokenizer(loaded.tokenizer_path)
    ids = (tokenizer.encode(PARAGRAPH) * 4)[:512]
    with torch.no_grad():
        logits = reference(torch.tensor([ids], device="cuda")).logits[0].double()
    target = torch.tensor(ids[1:], device="cuda")
    expected = logits[:-1].log_softmax(-1).gather(1, target[:, None])[:, 0].cpu()
    ours = torch.as_tensor(score_tokens(loaded.decoder, TritonAttention(), ids)).double().cpu()
    assert len(ours) == len(expected) == 511
    assert (ours - expected).abs().max() < 1e-3


def test_perplexity_of_a_plain_paragraph(reference, capsys):
    for precision in (torch.float32, torch.bfloat16):
        loaded = load_model(WEIGHTS, precision, "cuda")
        ids = load_tokenizer(loaded.tokenizer_path).encode(PARAGRAPH)
        ours = torch.as_tensor(score_tokens(loaded.decoder, TritonAttention(), ids)).double()
        perplexity = math.exp(-ours.mean())
        with capsys.disabled():
            print(f"\nSmolLM2-135M, {precision}: perplexity {perplexity:.2f}")
        with torch.no_grad():
            batch = torch.tensor([ids], device="cuda")
            expected = math.exp(reference(batch, labels=batch).loss)
        assert abs(perplexity / expected - 1) < (1e-3 if precision is torch.float32 else 2e-2)
        assert 6 < perplexity < 20
