import pytest
import torch

from paged.kernels import linear as linear_module
from paged.kernels.gated_linear import gated_linear, gated_linear_inputs
from paged.kernels.linear import linear, linear_inputs
from paged.kernels.linear_stream import STREAM_ROWS, can_stream
from paged.kernels.linear_tiles import STREAM_TILES, StreamTiles, stream_tiles
from paged.testing.compiling import SM90_SHARED_BYTES

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
SHALLOW = StreamTiles(16, 1, 2, 2, 3)  # every step but the first waits for room in its rings
TILES = {(limits[0], tiles) for limits, tiles in STREAM_TILES.items() if tiles is not None}


@pytest.mark.parametrize(("limits", "tiles"), STREAM_TILES.items(), ids=str)
def test_the_programs_of_a_multiprocessor_fit_its_shared_memory(limits, tiles):
    if tiles is None:
        return
    rows = limits[0]
    assert rows <= STREAM_ROWS
    weights = tiles.block_n * tiles.units * tiles.weight_stages * 128
    inputs = (rows * tiles.units * tiles.input_stages + STREAM_ROWS - rows) * 128
    barriers = 1024  # and what aligns the rings
    assert tiles.per_processor * (weights + inputs + barriers) <= SM90_SHARED_BYTES


def test_more_rows_than_a_wgmma_multiplies_take_another_kernel():
    for capacity in (65, 256, 8192):
        x = torch.zeros(capacity, 1024, dtype=torch.bfloat16)
        assert stream_tiles(capacity, 1024, 1024) is None
        assert not can_stream(x, torch.zeros(1024, 1024, dtype=torch.bfloat16), capacity)


def test_nothing_is_streamed_that_tma_cannot_address():
    for columns, dtype in ((1028, torch.bfloat16), (1024, torch.float32), (0, torch.bfloat16)):
        x = torch.zeros(16, columns, dtype=dtype)
        assert not can_stream(x, torch.zeros(64, columns, dtype=dtype), 16)


def outputs(launch, inputs, tiles, monkeypatch):
    monkeypatch.setattr(linear_module, "stream_tiles", lambda *sizes: tiles)
    inputs = inputs | {"out": inputs["out"].clone()}
    launch(**inputs)
    return inputs["out"]


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(("most", "tiles"), [*sorted(TILES), (STREAM_ROWS, SHALLOW)], ids=str)
@pytest.mark.parametrize(
    ("capacity", "num_tokens", "in_features"),
    [(16, 0, 1024), (16, 1, 4096), (16, 16, 200), (16, 8, 2056), (64, 33, 1024), (24, 9, 3072)],
)
def test_bits_are_those_of_the_kernel_of_pointers(
    capacity, num_tokens, in_features, most, tiles, monkeypatch
):
    if capacity > most:
        pytest.skip(f"this tile is for up to {most} rows")
    shape = {"capacity": capacity, "num_tokens": num_tokens, "in_features": in_features}
    given = ("cuda", torch.bfloat16)
    epilogues = ({}, {"with_bias": True, "logit_softcap": 5.0, "out_dtype": torch.float32})
    for epilogue in epilogues:
        inputs = linear_inputs(*given, out_features=1000, **shape, **epilogue)
        expected = outputs(linear, inputs, None, monkeypatch)
        streamed = outputs(linear, inputs, tiles, monkeypatch)
        assert expected[:num_tokens].isfinite().all()
        assert torch.equal(streamed.nan_to_num(7.0), expected.nan_to_num(7.0))
    for with_bias in (False, True):
        inputs = gated_linear_inputs(*given, width=1000, with_bias=with_bias, **shape)
        expected = outputs(gated_linear, inputs, None, monkeypatch)
        streamed = outputs(gated_linear, inputs, tiles, monkeypatch)
        assert torch.equal(streamed.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.gpu
@on_hopper
def test_the_number_of_tokens_may_change_between_replays(monkeypatch):
    """Half boxes and whole ones in one captured launch."""
    inputs = linear_inputs("cuda", torch.float16, capacity=16, in_features=1024, out_features=512)
    expected = outputs(linear, inputs, None, monkeypatch)
    monkeypatch.setattr(linear_module, "stream_tiles", lambda *sizes: StreamTiles(32, 4, 4, 4))
    linear(**inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear(**inputs)
    for count in (16, 3, 8, 0, 9):
        inputs["num_tokens"].fill_(count)
        inputs["out"].fill_(7.0)
        graph.replay()
        assert torch.equal(inputs["out"][:count], expected[:count])
        assert (inputs["out"][count:] == 7.0).all()
