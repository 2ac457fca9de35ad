"""Values that carry the number of their round: who reads them needs no barrier.

A word of 64 bits holds a value, as float32, in its low half and an epoch in its high half, and is
written at once. A reader polls the words it needs until they have the epoch it expects: the load of
the data is the wait (the "low latency" protocol of NCCL). Nothing else that the writer wrote is
promised to be visible. A reader gives up after some 10 ms, with a wrong value.

In the interpreter, where nothing is written meanwhile, a word of another epoch reads as NaN.
"""

import triton
import triton.language as tl


@triton.jit
def put_words(word_ptrs, value, epoch, mask):
    """Write value, in any float type, as words [...] int64."""
    low = value.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    tl.store(word_ptrs, (epoch.to(tl.int64) << 32) | low, mask=mask)


@triton.jit
def get_words(word_ptrs, zeros, epoch, COMPILED: tl.constexpr):
    """Values [...] float32 of words once all have the epoch.

    zeros [...] int32, read from memory: Triton repeats an assembly statement in every layout that a
    use would like, but not a load, so this makes it poll once. A thread must have 4 words or a
    multiple; it asks for 4 together.
    """
    if not COMPILED:
        words = tl.load(word_ptrs + zeros)
        value = (words & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
        value = tl.where((words >> 32) == epoch, value, float("nan"))
    else:
        value = tl.inline_asm_elementwise(
            "{ .reg .pred old, more; .reg .b32 r0, r1, r2, r3; .reg .b64 w0, w1, w2, w3;"
            " .reg .s32 left; mov.s32 left, 20000;"
            " POLL: ld.relaxed.gpu.global.b64 w0, [$4]; ld.relaxed.gpu.global.b64 w1, [$5];"
            " ld.relaxed.gpu.global.b64 w2, [$6]; ld.relaxed.gpu.global.b64 w3, [$7];"
            " mov.b64 {$0, r0}, w0; mov.b64 {$1, r1}, w1;"
            " mov.b64 {$2, r2}, w2; mov.b64 {$3, r3}, w3;"
            " setp.ne.b32 old, r0, $8; setp.ne.or.b32 old, r1, $8, old;"
            " setp.ne.or.b32 old, r2, $8, old; setp.ne.or.b32 old, r3, $8, old;"
            " sub.s32 left, left, 1; setp.gt.and.s32 more, left, 0, old; @more bra POLL; }",
            "=&r,=&r,=&r,=&r,l,l,l,l,r,r,r,r",
            [(word_ptrs + zeros).to(tl.int64, bitcast=True), epoch],
            dtype=tl.int32,
            is_pure=False,
            pack=4,
        ).to(tl.float32, bitcast=True)
    return value
