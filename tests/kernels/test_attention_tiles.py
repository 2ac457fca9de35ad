import pytest
import torch

from paged.kernels.attention_tiles import (
    attention_tiles,
    attention_tiles_inputs,
    attention_tiles_ref,
    max_attention_tiles,
)

LENS = {
    "mixed": ((1, 17), (5, 5), (33, 129), (1, 1)),
    "empty": (),
    "decode": ((1, 1), (1, 15), (1, 16), (1, 17), (1, 129)),
    "one_prefill": ((64, 64),),
    "a_sequence_without_tokens": ((4, 4), (0, 9), (3, 8)),
    "full": ((64, 70), *[(0, 1)] * 7),
}


@pytest.mark.parametrize("tokens_per_tile", [1, 3, 16, 128])
@pytest.mark.parametrize("lens", LENS.values(), ids=LENS)
def test_tiles_cover_every_token_once_in_order(lens, tokens_per_tile, device):
    inputs = attention_tiles_inputs(device, lens=lens, tokens_per_tile=tokens_per_tile)
    tiles = attention_tiles(**inputs)
    assert torch.equal(tiles, attention_tiles_ref(**inputs))
    rows = [row for _, first, _, count in tiles.tolist() for row in range(first, first + count)]
    assert rows == list(range(sum(q_len for q_len, _ in lens)))


def test_capacity_of_tiles_is_enough_for_the_worst_batch():
    lens = ((17, 17), (15, 15), (1, 1), (31, 31))
    inputs = attention_tiles_inputs(lens=lens, max_num_seqs=4, tokens_per_tile=8)
    assert attention_tiles_ref(**inputs)[:, 3].gt(0).sum() <= max_attention_tiles(64, 4, 8)


def test_tiles_reject_a_wrong_shape():
    inputs = attention_tiles_inputs() | {"out": torch.zeros(8, 3, dtype=torch.int32)}
    with pytest.raises(ValueError, match="out must have shape"):
        attention_tiles(**inputs)
