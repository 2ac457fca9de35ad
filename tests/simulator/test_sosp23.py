"""The figures of PagedAttention (SOSP 2023) that experiments/pagedattention_sosp23 regenerates."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "pagedattention_sosp23"
MODULES = ("table", "sharing", "systems")


@pytest.fixture(scope="module")
def table():
    """The experiment's script; its modules are found by their folder."""
    sys.path.insert(0, str(FOLDER))
    yield import_module("table")
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


def test_paged_memory_is_filled_with_tokens(table):
    load = table.load("paged", "ShareGPT", 150, None, seed=0)
    assert 100 * load.split["token_states"] == pytest.approx(96.3, abs=3)
    assert sum(load.split.values()) == pytest.approx(1)


def test_two_samples_save_what_they_share(table):
    assert 100 * table.samples_save("Alpaca", 2, 150, 0) == pytest.approx(6.09, abs=1.5)


def test_a_shared_prefix_is_worth_more_the_longer_it_is(table):
    gains = [
        table.prefix_rate("paged", length, 300, 0)
        / table.prefix_rate("Orca (Oracle)", length, 300, 0)
        for length, _ in table.PREFIXES.values()
    ]
    assert 1.3 < gains[0] < gains[1]
    assert gains[1] == pytest.approx(3.58, rel=0.3)


def test_large_pages_are_wasted_on_short_requests(table):
    small, large = (table.page_size_latency("Alpaca", size, 400, 0) for size in (16, 512))
    assert large > 1.2 * small


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_acceptance_table(table):
    found = table.loads(seed=0, scale=1.0, jobs=2)
    for at, system in enumerate(table.SYSTEMS):
        states = 100 * found["backlog", system].split["token_states"]
        assert states == pytest.approx(table.SPLIT["token_states"][at], abs=3), system
    for dataset, paper in table.BATCHES.items():
        batches = [found[dataset, system].batch for system in table.SYSTEMS]
        assert batches == sorted(batches)
        for batch, theirs in zip(batches, paper):
            assert batch / batches[0] == pytest.approx(theirs / paper[0], rel=0.3), dataset
    for number, theirs in zip(table.SAMPLES, table.SAMPLES_SAVE):
        saved = 100 * table.samples_save("Alpaca", number, 1500, 0)
        assert saved == pytest.approx(theirs, abs=1.5), number
