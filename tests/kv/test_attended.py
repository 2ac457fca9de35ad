"""Compression by attention: whom each policy asks, on queries and keys that are given."""

from types import SimpleNamespace

import pytest
import torch

from paged.interfaces import Attention, AttentionMeta, AttentionSpec
from paged.kv.compression import h2o, snapkv, tova
from paged.kv.compression.base import ScoreCompression
from paged.kv.paged import PagedKV
from paged.state import RUNNING, RequestTable, Sizes, StepPlan

SIZE, DIM, PROMPT = 16, 16, 128
ONE_PAGE = {"pages": 2, "sinks": 0, "recent": 0}  # beside the one that is written to
TOVA = {"score": tova.score, "window": 1}
H2O = {"score": h2o.score}
SNAPKV = {"score": snapkv.score, "window": 32, "prompt_only": True}


class Blind(Attention):
    """Leaves its output as it is: nothing here reads it."""

    def forward(self, q, k, v, kv_cache, meta, spec, out):
        return out


class Row:
    """One request whose page i has the i-th unit vector in every key, and queries as given."""

    def __init__(self, device: str, **policy) -> None:
        sizes = Sizes(
            num_slots=2, max_num_seqs=2, max_num_batched_tokens=PROMPT, max_model_len=160,
            page_size=SIZE, num_pages=10,
        )  # fmt: skip
        compression = ScoreCompression(with_attention=True, **ONE_PAGE, **policy)
        self.kv = PagedKV(page_size=SIZE, compression=compression)
        self.requests, self.plan = RequestTable(sizes, device), StepPlan(sizes, device)
        pool = self.kv.allocate(self.requests, torch.device(device))
        pool.counters[0], pool.ref_count[:] = 10, 1
        keys = torch.eye(DIM, device=device)[:10, None, None].expand(-1, 1, SIZE, -1)
        self.cache = keys.contiguous()
        self.model = SimpleNamespace(pages=torch.stack([self.cache] * 2).flatten(2), head_dim=DIM)
        self.requests.status[1], self.requests.prompt_len[1] = RUNNING, PROMPT
        self.spec = AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=DIM, softmax_scale=1.0)
        self.computed = 0

    def compute(self, pages: list[int], *looks: tuple[int, list[int]]) -> list[int]:
        """Compute tokens into further `pages`; (count, pages) of `looks` are queries and what they
        look at. Returns the pages that are kept afterwards."""
        requests, plan = self.requests, self.plan
        held = int(requests.num_pages[1])
        device = requests.block_table.device
        more = torch.tensor(pages, dtype=torch.int32, device=device)
        requests.block_table[1, held : held + len(pages)] = more
        requests.num_pages[1] = held + len(pages)
        counts = torch.tensor([count for count, _ in looks])
        directions = torch.stack([20 * torch.eye(DIM)[seen].sum(0) for _, seen in looks])
        q = directions.repeat_interleave(counts, 0)[:, None].repeat(1, 2, 1).to(device)
        plan.seq_slots[0], plan.seq_start[0], plan.num_seqs[0] = 1, self.computed, 1
        plan.cu_seqlens_q[1] = len(q)
        self.computed += len(q)
        plan.seq_lens[0] = self.computed - SIZE * requests.num_dropped[1]
        plan.block_table[0] = requests.block_table[1]
        for column in (requests.total_len, requests.num_computed_tokens):
            column[1] = self.computed
        meta = AttentionMeta(
            plan.block_table, plan.cu_seqlens_q, plan.seq_lens, plan.num_seqs, plan.num_tokens,
            SIZE, PROMPT, 160,
        )  # fmt: skip
        attention = self.kv.observe(Blind(), requests, plan)
        attention.plan(meta)
        attention.forward(q, q, q, (self.cache, self.cache), meta, self.spec, q)
        self.kv.compress(requests, self.model)
        return requests.block_table[1, : int(requests.num_pages[1])].tolist()


# Page 1 is looked at for long, page 2 by the question at the end, page 3 by the last token.
LOOKS = [(16, [0]), (80, [1]), (31, [2]), (1, [3])]


@pytest.mark.parametrize(
    ("policy", "kept", "later"),
    [(H2O, 1, 1), (SNAPKV, 2, 8), (TOVA, 3, 3)],
    ids=["h2o", "snapkv", "tova"],
)
def test_what_is_looked_at_is_kept(device, policy, kept, later):
    row = Row(device, **policy)
    assert row.compute(list(range(8)), *LOOKS) == [kept]
    # The answer goes on looking at the page, for which snapkv does not ask: it keeps the answer.
    assert row.compute([8], (16, [1, 2, 3])) == [later]


@pytest.mark.parametrize("policy", [H2O, SNAPKV, TOVA], ids=["h2o", "snapkv", "tova"])
def test_a_row_begins_anew_in_the_slot_and_pages_of_another(device, policy):
    row, fresh = Row(device, **policy), Row(device, **policy)
    row.compute(list(range(8)), *LOOKS)
    for column in (row.requests.num_pages, row.requests.num_dropped):
        column[1] = 0
    row.computed = 0
    again = [(16, [0]), (60, [0]), (52, [4, 5])]
    assert row.compute(list(range(8)), *again) == fresh.compute(list(range(8)), *again)
    kept = int(row.requests.num_pages[1])
    sums = [one.kv.drops.attention[1, :kept] for one in (row, fresh)]
    assert torch.equal(*sums)


def test_tova_forgets_what_earlier_choices_were_made_by(device):
    row = Row(device, **TOVA | {"window": 2})
    assert row.compute(list(range(8)), (126, [0]), (2, [5])) == [5]
    assert row.compute([8], (14, [5]), (1, [8]), (1, [8])) == [8]


def test_what_cannot_be_observed_is_refused(device):
    with pytest.raises(ValueError, match=r"kv\.compression\.window must be at least 1, or null"):
        Row(device, **TOVA | {"window": 0})
    row = Row(device, **H2O)
    row.spec = AttentionSpec(2, 1, DIM, 1.0, alibi=True)
    with pytest.raises(ValueError, match="ALiBi"):
        row.compute([0], (16, [0]))
