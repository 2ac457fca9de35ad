"""How fast can all programs give each other 1,024 values? Three ways, in a launch of many rounds.

Each round every program writes 1,024 / NUM_PROGRAMS values and reads all 1,024, whose sum goes into
the values of the next round:

    counter   the barrier of `grid`: release, one counter, acquire; then the values are read
    flags     a counter of its own for each program; a thread of every program polls each
    words     no barrier: the values of `words`

Buffers alternate: who writes round r has read all of round r - 1,
which others wrote when they had read round r - 2, so nobody still needs what it overwrites.
"""

import torch
import triton
import triton.language as tl
from grid import arrive, leave, wait
from words import get_words, put_words

WIDTH = 1024
WAYS = ("counter", "flags", "words")


@triton.jit
def arrive_flag(flag_ptr, round):
    """Set the program's flag to the round, behind all its stores."""
    tl.debug_barrier()
    tl.inline_asm_elementwise(
        "{ .reg .pred other; .reg .u32 tid; mov.u32 tid, %tid.x; setp.ne.u32 other, tid, 0;"
        " @!other st.release.gpu.global.s32 [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [flag_ptr.to(tl.int64, bitcast=True), round],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def wait_flags(flag_ptr, round, polls, NUM_PROGRAMS: tl.constexpr):
    """Thread t returns when program t has set its flag, or `polls` have been made."""
    polls = tl.inline_asm_elementwise(
        "{ .reg .pred stop; .reg .u32 tid; .reg .s32 seen; .reg .u64 address; mov.u32 $0, $3;"
        " mov.u32 tid, %tid.x; setp.ge.u32 stop, tid, $4; @stop bra DONE;"
        " mad.wide.u32 address, tid, 4, $1;"
        " POLL: ld.acquire.gpu.global.s32 seen, [address]; setp.ge.s32 stop, seen, $2;"
        " @stop bra DONE; sub.s32 $0, $0, 1; setp.gt.s32 stop, $0, 0; @stop bra POLL;"
        " DONE: }",
        "=&r,l,r,r,r",
        [flag_ptr.to(tl.int64, bitcast=True), round, polls, NUM_PROGRAMS],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.debug_barrier()
    return polls


@triton.jit(do_not_specialize=["first_round", "num_rounds", "polls"])
def exchange_kernel(
    values_ptr, words_ptr, flags_ptr, counter_ptr, sums_ptr, zeros_ptr, first_round, num_rounds,
    polls, WAY: tl.constexpr, NUM_PROGRAMS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """values [2, WIDTH] float32, words [2, WIDTH] int64, flags [NUM_PROGRAMS], sums [rounds]."""
    OWN: tl.constexpr = WIDTH // NUM_PROGRAMS
    pid = tl.program_id(0)
    own = pid * OWN + tl.arange(0, OWN)
    column = tl.arange(0, WIDTH)
    zeros = tl.load(zeros_ptr + column)
    total = 1.0
    for i in range(num_rounds):
        round = first_round + i + 1
        buffer = round % 2 * WIDTH
        value = (own + 1).to(tl.float32) * total
        if WAY == "words":
            put_words(words_ptr + buffer + own, value, round, own < WIDTH)
            x = get_words(words_ptr + buffer + column, zeros, round, True)
        else:
            tl.store(values_ptr + buffer + own, value)
            if WAY == "counter":
                arrive(counter_ptr, True)
                polls = wait(counter_ptr, (i + 1) * NUM_PROGRAMS, polls, True)
            else:
                arrive_flag(flags_ptr + pid, round)
                polls = wait_flags(flags_ptr, round, polls, NUM_PROGRAMS)
            x = tl.load(values_ptr + buffer + column, cache_modifier=".cg")
        total = tl.sum(x, axis=0) * (2.0 / (WIDTH * (WIDTH + 1.0)))
        total = total * 1.01
        if pid == NUM_PROGRAMS - 1:
            tl.store(sums_ptr + i, total)
    leave(counter_ptr, polls, 0, NUM_PROGRAMS, WAY == "counter")


class Exchange:
    """The buffers of one way."""

    def __init__(self, way: str, num_rounds: int, num_programs: int = 128) -> None:
        self.way, self.num_rounds, self.num_programs = way, num_rounds, num_programs
        self.values = torch.zeros(2, WIDTH, device="cuda")
        self.words = torch.zeros(2, WIDTH, dtype=torch.int64, device="cuda")
        self.flags = torch.zeros(num_programs, dtype=torch.int32, device="cuda")
        self.counter = torch.zeros(4, dtype=torch.int32, device="cuda")
        self.sums = torch.zeros(num_rounds, device="cuda")
        self.zeros = torch.zeros(WIDTH, dtype=torch.int32, device="cuda")
        self.launches = 0

    def launch(self) -> None:
        exchange_kernel[(self.num_programs,)](
            self.values, self.words, self.flags, self.counter, self.sums, self.zeros,
            self.launches * self.num_rounds, self.num_rounds, 200_000, WAY=self.way,
            NUM_PROGRAMS=self.num_programs, WIDTH=WIDTH, num_warps=8,
        )  # fmt: skip
        self.launches += 1

    def error(self) -> float:
        """The largest relative error of the last launch's sums."""
        wanted = 1.01 ** torch.arange(1, self.num_rounds + 1, dtype=torch.float64)
        return ((self.sums.cpu().double() - wanted) / wanted).abs().max().item()
