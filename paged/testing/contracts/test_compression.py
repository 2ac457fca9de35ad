"""Any compression: it drops as many pages as the budget says, none that is protected, by what the
row's keys, values and attention are and nothing else."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from paged.attention.reference import ReferenceAttention
from paged.interfaces import Compression
from paged.kv.compression.base import ScoreCompression
from paged.kv.paged import PagedKV
from paged.state import RUNNING, RequestTable, Sizes, StepPlan
from paged.testing.invariants import check_state

FUNCTIONS = ("knorm", "keydiff", "paged_eviction", "tova", "h2o", "snapkv")
BUILT_IN = [
    "paged.kv.compression.streaming_llm.StreamingLLM",
    *(f"paged.kv.compression.{name}.score" for name in FUNCTIONS),
]
SIZE, LAYERS, HEADS, DIM = 16, 2, 2, 32
SINKS, RECENT = 20, 40


def build(component, **knobs) -> Compression:
    knobs = {"sinks": SINKS, "recent": RECENT} | knobs
    if inspect.isclass(component):
        return component(**knobs)
    return ScoreCompression(component, with_mean_key=True, with_attention=True, **knobs)


def compressed(device, compression, lens: dict[int, int], num_pages: int, seed: int):
    """{slot: pages kept, as indices in the row} of rows {slot: tokens}; values follow the slot.

    `seed` shuffles which pages of the pool the rows hold.
    """
    sizes = Sizes(
        num_slots=8, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=512,
        page_size=SIZE, num_pages=num_pages,
    )  # fmt: skip
    requests, kv = RequestTable(sizes, device), PagedKV(page_size=SIZE, compression=compression)
    pool = kv.allocate(requests, torch.device(device))
    kv.observe(ReferenceAttention(), requests, StepPlan(sizes, device))
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).int()
    pool.free_ring[:num_pages] = order
    pages = torch.full((2 * LAYERS, num_pages, HEADS * SIZE * DIM), float("nan"))
    taken, rows = 0, {}
    for slot, length in lens.items():
        held = -(-length // SIZE)
        mine = order[taken : taken + held]
        generator = torch.Generator().manual_seed(slot)
        tokens = torch.randn(2 * LAYERS, held * SIZE, HEADS, DIM, generator=generator)
        tokens[:, length:] = float("nan")  # of a page that is being filled: never written
        pages[:, mine.long()] = tokens.unflatten(1, (held, SIZE)).transpose(2, 3).flatten(2)
        requests.status[slot], requests.arrival[slot] = RUNNING, slot
        for column in (requests.prompt_len, requests.total_len, requests.num_computed_tokens):
            column[slot] = length
        requests.max_len[slot], requests.num_pages[slot] = 512, held
        requests.block_table[slot, :held] = mine
        if kv.drops.attention is not None:
            kv.drops.attention[slot, :held] = torch.randint(2**40, (held,), generator=generator)
        pool.ref_count[mine.long()] = 1
        rows[slot], taken = mine.tolist(), taken + held
    pool.counters[0] = taken
    model = SimpleNamespace(pages=pages.to(device), head_dim=DIM)
    kv.compress(requests, model)
    check_state(requests, pool)
    kept = {}
    for slot, mine in rows.items():
        table = requests.block_table[slot, : int(requests.num_pages[slot])].tolist()
        kept[slot] = [mine.index(page) for page in table]
    return kept


@pytest.mark.parametrize("length", [15, 16, 64, 129, 271])
def test_the_budget_is_kept_and_what_is_protected_stays(device, compression_component, length):
    compression = build(compression_component, pages=7)
    kept = compressed(device, compression, {3: length}, num_pages=32, seed=0)[3]
    assert kept == sorted(kept), "the order of the pages has changed"
    # The next token's page counts: it is the last of the row, or there is room for one more.
    assert len(kept) + (length % SIZE == 0) <= 7
    assert len(kept) == min(-(-length // SIZE), 7 - (length % SIZE == 0))
    needed = [
        *range(-(-SINKS // SIZE)),
        *range(max(0, length - RECENT) // SIZE, -(-length // SIZE)),
    ]
    assert set(needed) & set(range(-(-length // SIZE))) <= set(kept)


def test_what_is_dropped_depends_on_the_row_alone(device, compression_component):
    compression = build(compression_component, pages=7)
    alone = compressed(device, compression, {3: 271}, num_pages=64, seed=0)
    others = {0: 200, 3: 271, 5: 90, 6: 16}
    crowd = compressed(device, compression, others, num_pages=64, seed=1)
    assert crowd[3] == alone[3]
