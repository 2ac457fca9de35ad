"""What drive.py keeps of a simulated run on the device, and the numbers of its words."""

from typing import NamedTuple

import torch
import triton.language as tl

from paged.kernels.control.columns import NO_LIMIT
from paged.kernels.control.release import HEADER_FIELDS

# Drive.state, int64
NOW = tl.constexpr(0)  # virtual clock, ns
IDLE_SINCE = tl.constexpr(1)  # when the last step that was heard of ended, ns
ENTERED = tl.constexpr(2)  # requests that got a slot, in order
ENDED = tl.constexpr(3)  # requests
NUM_FREE = tl.constexpr(4)  # free slots
NEXT_TURN = tl.constexpr(5)  # requests that ever began to wait
BLOCKED = tl.constexpr(6)  # 1: the last step had room for waiting requests and took none
FREE_PAGES = tl.constexpr(7)  # after the last step that was heard of
WANTED_PAGES = tl.constexpr(8)  # its shortfall
WRITTEN = tl.constexpr(9)  # prompt tokens ever sent
CONSUMED = tl.constexpr(10)  # of those, tokens whose step has been heard of
NUM_REQUESTS = tl.constexpr(11)
NUM_STEPS = tl.constexpr(12)  # steps heard of
NUM_STATE = 13

# Drive.flights, int64
LAUNCHED = tl.constexpr(0)  # ns
CAPACITY = tl.constexpr(1)
PROMPT_TOKENS = tl.constexpr(2)
SENT = tl.constexpr(3)  # WRITTEN after the step's commands
FLIGHT_WORDS = tl.constexpr(4)

# Rows of Drive.ledger, int32
REQUEST = tl.constexpr(0)
PHASE = tl.constexpr(1)  # as far as the host would have heard
TO_PREFILL = tl.constexpr(2)
LENGTH = tl.constexpr(3)  # prompt and the tokens heard of
TURN = tl.constexpr(4)  # when it began to wait, by order
PREFILLING = tl.constexpr(5)
FREE_SLOTS = tl.constexpr(6)  # a stack
HEARD = tl.constexpr(7)  # scratch: value + 1 of a slot's event of each of the four kinds
LEDGER_ROWS = 11
NOBODY, WAITS, RUNS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

# Words of an outcome, int64; times in ns, -1 = not yet
QUEUED = tl.constexpr(0)  # start of the first step that it was admitted to
FIRST_TOKEN = tl.constexpr(1)
LAST_TOKEN = tl.constexpr(2)
NUM_TOKENS = tl.constexpr(3)
CACHED_TOKENS = tl.constexpr(4)
PREEMPTIONS = tl.constexpr(5)
DROPPED_TOKENS = tl.constexpr(6)  # by a preemption that no admission has followed yet
REASON = tl.constexpr(7)  # how it ended
OUTCOME_WORDS = tl.constexpr(8)

# Words of a step in the log, int64, behind its header's
NUM_FIELDS = tl.constexpr(len(HEADER_FIELDS))
BEGIN = tl.constexpr(len(HEADER_FIELDS))  # ns
DURATION = tl.constexpr(len(HEADER_FIELDS) + 1)  # ns
CACHED = tl.constexpr(len(HEADER_FIELDS) + 2)
DROPPED = tl.constexpr(len(HEADER_FIELDS) + 3)
RECOMPUTED = tl.constexpr(len(HEADER_FIELDS) + 4)
SPLIT = tl.constexpr(len(HEADER_FIELDS) + 5)  # slots of KV memory after it, as `memory_split` has
LOG_WORDS = len(HEADER_FIELDS) + 11
COST_WORDS = tl.constexpr(5)
LOW_48 = tl.constexpr((1 << 48) - 1)
UNBOUND = tl.constexpr(NO_LIMIT)


class Drive(NamedTuple):
    """A run on its way; N requests in order of arrival."""

    arrivals: torch.Tensor  # [N] int64, ns
    lengths: torch.Tensor  # [N] int32, tokens to send: the prompt and the answer
    script: torch.Tensor  # [N, COMMAND_WORDS] int64, submissions but for their slots
    outcomes: torch.Tensor  # [N, OUTCOME_WORDS] int64
    state: torch.Tensor  # [NUM_STATE] int64
    flights: torch.Tensor  # [depth, FLIGHT_WORDS] int64, a ring
    ledger: torch.Tensor  # [LEDGER_ROWS, R] int32
    log: torch.Tensor  # [L, LOG_WORDS] int64, a ring of steps; L is a power of two
    cost: torch.Tensor  # [C, COST_WORDS] int64: free tokens; fs of a step, token, sequence, key
    capacities: torch.Tensor  # [C] int64, ascending
