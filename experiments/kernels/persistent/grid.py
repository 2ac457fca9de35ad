"""What programs of one launch do together: a barrier of the whole grid, and asking L2 for weights.

The barrier is two calls, so that a program can ask for what comes next between them: `arrive` says
that its stores are done, `wait` returns when all programs have said so. The counter only grows
within a launch; `leave` sets it back. All programs must be on the device at once.

A wait costs a budget of polls that the whole launch shares: a mistake ends as an error word and
wrong numbers, not as a hang.
"""

import triton
import triton.language as tl


@triton.jit
def arrive(counter_ptr, ENABLED: tl.constexpr):
    """Every store of this program is visible to whoever waits for it."""
    if ENABLED:
        tl.debug_barrier()  # the release of one thread covers what the barrier has ordered before
        tl.inline_asm_elementwise(
            "{ .reg .pred other; .reg .u32 tid; mov.u32 tid, %tid.x; setp.ne.u32 other, tid, 0;"
            " @!other red.release.gpu.global.add.u32 [$1], 1; mov.u32 $0, 0; }",
            "=r,l",
            [counter_ptr.to(tl.int64, bitcast=True)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def wait(counter_ptr, target, polls, ENABLED: tl.constexpr):
    """Return when the counter has reached target or `polls` have been made; how many are left.

    Only the first thread polls: what is left is right in that thread alone.
    """
    if ENABLED:
        polls = tl.inline_asm_elementwise(
            "{ .reg .pred stop; .reg .u32 tid; .reg .s32 seen; mov.u32 $0, $3;"
            " mov.u32 tid, %tid.x; setp.ne.u32 stop, tid, 0; @stop bra DONE;"
            " POLL: ld.acquire.gpu.global.s32 seen, [$1]; setp.ge.s32 stop, seen, $2;"
            " @stop bra DONE; sub.s32 $0, $0, 1; setp.gt.s32 stop, $0, 0; @stop bra POLL;"
            " DONE: }",
            "=&r,l,r,r",
            [counter_ptr.to(tl.int64, bitcast=True), target, polls],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        tl.debug_barrier()
    return polls


@triton.jit
def leave(counter_ptr, polls, epoch, NUM_PROGRAMS: tl.constexpr, ENABLED: tl.constexpr):
    """The last program sets the counters back for the next launch; reports a budget used up.

    counter_ptr [4]: arrivals, programs that left, error, the epoch for the next launch.
    """
    if ENABLED:
        tl.store(counter_ptr + 2, 1, mask=polls <= 0)
        last = tl.atomic_add(counter_ptr + 1, 1, sem="acq_rel", scope="gpu") == NUM_PROGRAMS - 1
        tl.store(counter_ptr, 0, mask=last)
        tl.store(counter_ptr + 1, 0, mask=last)
        tl.store(counter_ptr + 3, epoch, mask=last)


@triton.jit
def prefetch_bytes(ptr, num_bytes, THREADS: tl.constexpr):
    """Ask L2 for num_bytes, a multiple of THREADS / 2, from ptr on: a request a warp.

    Requests of the threads of a warp would go out one by one.
    """
    part = num_bytes // (THREADS // 32)
    thread = tl.arange(0, THREADS)
    address = ptr.to(tl.int64, bitcast=True) + (thread // 32).to(tl.int64) * part
    ask_l2(address, tl.where(thread % 32 == 0, part, 0))


@triton.jit
def ask_l2(address, num_bytes):
    """Ask L2 for num_bytes from each address, [n] int64, of as many threads as the program has."""
    tl.inline_asm_elementwise(
        "{ .reg .pred some; setp.gt.s32 some, $2, 0; mov.u32 $0, 0;"
        " @some cp.async.bulk.prefetch.L2.global [$1], $2; }",
        "=r,l,r",
        [address, num_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def zero(COMPILED: tl.constexpr):
    """0, which the compiler cannot know: what is computed from it stays in the loop over layers.

    Else the offsets of all phases are computed in front of the loop and fill the registers.
    """
    value = 0
    if COMPILED:
        value = tl.inline_asm_elementwise(
            "mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
        value = tl.multiple_of(value, 4096)
    return value
