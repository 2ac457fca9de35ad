"""Device-resident state: the request table, the page pool and the plan of a step.

Structure of arrays, allocated once. Kernels hold pointers into these tensors for as long as a
captured graph lives, so nothing here is ever reallocated or replaced.
"""

from dataclasses import dataclass
from typing import Any

import torch

from paged.kernels.control import columns as col
from paged.kernels.control.budget import PageBudget
from paged.kernels.control.packing import MAX_LANES as MAX_SLOTS
from paged.kernels.control.swap import SwapSpace
from paged.kernels.logit_edits import WORDS, mask_words

WAITING, RUNNING = col.WAITING.value, col.RUNNING.value
FINISHED, PREEMPTED, FREE = col.FINISHED.value, col.PREEMPTED.value, col.FREE.value
FORKING = col.FORKING.value


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def check_page_size(page_size: int) -> None:
    """Raise ValueError unless a page can have this many tokens."""
    if page_size < 16 or page_size & (page_size - 1):
        below = next_power_of_2(page_size) // 2
        near = "the least is 16" if page_size < 16 else f"the nearest are {below} and {below * 2}"
        raise ValueError(f"kv.page_size must be a power of two from 16 up, got {page_size}; {near}")


@dataclass(frozen=True)
class Sizes:
    """Every capacity of the engine's state; all counts are positive."""

    num_slots: int  # R: rows of the request table, waiting and running
    max_num_seqs: int  # S: sequences of one step
    max_num_batched_tokens: int  # T: tokens of one step
    max_model_len: int  # L: tokens of one sequence
    page_size: int  # tokens of a page, a power of two
    num_pages: int  # N
    num_draft_tokens: int = 0  # K: proposed for a sequence in one step at most, 0 = no speculation
    num_host_pages: int = 0  # H: for the keys and values of preempted rows, 0 = no swapping

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in ("num_draft_tokens", "num_host_pages") else 1
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        check_page_size(self.page_size)
        if self.num_slots > MAX_SLOTS:
            raise ValueError(f"num_slots must be at most {MAX_SLOTS}, got {self.num_slots}")
        if self.max_num_seqs > self.num_slots:
            raise ValueError(
                f"scheduler.max_num_seqs must be at most num_slots ({self.num_slots}), "
                f"got {self.max_num_seqs}"
            )

    @property
    def max_pages_per_seq(self) -> int:
        return -(-self.max_model_len // self.page_size)

    @property
    def max_num_samples(self) -> int:
        """B: rows of logits of one step."""
        return self.max_num_seqs * (1 + self.num_draft_tokens)


class RequestTable:
    """One row a request. `columns` [C, R] int32; every name below is a view of one column [R]."""

    stages: Any = None  # what runs in the kernels' place on this state: see paged/simulator
    page_budget: PageBudget | None = None  # set by an allocator that compresses
    status: torch.Tensor
    arrival: torch.Tensor
    arrival_ms: torch.Tensor
    admitted: torch.Tensor
    priority: torch.Tensor
    client: torch.Tensor
    prompt_len: torch.Tensor
    total_len: torch.Tensor
    max_len: torch.Tensor
    min_len: torch.Tensor
    predicted_len: torch.Tensor
    deadline_ms: torch.Tensor
    num_computed_tokens: torch.Tensor
    num_pages: torch.Tensor
    cached_len: torch.Tensor
    idle_hits: torch.Tensor
    num_preemptions: torch.Tensor
    num_published: torch.Tensor
    finish_reason: torch.Tensor
    top_k: torch.Tensor
    num_hashed: torch.Tensor
    parent: torch.Tensor
    parent_arrival: torch.Tensor
    num_forks: torch.Tensor
    logit_edits: torch.Tensor
    forced_len: torch.Tensor
    mask_len: torch.Tensor
    num_logprobs: torch.Tensor
    beam_width: torch.Tensor
    beam_index: torch.Tensor
    early_stopping: torch.Tensor
    num_dropped: torch.Tensor
    num_swapped: torch.Tensor
    num_unsaved: torch.Tensor

    def __init__(self, sizes: Sizes, device: torch.device | str, vocab_size: int = 1) -> None:
        slots, pages = sizes.num_slots, sizes.max_pages_per_seq
        self.sizes = sizes
        self.columns = torch.zeros(col.NUM_COLUMNS, slots, dtype=torch.int32, device=device)
        for index, name in enumerate(col.COLUMN_NAMES):
            setattr(self, name, self.columns[index])
        # Temperature, top-p, min-p, then the repetition, presence and frequency penalties.
        self.sampling = torch.zeros(6, slots, dtype=torch.float32, device=device)
        self.temperature, self.top_p, self.min_p = self.sampling[:3].unbind(0)  # each [R]
        self.seed = torch.zeros(slots, dtype=torch.int64, device=device)
        self.stop_ids = torch.full(
            (slots, col.NUM_STOP_IDS.value), -1, dtype=torch.int32, device=device
        )
        # What requests change of their logits: see logit_edits.py. A bit a token that is allowed.
        self.edits = torch.zeros(slots, WORDS, dtype=torch.int32, device=device)
        self.token_mask = torch.zeros(
            slots, mask_words(vocab_size), dtype=torch.int32, device=device
        )
        self.token_ids = torch.zeros(slots, sizes.max_model_len, dtype=torch.int32, device=device)
        self.block_table = torch.zeros(slots, pages, dtype=torch.int32, device=device)
        # Prefix hash after each full page of the row; written for the prompt by `ingest`.
        self.page_hash = torch.zeros(slots, pages, dtype=torch.int64, device=device)
        # Canonical page of each published page: the row's own, or the equal one found in the table.
        self.canonical = torch.zeros(slots, pages, dtype=torch.int32, device=device)
        # Serial that the last of them had: the row need not hold it, so it may be evicted.
        self.chain_serial = torch.zeros(slots, dtype=torch.int64, device=device)
        # Beam search: sums of log-probabilities, and by the slot of a group's first beam its rows
        # and the best scores of sequences that have ended.
        self.beam_score = torch.zeros(slots, dtype=torch.float32, device=device)
        self.length_penalty = torch.zeros(slots, dtype=torch.float32, device=device)
        group = (slots, col.MAX_BEAM_WIDTH.value)
        self.beam_slots = torch.zeros(group, dtype=torch.int32, device=device)
        self.beam_finished = torch.zeros(group, dtype=torch.float32, device=device)


class PagePool:
    """KV memory by the page: free ring, reference counts, and the prefix table.

    Every page is in exactly one of three states: free (in the ring between head and tail),
    cached (published, `ref_count` 0) or in use (`ref_count` > 0).
    """

    stages: Any = None  # as the request table's

    def __init__(
        self, sizes: Sizes, device: torch.device | str, num_buckets: int | None = None
    ) -> None:
        pages = sizes.num_pages
        self.sizes = sizes
        self.swaps = SwapSpace(sizes, device) if sizes.num_host_pages else None
        # One bucket of 16 ways for each page: a full bucket, or two pages of one step in the same
        # bucket, would keep the rest of a chain from being published.
        self.num_buckets = num_buckets or next_power_of_2(pages)
        entries = self.num_buckets * col.BUCKET_WAYS.value

        def ints(*shape: int, value: int = 0, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self.counters = ints(col.NUM_COUNTERS, dtype=torch.int64)
        self.counters[col.TAIL.value] = pages
        self.counters[[col.TOKEN_LIMIT.value, col.EVICT_LIMIT.value]] = col.NO_LIMIT
        self.free_ring = ints(next_power_of_2(pages))
        self.free_ring[:pages] = torch.arange(pages, dtype=torch.int32, device=device)
        self.ref_count = ints(pages)
        self.last_used = ints(pages)  # step
        self.hits = ints(pages)
        self.born = ints(pages)  # step of publication
        self.depth = ints(pages)  # pages in front of it in its sequence
        self.parent = ints(pages, value=-1)  # canonical page in front, -1 at depth 0
        self.parent_serial = ints(pages, dtype=torch.int64)
        self.serial = ints(pages, dtype=torch.int64)  # unique by publication; 0 = not published
        self.content_hash = ints(pages, dtype=torch.int64)
        self.page_tokens = ints(pages, sizes.page_size)
        self.entry = ints(pages, value=-1)  # where the prefix table names it
        self.table_hash = ints(entries, dtype=torch.int64)
        self.table_page = ints(entries, value=-1)
        self.claims = ints(self.num_buckets, dtype=torch.int64)
        self.publish_arrivals = ints(1)  # of its barrier
        # Scratch of an eviction: scores, a histogram a pass that it leaves at 0, counts a program,
        # and its barrier's arrivals.
        self.score = ints(pages)
        self.evict_histogram = ints(6, 256)
        self.evict_counts = ints(2 * (pages + 1))
        self.evict_arrivals = ints(1, dtype=torch.int64)

    def num_free(self) -> int:
        """Pages in the free ring (reads the device)."""
        head, tail = self.counters[: col.TAIL.value + 1].tolist()
        return tail - head


class StepPlan:
    """Who runs in this step and how many tokens each computes, in service order.

    Per slot [R]: `key`, `order`, `grant`, `admitted`, `slot_sample`. Per sequence of the batch [S]:
    the rest of the middle block. Per token [T]: the model's inputs. Per sampled row [B]: the end.
    With speculation a sequence that draws may have several sampled rows, one behind the other: row
    `slot_sample` for its next token, and one behind each of its draft tokens.
    """

    def __init__(self, sizes: Sizes, device: torch.device | str) -> None:
        slots, seqs, tokens = sizes.num_slots, sizes.max_num_seqs, sizes.max_num_batched_tokens
        samples, drafts = sizes.max_num_samples, sizes.num_draft_tokens
        self.sizes = sizes

        def ints(*shape: int, value: int = 0, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self.key = ints(slots)
        self.order = ints(slots)
        self.grant = ints(slots)
        self.admitted = ints(slots)  # 1 = left the queue in this step
        self.slot_sample = ints(slots, value=-1)  # index among the sampled rows, -1 = none

        self.counts = ints(14)
        self.num_tokens = self.counts[0:1]
        self.num_seqs = self.counts[1:2]
        self.num_samples = self.counts[2:3]
        self.num_published_rows = self.counts[3:4]
        self.num_preempted = self.counts[4:5]
        self.num_admitted = self.counts[5:6]
        self.num_active = self.counts[6:7]
        self.num_events = self.counts[7:8]
        self.num_copies = self.counts[8:9]
        self.num_beam_copies = self.counts[9:10]
        self.num_draft_tokens = self.counts[10:11]  # verified in this step, of all sequences
        self.num_accepted_tokens = self.counts[11:12]
        self.num_swapped_out = self.counts[12:13]  # tokens whose pages went to host memory
        self.num_swapped_in = self.counts[13:14]  # and came back from there
        self.ring_base = ints(1, dtype=torch.int64)  # the free ring's head before this step

        self.seq_slots = ints(seqs)
        self.seq_start = ints(seqs)  # tokens computed before this step
        self.seq_held = ints(seqs)  # pages held before this step, prefix hits included
        self.seq_hits = ints(seqs)  # prefix hits taken by an admission of this step
        self.seq_pages = ints(seqs)  # pages booked
        self.seq_ring = ints(seqs)  # their offset from ring_base
        self.seq_copy = ints(seqs)  # index among the copies of this step, -1 = none
        self.copy_source = ints(seqs)  # pages to copy before the forward, and where to
        self.copy_target = ints(seqs)
        self.cu_seqlens_q = ints(seqs + 1)
        self.seq_lens = ints(seqs)
        self.block_table = ints(seqs, sizes.max_pages_per_seq)
        self.num_drafts = ints(seqs)  # proposed, and then granted
        self.draft_tokens = ints(seqs, drafts)  # that may follow the sequence's last token
        self.num_accepted = ints(slots)  # of the drafts; of slots that drew

        self.input_ids = ints(tokens)
        self.positions = ints(tokens)
        self.slot_mapping = ints(tokens, value=-1, dtype=torch.int64)

        self.sample_slots = ints(samples)
        # The row draws its request's token number `total_len + sample_offsets`; None: all are 0.
        self.sample_offsets = ints(samples) if drafts else None
        self.logits_indices = ints(samples)
        self.sampled_tokens = ints(samples)
        self.sampled_logprobs = torch.zeros(samples, dtype=torch.float32, device=device)
        self.beams = False  # whether the stages of this step look for beams
        self.inputs = True  # whether there is a model, which reads the inputs
        width = col.MAX_BEAM_WIDTH.value + col.NUM_STOP_IDS.value
        self.beam_tokens = ints(samples, width)  # candidates of each sampled row that is a beam
        self.beam_logprobs = torch.zeros(samples, width, dtype=torch.float32, device=device)
        self.beam_source = ints(slots, value=-1)  # slot whose sequence a beam continues, or -1
        self.ended_source = ints(slots, value=-1)  # slot whose sequence ends here, or -1
        self.ended_token = ints(slots)
        self.ended_score = torch.zeros(slots, dtype=torch.float32, device=device)
        self.moved_slots = ints(slots)  # beams that go on with another's sequence
        self.copy_beam_source = ints(slots)  # pages to copy after the choice of beams
        self.copy_beam_target = ints(slots)
        self.published_slots = ints(slots)  # rows with new full pages to publish
        self.release_slots = ints(slots)
