"""Drafts by prompt lookup against a search in plain Python."""

import pytest
import torch

from paged.kernels.ngram_draft import ngram_draft, ngram_draft_inputs, ngram_draft_ref


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"max_len": 1, "seqs": 3},
        {"max_len": 2},
        {"max_len": 17, "drafts": 1, "ngrams": (1, 1)},
        {"max_len": 129, "drafts": 5, "ngrams": (1, 6), "seqs": 70},
        {"max_len": 130, "vocab_size": 2, "ngrams": (20, 30), "drafts": 16},
        {"max_len": 200, "vocab_size": 60, "ngrams": (2, 3)},
        {"seqs": 1},
    ],
    ids=str,
)
def test_drafts_are_the_references(device, variant):
    inputs = ngram_draft_inputs(device, **variant)
    tokens, counts = ngram_draft_ref(**inputs)
    ngram_draft(**inputs)
    assert torch.equal(inputs["num_drafts"], counts)
    assert torch.equal(inputs["draft_tokens"], tokens)


def test_long_sequences_are_searched_tile_by_tile(device):
    inputs = ngram_draft_inputs(device, max_len=40_000, vocab_size=20, ngrams=(3, 5), seqs=3)
    inputs["total_lens"][:] = torch.tensor([40_000, 39_999, 16_386, 3, 20_000])
    inputs["draws"][:] = 0
    inputs["num_seqs"][:] = 3
    tokens, counts = ngram_draft_ref(**inputs)
    ngram_draft(**inputs)
    assert torch.equal(inputs["num_drafts"], counts)
    assert torch.equal(inputs["draft_tokens"], tokens)
    assert int(counts.sum()) > 0


def test_the_longest_match_wins_and_then_the_first(device):
    inputs = ngram_draft_inputs(device, max_len=16, drafts=3, ngrams=(1, 3), seqs=1)
    #      1 2 -> 7     9 1 2 -> 5     9 1 2 -> 6, and now 9 1 2
    row = [1, 2, 7, 9, 1, 2, 5, 9, 1, 2, 6, 9, 1, 2]
    slot = int(inputs["slots"][0])
    inputs["token_ids"][slot, : len(row)] = torch.tensor(row, dtype=torch.int32)
    inputs["total_lens"][slot], inputs["draws"][slot] = len(row), 0
    inputs["num_seqs"][:] = 1
    ngram_draft(**inputs)
    assert inputs["num_drafts"].tolist() == [3]
    assert inputs["draft_tokens"].tolist() == [[5, 9, 1]]


def test_what_does_not_fit_is_refused(device):
    inputs = ngram_draft_inputs(device)
    for ngrams in ((0, 2), (3, 2), (1, 128)):
        sizes = dict(zip(("min_ngram", "max_ngram"), ngrams))
        with pytest.raises(ValueError, match="n-grams must have from 1 to 127 tokens"):
            ngram_draft(**inputs | sizes)
    with pytest.raises(ValueError, match="num_drafts must have shape"):
        ngram_draft(**inputs | {"num_drafts": inputs["num_drafts"][1:]})
