import pytest
import torch

from paged.kernels.attention_items import (
    attention_items,
    attention_items_inputs,
    attention_items_ref,
    max_attention_tiles,
)

LENS = {
    "mixed": ((1, 17), (5, 5), (33, 129), (1, 1)),
    "empty": (),
    "decode": ((1, 1), (1, 128), (1, 129), (1, 17), (1, 4000)),
    "one_prefill": ((64, 64),),
    "a_sequence_without_tokens": ((4, 4), (0, 9), (3, 800)),
    "full": ((64, 70), *[(0, 1)] * 7),
}


HOW = (
    {},
    {"num_rows": 900, "spread": 32},
    {"num_rows": 900, "spread": 5},
    {"num_rows": 64, "spread": 32, "sliding_window": 300},
)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("tokens_per_tile", [1, 3, 16, 128])
@pytest.mark.parametrize("lens", LENS.values(), ids=LENS)
def test_items_cover_every_token_and_split_once_in_order(lens, tokens_per_tile, how, device):
    inputs = attention_items_inputs(
        device, lens=lens, tokens_per_tile=tokens_per_tile, max_items=96, **how
    )
    items = attention_items(**inputs)
    assert torch.equal(items, attention_items_ref(**inputs))
    tiles: dict[int, list] = {}
    for item in items.tolist():
        if item[3]:
            tiles.setdefault(item[1], []).append(item)
    rows = [row for row, parts in tiles.items() for row in range(row, row + parts[0][3])]
    assert rows == list(range(sum(q_len for q_len, _ in lens)))
    places = []
    for parts in tiles.values():
        _, _, position, tokens, first, _, num_items, place = parts[0]
        assert len(parts) == num_items
        splits = [split for part in parts for split in range(part[4], part[5])]
        assert splits == list(range(first, -(-(position + tokens) // 128)))
        if num_items > 1:
            places += range(place, place + tokens * len(splits))
    assert len(places) == len(set(places))
    assert max(places, default=-1) < how.get("num_rows", 0)


@pytest.mark.parametrize(("spread", "parts"), [(16, 10), (11, 10), (6, 5), (2, 2), (1, 1)])
def test_a_long_context_is_spread_as_far_as_wanted(spread, parts, device):
    how = {"lens": ((1, 1280), (1, 5)), "num_rows": 64, "max_items": 12, "spread": spread}
    items = attention_items(**attention_items_inputs(device, **how))
    assert items[:, 6].tolist() == [parts] * parts + [1] + [0] * (11 - parts)


def test_among_many_sequences_only_one_much_longer_is_spread(device):
    lens = ((1, 300),) * 20 + ((1, 2560),)
    how = {"lens": lens, "num_rows": 64, "max_items": 32, "max_num_seqs": 32, "spread": 8}
    items = attention_items(**attention_items_inputs(device, **how))
    assert items[:23, 6].tolist() == [1] * 20 + [2, 2, 0]  # 80 splits: 10 an item


def test_only_sequences_of_the_wanted_numbers_of_tokens_are_cut(device):
    lens = ((1, 9), (7, 7), (4, 300), (5, 5))
    short = attention_items(**attention_items_inputs(device, lens=lens, most_tokens=4))
    tall = attention_items(**attention_items_inputs(device, lens=lens, least_tokens=5))
    assert short[:, 0].tolist()[:3] == [0, 2, -1]
    assert tall[:, 0].tolist()[:5] == [1, 1, 3, 3, -1]


def test_capacity_of_tiles_is_enough_for_the_worst_batch():
    lens = ((17, 17), (15, 15), (1, 1), (31, 31))
    inputs = attention_items_inputs(lens=lens, max_num_seqs=4, tokens_per_tile=8)
    assert attention_items_ref(**inputs)[:, 3].gt(0).sum() <= max_attention_tiles(64, 4, 8)


def test_items_reject_a_wrong_shape():
    inputs = attention_items_inputs() | {"out": torch.zeros(8, 3, dtype=torch.int32)}
    with pytest.raises(ValueError, match="out must have shape"):
        attention_items(**inputs)
