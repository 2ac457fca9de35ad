"""The contracts: what the engine asks of a scheduler, an eviction policy, an allocator, an
attention implementation, a sampler and a proposer.

The common policy is one function, given to a ready class: `rank` for a scheduler, `score` for an
eviction policy, `reserve_len` for an allocator, `score` for a sampler, a kernel for attention. The
classes below are the full interfaces, for the rest. Every method runs once a step (attention's
`forward` once a layer), must not synchronise with the device, and must not allocate device memory
after its first call. Shapes use R slots, S sequences of a step, T tokens of a step, N pages, M
pages of a sequence, B sampled rows of a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from paged.kernels.control.budget import PageBudget
from paged.kernels.control.compress import Drops
from paged.state import PagePool, RequestTable, Sizes, StepPlan


class Part:
    """What every interface shares."""

    capturable: bool = True  # False: reads the device on the host, so it cannot be in a CUDA graph


class Scheduler(Part, ABC):
    """Decides who runs in a step and with how many tokens."""

    max_num_seqs: int  # sequences that run at once
    max_num_batched_tokens: int  # tokens of one step
    preemption: str = "recompute"  # or "swap": what preempted rows do with their keys and values

    @abstractmethod
    def schedule(
        self, requests: RequestTable, pool: PagePool, plan: StepPlan, *, capacity: int, reserve
    ) -> None:
        """Fill `plan` from the table and book pages, with at most `capacity` tokens.

        Reads `requests` and `pool`; changes row status, `num_pages`, `num_computed_tokens` and
        `admitted` of the rows it admits or preempts, and the free ring's head. `reserve` is the
        allocator's `reserve_len`. Most policies call `paged.kernels.control.schedule` after
        writing `plan.order`.
        """


class Eviction(Part, ABC):
    """Decides which cached pages go when pages are wanted."""

    @abstractmethod
    def evict(self, pool: PagePool, low_water: int) -> None:
        """Return cached pages to the free ring until `low_water` are free and the shortfall of
        the last schedule is covered, or nothing cached is left. Never touches a held page."""

    def foresee(self, prompts: Iterable[Any], requests: RequestTable) -> None:
        """Told the token ids, lists or arrays of ints, of every prompt of a recorded workload
        before it is replayed, in the order of submission: for upper bounds, which read the future.
        """


class Compression(Part, ABC):
    """Decides which full pages a running request keeps when it holds more than its budget."""

    @abstractmethod
    def budget(self, page_size: int) -> PageBudget:
        """The pages of a row. Raises ValueError if its own protected pages do not fit."""

    @abstractmethod
    def scores(self, requests: RequestTable, drops: Drops, model: "Model") -> None:
        """Write `drops.scores` for entries `sink_pages` to `ends` of the block tables of the first
        `num_rows` rows: the smallest are dropped, of equal ones the oldest.

        A score may depend on nothing but the row's queries, keys and values, so that a row that is
        computed again drops the same."""

    def observe(
        self, attention: "Attention", requests: RequestTable, plan: StepPlan, drops: Drops
    ) -> "Attention":
        """The attention of this step's layers: `attention`, or one around it that takes note of
        what `scores` needs of the queries."""
        return attention


class KVManager(Part, ABC):
    """Owns the page pool: what is found, reserved, published and given back."""

    page_size: int
    num_pages: int | None  # None: as many as memory allows
    memory_fraction: float  # share of the free GPU memory for the pool, where num_pages is None
    pool: PagePool
    reserve_len: Callable | None  # tokens a row holds pages for; None: its computed tokens
    low_water: float  # share of the pages to keep free by eviction
    num_host_pages: int | None = None  # pages in host memory, for preemption by swapping
    compression: Compression | None = None  # drops pages of running requests

    @property
    def takes_beams(self) -> bool:
        """Whether rows can take over each other's pages at any time."""
        return self.reserve_len is None and self.compression is None

    def peak_pages(self, prompt_len: int, max_len: int, sizes: Sizes) -> int:
        """Pages that a request holds at most at one time."""
        if self.compression is not None:
            return self.compression.budget(self.page_size).peak(prompt_len, max_len, self.page_size)
        held = max_len if self.reserve_len is None else sizes.max_model_len
        return -(-held // self.page_size)

    @abstractmethod
    def allocate(self, requests: RequestTable, device: torch.device) -> PagePool:
        """Create the pool; called once, when the engine's sizes are known."""

    @abstractmethod
    def lookup(self, requests: RequestTable) -> None:
        """Write `cached_len`, `idle_hits` and the hit pages of every waiting row, and the status
        of those that wait for their parent's prompt."""

    @abstractmethod
    def reserve(self, requests: RequestTable, plan: StepPlan) -> None:
        """Carry out the bookings of `plan`; write block tables, the pages to copy and the model's
        inputs."""

    @abstractmethod
    def commit(self, requests: RequestTable, plan: StepPlan) -> None:
        """Make the full pages of rows that drew a token findable."""

    def observe(
        self, attention: "Attention", requests: RequestTable, plan: StepPlan
    ) -> "Attention":
        """The attention of this step's layers, as `Compression.observe` has it."""
        return attention

    def compress(self, requests: RequestTable, model: "Model") -> None:
        """Drop pages of running rows that are over their budget."""

    @abstractmethod
    def release(self, requests: RequestTable, plan: StepPlan, events) -> None:
        """Take back the pages of finished and preempted rows, and close the step."""

    @abstractmethod
    def memory_split(
        self,
        requests: RequestTable,
        counters: torch.Tensor | None = None,
        ends: torch.Tensor | None = None,
    ) -> dict[str, int]:
        """Slots of KV memory by use between two steps: token_states, reserved, internal_waste,
        external_waste, cached and free, which make up the pool (reads the device; for
        experiments).

        Args:
            requests: the table, or what a snapshot holds of it: `sizes`, `columns` and their names.
            counters: the pool's of the same moment; None: as they are now.
            ends: [R] int32 tokens that the running rows go on to have; None: their `max_len`.
        """

    @abstractmethod
    def check(self, requests: RequestTable) -> None:
        """Raise AssertionError unless every invariant holds (reads the device; for tests)."""


@dataclass(frozen=True)
class AttentionSpec:
    """What one layer computes: shapes and variants, all known at compile time."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    softmax_scale: float
    sliding_window: int | None = None  # a query sees keys less than this far behind it
    logit_softcap: float | None = None  # scores become cap * tanh(score / cap)
    alibi: bool = False  # linear biases by head (Press et al., 2022)


@dataclass(frozen=True)
class AttentionMeta:
    """The batch of one step. Tensors are the plan's: their contents change, they do not."""

    block_table: torch.Tensor  # [S, M] int32, a row a sequence
    cu_seqlens_q: torch.Tensor  # [S + 1] int32
    seq_lens: torch.Tensor  # [S] int32, keys including this step's
    num_seqs: torch.Tensor  # [1] int32
    num_tokens: torch.Tensor  # [1] int32
    page_size: int
    max_num_tokens: int  # capacity of this step's buffers, known on the host
    max_seq_len: int  # bound of seq_lens, known on the host


class Attention(Part, ABC):
    """Attention over paged keys and values."""

    def plan(self, meta: AttentionMeta) -> None:
        """Called once a step, before the first layer."""

    @abstractmethod
    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv_cache: tuple[torch.Tensor, torch.Tensor],
        meta: AttentionMeta,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Causal attention of this step's queries over all keys of their sequences.

        Args:
            q: [T, num_heads, head_dim]; tokens may be strided, the last dimension is contiguous.
            k, v: [T, num_kv_heads, head_dim], this step's; they are in the cache already.
            kv_cache: keys and values, each [N, num_kv_heads, page_size, head_dim].
            out: [T, num_heads, head_dim], written for the live tokens; also returned.
        """


class Sampler(Part, ABC):
    """Draws a token for every sampled row."""

    @abstractmethod
    def sample(self, logits: torch.Tensor, requests: RequestTable, plan: StepPlan) -> None:
        """Draw from `logits` [B, vocab] float32, row i for slot `plan.sample_slots[i]`; B is the
        step's capacity of sampled rows.

        The token drawn is the request's number `total_len`, plus `plan.sample_offsets[i]` where
        that is not None: with speculation a request has several rows. A draw must depend on the
        request, that number and the row's logits only.
        Writes `plan.sampled_tokens` [B] int32 and `plan.sampled_logprobs` [B] float32 (of the raw
        distribution) for the first `plan.num_samples` rows. A row whose logits hold NaN draws -1.
        """


class Proposer(Part, ABC):
    """Guesses the next tokens of sequences; the model then verifies them in one step.

    A guess costs time when it is wrong, and changes no output: see kernels/control/drafts.py.
    """

    num_draft_tokens: int  # K: proposed for a sequence in one step at most, 0 = no speculation

    @abstractmethod
    def propose(self, requests: RequestTable, plan: StepPlan) -> None:
        """Write draft tokens for the sequences of a step, before its model runs.

        Sequence i of the first `plan.num_seqs` is that of slot s = `plan.seq_slots[i]`. It draws in
        this step if `plan.slot_sample[s]` >= 0, and its tokens so far are the first
        `requests.total_len[s]` of `requests.token_ids[s]`. Writes `plan.num_drafts` [S] int32, from
        0 to K, and so many tokens of the vocabulary to `plan.draft_tokens[i]` [K] int32. The engine
        takes what fits the step and ignores the rest.
        """


class LogitsProcessor(Part, ABC):
    """Changes the logits of every request before the sampler sees them."""

    @abstractmethod
    def process(self, logits: torch.Tensor, requests: RequestTable, plan: StepPlan) -> None:
        """Change `logits` [B, vocab] float32 in place, row i for slot `plan.sample_slots[i]`; rows
        from `plan.num_samples` on hold anything."""


class Model(Protocol):
    """What the step needs of a model; `paged.models.decoder.Decoder` is one."""

    pages: torch.Tensor  # [planes, N, elements of a page]: all it keeps of each page's tokens
    head_dim: int  # of keys and values; planes are keys and values of each layer in turn

    def forward(
        self, plan: StepPlan, meta: AttentionMeta, attention: Attention, capacity: int
    ) -> torch.Tensor:
        """Logits [min(B, capacity), vocab] float32 of the rows `plan.logits_indices`.

        Writes this step's keys and values, and calls `attention.plan` before its first layer.
        """
