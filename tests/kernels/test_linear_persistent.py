"""The kernel of descriptors, launched directly: on a GPU `linear` chooses it for many rows."""

import gc

import pytest
import torch

from paged.kernels import linear as linear_module
from paged.kernels import linear_persistent
from paged.kernels.gated_linear import gated_linear, gated_linear_inputs, gated_linear_ref
from paged.kernels.launch import interpreted
from paged.kernels.linear import linear, linear_inputs, linear_ref
from paged.kernels.linear_persistent import can_persist, launch_persistent
from paged.kernels.linear_tiles import (
    ANY,
    PERSISTENT_TILES,
    POINTER_TILES,
    Tiles,
    find_tiles,
    persistent_tiles,
    pointer_tiles,
)
from paged.kernels.norm import norm
from paged.testing.tolerances import assert_close

SMALL = Tiles(64, 32, 64, 4, 2)
WIDE = Tiles(64, 256, 64, 4, 2)


def launch(inputs, tiles, *, gated=False):
    inputs = {"logit_softcap": None} | inputs
    launch_persistent(**inputs, gated=gated, tiles=tiles)


@pytest.fixture(params=[1, 5, 132])
def programs(request, monkeypatch):
    """So many multiprocessors that programs take all tiles, several, or one."""
    monkeypatch.setattr(linear_persistent, "multiprocessors", lambda device: request.param)


@pytest.mark.parametrize(
    "tiles",
    [SMALL, WIDE, SMALL._replace(per_processor=2)],
    ids=["small", "wide", "two a processor"],
)
@pytest.mark.parametrize("num_tokens", [0, 100, 200])
def test_equals_reference(num_tokens, tiles, programs, device):
    shape = {"capacity": 200, "num_tokens": num_tokens, "in_features": 200, "out_features": 88}
    inputs = linear_inputs(device, torch.float16, with_bias=True, logit_softcap=5.0, **shape)
    launch(inputs, tiles)
    assert_close(inputs["out"][:num_tokens], linear_ref(**inputs))
    assert inputs["out"][num_tokens:].isnan().all()


@pytest.mark.parametrize("tiles", [SMALL, WIDE], ids=["small", "wide"])
def test_logits_may_be_fp32(tiles, programs, device):
    shape = {"capacity": 150, "num_tokens": 140, "in_features": 128, "out_features": 299}
    inputs = linear_inputs(device, torch.float16, out_dtype=torch.float32, **shape)
    launch(inputs, tiles)
    assert_close(inputs["out"][:140], linear_ref(**inputs))
    assert inputs["out"][140:].isnan().all()


@pytest.mark.parametrize("tiles", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("width", [40, 161])
def test_gated_equals_reference(width, tiles, programs, device):
    shape = {"capacity": 150, "num_tokens": 140, "in_features": 128, "width": width}
    inputs = gated_linear_inputs(device, torch.float16, with_bias=True, **shape)
    launch(inputs, tiles, gated=True)
    assert_close(inputs["out"][:140], gated_linear_ref(**inputs))
    assert inputs["out"][140:].isnan().all()


def test_groups_of_row_tiles_cover_every_tile(programs, device):
    shape = {"capacity": 64 * 11, "num_tokens": 64 * 11 - 5, "in_features": 64, "out_features": 96}
    inputs = linear_inputs(device, torch.float16, **shape)
    launch(inputs, SMALL)
    assert_close(inputs["out"][: 64 * 11 - 5], linear_ref(**inputs))


@pytest.mark.parametrize(
    ("capacity", "in_features", "precision", "persists"),
    [
        (65, 64, torch.bfloat16, True),
        (64, 64, torch.bfloat16, False),
        (65, 60, torch.bfloat16, False),  # rows of 120 bytes: TMA wants multiples of 16
        (65, 64, torch.float32, False),
    ],
)
def test_few_rows_and_odd_rows_keep_pointers(
    capacity, in_features, precision, persists, monkeypatch
):
    monkeypatch.setattr(linear_persistent, "has_tensor_memory", lambda: True)
    x, weight = (torch.zeros(n, in_features, dtype=precision) for n in (capacity, 8))
    assert can_persist(x, weight, capacity) is persists


@pytest.mark.skipif(not interpreted(), reason="asks where there is no GPU")
def test_the_interpreter_keeps_pointers():
    x = torch.zeros(128, 64, dtype=torch.float16)
    assert not can_persist(x, x, 128)


@pytest.mark.parametrize("table", [POINTER_TILES, PERSISTENT_TILES], ids=["pointer", "persistent"])
def test_every_row_of_a_table_is_reached(table):
    """A row behind a wider one would never be used."""
    corners = [tuple(min(limit, 2**20) for limit in limits) for limits in table]
    assert [find_tiles(table, *corner) for corner in corners] == list(table.values())
    reached = [next(row for row in table if all(map(int.__le__, c, row))) for c in corners]
    assert reached == list(table)


def test_tiles_follow_the_capacity():
    assert pointer_tiles(16, 128256, 4096, torch.bfloat16, False).block_m == 16
    assert pointer_tiles(64, 1024, 3072, torch.bfloat16, False).block_m == 64
    assert persistent_tiles(8192, 28672, 4096) == PERSISTENT_TILES[ANY, ANY, ANY]
    assert persistent_tiles(512, 6144, 1024).per_processor == 2


@pytest.mark.gpu
def test_a_graph_keeps_descriptors_and_reads_what_kernels_before_it_wrote(device, monkeypatch):
    """A captured chain of norm, gated layer and layer has the bits of pointers for new inputs."""
    data = {"device": device, "dtype": torch.bfloat16}
    capacity, width, inner, rounds = 256, 1024, 1536, 12
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=generator, **data)

    layers = [
        (random(width), random(2 * inner, width, scale=0.03), random(width, inner, scale=0.03))
        for _ in range(rounds)
    ]
    num_tokens = torch.zeros(1, dtype=torch.int32, device=device)
    hidden, residual, activated = (
        torch.zeros(capacity, columns, **data) for columns in (width, width, inner)
    )

    def chain():
        for scale, gate_up, down in layers:
            norm(hidden, scale, num_tokens, hidden, 1e-5, residual=residual)
            gated_linear(hidden, gate_up, num_tokens, activated, "silu")
            linear(activated, down, num_tokens, hidden)

    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    gc.collect()
    for live in (256, 1, 129, 200, 0, 256):
        inputs = random(2, capacity, width)
        results = []
        for run, persists in ((graph.replay, True), (chain, True), (chain, False)):
            num_tokens.fill_(live)
            hidden.copy_(inputs[0])
            residual.copy_(inputs[1])
            with monkeypatch.context() as patch:
                if not persists:
                    patch.setattr(linear_module, "can_persist", lambda *_: False)
                run()
            results.append(torch.stack((hidden, residual)))
        assert results[2].isfinite().all()
        assert torch.equal(results[1], results[2])
        assert torch.equal(results[0], results[1])
