"""The columns of the device tables, and the named views of a row that policies see.

`RequestTable.columns` is one int32 matrix [NUM_COLUMNS, R]; a kernel takes its base pointer and
reads column c of slot s at `c * R + s`. The numbers below are the only place that fixes the order.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

STATUS = tl.constexpr(0)  # FREE, WAITING, RUNNING, FINISHED, PREEMPTED or FORKING
ARRIVAL = tl.constexpr(1)  # ticket of submission: unique, increasing
ARRIVAL_MS = tl.constexpr(2)  # engine clock at submission
ADMITTED = tl.constexpr(3)  # ticket of the last admission; 0 = no batch has had the row yet
PRIORITY = tl.constexpr(4)  # smaller is served first
CLIENT = tl.constexpr(5)  # tenant, for fair policies
PROMPT_LEN = tl.constexpr(6)
TOTAL_LEN = tl.constexpr(7)  # tokens known: prompt and output so far
MAX_LEN = tl.constexpr(8)  # tokens at which the request ends
MIN_LEN = tl.constexpr(9)  # stop tokens cannot be drawn before this length
PREDICTED_LEN = tl.constexpr(10)  # tokens the request is expected to end with
DEADLINE_MS = tl.constexpr(11)  # engine clock of the objective
NUM_COMPUTED = tl.constexpr(12)  # tokens with KV in the cache
NUM_PAGES = tl.constexpr(13)  # pages held: live entries of the block table's row
CACHED_LEN = tl.constexpr(14)  # tokens of the longest cached prefix, at the last lookup
IDLE_HITS = tl.constexpr(15)  # pages of that prefix that nobody holds
NUM_PREEMPTIONS = tl.constexpr(16)
NUM_PUBLISHED = tl.constexpr(17)  # leading pages settled in the prefix table
FINISH_REASON = tl.constexpr(18)
TOP_K = tl.constexpr(19)
NUM_HASHED = tl.constexpr(20)  # leading pages whose prefix hash is known
PARENT = tl.constexpr(21)  # slot + 1 of the row whose prompt this one shares, 0 = none
PARENT_ARRIVAL = tl.constexpr(22)  # that row's ticket: the slot may be another's by now
NUM_FORKS = tl.constexpr(23)  # rows that share this one's prompt
LOGIT_EDITS = tl.constexpr(24)  # what the request changes of its logits, see logit_edits.py
FORCED_LEN = tl.constexpr(25)  # tokens that are given: the row's token_ids hold them in advance
MASK_LEN = tl.constexpr(26)  # length that the row's token mask is for; 0 = any
NUM_LOGPROBS = tl.constexpr(27)  # most probable tokens to report
BEAM_WIDTH = tl.constexpr(28)  # beams of the row's group, 0 = the row is no beam
BEAM_INDEX = tl.constexpr(29)  # which of them this row is
EARLY_STOPPING = tl.constexpr(30)  # 1: the group ends with its first `width` finished sequences
NUM_DROPPED = tl.constexpr(31)  # full pages that compression has taken out of the block table
NUM_SWAPPED = tl.constexpr(32)  # tokens that host pages bring back, 0 = none: see swap.py
NUM_UNSAVED = tl.constexpr(33)  # leading pages that others held: in no host page
NUM_COLUMNS = 34

COLUMN_NAMES = (
    "status", "arrival", "arrival_ms", "admitted", "priority", "client", "prompt_len",
    "total_len", "max_len", "min_len", "predicted_len", "deadline_ms", "num_computed_tokens",
    "num_pages", "cached_len", "idle_hits", "num_preemptions", "num_published",
    "finish_reason", "top_k", "num_hashed", "parent", "parent_arrival", "num_forks",
    "logit_edits", "forced_len", "mask_len", "num_logprobs", "beam_width", "beam_index",
    "early_stopping", "num_dropped", "num_swapped", "num_unsaved",
)  # fmt: skip

# status
FREE = tl.constexpr(0)
WAITING = tl.constexpr(1)
RUNNING = tl.constexpr(2)
FINISHED = tl.constexpr(3)  # until `release` has taken its pages
PREEMPTED = tl.constexpr(4)  # until `release` has taken its pages; then waiting again
FORKING = tl.constexpr(5)  # until its parent has computed the prompt; then waiting

# finish_reason
REASON_STOP = tl.constexpr(1)
REASON_LENGTH = tl.constexpr(2)
REASON_ABORT = tl.constexpr(3)
REASON_ERROR = tl.constexpr(4)

# PagePool.counters, int64
HEAD = tl.constexpr(0)  # pages ever taken from the free ring
TAIL = tl.constexpr(1)  # pages ever returned to it
NUM_CACHED = tl.constexpr(2)  # published pages nobody holds
STEP = tl.constexpr(3)
NOW_MS = tl.constexpr(4)
TICKET = tl.constexpr(5)  # admissions ever made
SHORTFALL = tl.constexpr(6)  # pages the last schedule wanted beyond the free ones
# Limits beside the host's, for who drives the steps from the device (drive.py).
TOKEN_LIMIT = tl.constexpr(7)  # tokens of a step
EVICT_LIMIT = tl.constexpr(8)  # pages of an eviction
NUM_COUNTERS = 9
NO_LIMIT = 2**62

BUCKET_WAYS = tl.constexpr(16)  # entries of one bucket of the prefix table
NUM_STOP_IDS = tl.constexpr(8)  # stop token ids a request can have
MAX_BEAM_WIDTH = tl.constexpr(16)  # a power of two


class Row(NamedTuple):
    """A request, as `rank` sees it: a lane of every int32 column it may decide by."""

    running: Any
    arrival: Any
    arrival_ms: Any
    admitted: Any
    priority: Any
    client: Any
    prompt_len: Any
    total_len: Any
    max_len: Any
    predicted_len: Any
    deadline_ms: Any
    num_computed_tokens: Any
    num_pages: Any
    cached_len: Any
    num_preemptions: Any


class Page(NamedTuple):
    """A cached page, as `score` sees it; int32 lanes. Times are steps."""

    last_used: Any
    hits: Any
    born: Any
    depth: Any


class Now(NamedTuple):
    """The engine's clock: the step, and milliseconds since the engine started. int32 scalars."""

    step: Any
    ms: Any


@triton.jit
def load_row(columns, slot, mask, R: tl.constexpr):
    return Row(
        running=(tl.load(columns + STATUS * R + slot, mask=mask, other=0) == RUNNING).to(tl.int32),
        arrival=tl.load(columns + ARRIVAL * R + slot, mask=mask, other=0),
        arrival_ms=tl.load(columns + ARRIVAL_MS * R + slot, mask=mask, other=0),
        admitted=tl.load(columns + ADMITTED * R + slot, mask=mask, other=0),
        priority=tl.load(columns + PRIORITY * R + slot, mask=mask, other=0),
        client=tl.load(columns + CLIENT * R + slot, mask=mask, other=0),
        prompt_len=tl.load(columns + PROMPT_LEN * R + slot, mask=mask, other=0),
        total_len=tl.load(columns + TOTAL_LEN * R + slot, mask=mask, other=0),
        max_len=tl.load(columns + MAX_LEN * R + slot, mask=mask, other=0),
        predicted_len=tl.load(columns + PREDICTED_LEN * R + slot, mask=mask, other=0),
        deadline_ms=tl.load(columns + DEADLINE_MS * R + slot, mask=mask, other=0),
        num_computed_tokens=tl.load(columns + NUM_COMPUTED * R + slot, mask=mask, other=0),
        num_pages=tl.load(columns + NUM_PAGES * R + slot, mask=mask, other=0),
        cached_len=tl.load(columns + CACHED_LEN * R + slot, mask=mask, other=0),
        num_preemptions=tl.load(columns + NUM_PREEMPTIONS * R + slot, mask=mask, other=0),
    )


@triton.jit
def load_now(counters):
    return Now(
        step=tl.load(counters + STEP).to(tl.int32), ms=tl.load(counters + NOW_MS).to(tl.int32)
    )
