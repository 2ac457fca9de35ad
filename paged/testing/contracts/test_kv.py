"""Any allocator: nothing leaks, nothing is booked twice, and it never changes an answer."""

import inspect

import pytest

from paged.interfaces import KVManager
from paged.kv.paged import PagedKV
from paged.state import RUNNING
from paged.testing.engines import answer_all, oracle_engine, ragged_prompts

BUILT_IN = [
    "paged.kv.paged.PagedKV",
    "paged.kv.contiguous_max.reserve_len",
    "paged.kv.contiguous_pow2.ContiguousPow2",
    "paged.kv.contiguous_oracle.ContiguousOracle",
]


def build(component) -> KVManager:
    return component() if inspect.isclass(component) else PagedKV(reserve_len=component)


@pytest.mark.parametrize("num_pages", [64, 11], ids=["plenty", "famine"])
def test_answers_do_not_depend_on_the_allocator(device, kv_component, num_pages):
    engine = oracle_engine(device, kv=build(kv_component), num_pages=num_pages)
    answer_all(engine, ragged_prompts(7), num_tokens=10)
    answer_all(engine, ragged_prompts(3), num_tokens=10)


def test_rows_hold_pages_for_all_computed_tokens(device, kv_component):
    engine = oracle_engine(device, kv=build(kv_component))
    size = engine.sizes.page_size

    def covered(stats) -> None:
        requests = engine.requests
        running = requests.status == RUNNING
        held = requests.num_pages[running] * size
        assert (requests.num_computed_tokens[running] <= held).all()

    engine.on_step = covered
    answer_all(engine, ragged_prompts(5), num_tokens=5)
