"""Asking for weights early: what is asked for, where, and that it changes no bit."""

import pytest
import torch

from paged.kernels import linear as linear_module
from paged.kernels.gated_linear import gated_linear, gated_linear_inputs
from paged.kernels.launch import pdl
from paged.kernels.linear import linear, linear_inputs
from paged.kernels.linear_prefetch import prefetch_bytes
from paged.kernels.linear_tiles import POINTER_TILES, Tiles

FEW = Tiles(16, 32, 64, 4, 3)


def weight_of(rows: int, columns: int) -> torch.Tensor:
    return torch.zeros(rows, columns, dtype=torch.bfloat16)


@pytest.mark.parametrize("block_n", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("prefetch", [0, 100, 4096, 2**14, 2**16, 2**30])
@pytest.mark.parametrize("columns", [8, 24, 1024, 1032])
def test_a_program_asks_for_no_byte_beyond_its_rows_or_its_share(block_n, prefetch, columns):
    tiles = FEW._replace(block_n=block_n, prefetch=prefetch)
    row_bytes = prefetch_bytes(weight_of(4, columns), tiles, row_tiles=1)
    assert row_bytes % 16 == 0
    assert row_bytes <= 2 * columns
    assert row_bytes * block_n <= prefetch


def test_everything_is_asked_for_where_the_share_allows():
    assert prefetch_bytes(weight_of(4, 1024), FEW._replace(prefetch=2**16), 1) == 2048


@pytest.mark.parametrize(
    ("weight", "row_tiles"),
    [
        (weight_of(4, 1024), 2),
        (weight_of(4, 1023), 1),
        (weight_of(5, 1024).flatten()[1 : 1 + 4096].view(4, 1024), 1),
    ],
    ids=["several row tiles", "odd rows", "odd address"],
)
def test_nothing_is_asked_for_that_the_hardware_or_the_grid_forbids(weight, row_tiles):
    assert prefetch_bytes(weight, FEW._replace(prefetch=2**30), row_tiles) == 0


def test_every_tile_with_a_prefetch_is_for_one_row_tile():
    for limits, tiles in POINTER_TILES.items():
        assert tiles.prefetch == 0 or limits[0] <= tiles.block_m


@pytest.mark.gpu
@pytest.mark.parametrize("in_features", [1000, 1024])
@pytest.mark.parametrize("prefetch", [2**12, 2**30])
def test_the_bits_are_those_without(in_features, prefetch, monkeypatch):
    if not pdl()["PDL"]:
        pytest.skip("no programmatic dependent launch on this GPU")
    shape = {"capacity": 16, "num_tokens": 11, "in_features": in_features}
    plain = linear_inputs("cuda", torch.bfloat16, out_features=200, with_bias=True, **shape)
    gated = gated_linear_inputs("cuda", torch.bfloat16, width=100, **shape)
    results = []
    for tiles in (FEW, FEW._replace(prefetch=prefetch)):
        monkeypatch.setattr(linear_module, "pointer_tiles", lambda *_, tiles=tiles: tiles)
        linear(**plain)
        gated_linear(**gated)
        results.append((plain["out"][:11].clone(), gated["out"][:11].clone()))
    assert all(torch.equal(*pair) for pair in zip(*results))
