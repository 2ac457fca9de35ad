"""What a request changes of its logits, as words of its row in `RequestTable.edits`.

A row is WORDS int32: two counts, then three sections.

    0          entries of logit_bias
    1          bad words
    BIAS_IDS   [MAX_BIAS] token ids, each once
    BIAS       [MAX_BIAS] what is added, as bits of float32
    BAD_WORDS  [MAX_BAD_WORDS, BAD_WORD_TOKENS] token ids, ending at the right, -1 in front

The column LOGIT_EDITS says which of them a request has, so that a kernel reads nothing of a row
that asks for nothing.
"""

import triton.language as tl

EDIT_PENALTIES = tl.constexpr(1)
EDIT_BIAS = tl.constexpr(2)
EDIT_BAD_WORDS = tl.constexpr(4)
EDIT_MASK = tl.constexpr(8)  # only the tokens whose bit is set in the row of `token_mask`
EDITS = tl.constexpr(15)  # any of these
EDIT_FORCED = tl.constexpr(16)  # leaves the logits alone; tokens are given up to FORCED_LEN

MAX_BIAS = tl.constexpr(512)
MAX_BAD_WORDS = tl.constexpr(128)
BAD_WORD_TOKENS = tl.constexpr(16)
BIAS_IDS = tl.constexpr(16)
BIAS = tl.constexpr(16 + 512)
BAD_WORDS = tl.constexpr(16 + 1024)
WORDS = 16 + 1024 + 128 * 16

MAX_LOGPROBS = tl.constexpr(20)  # most probable tokens that can be reported beside the drawn one
REPORT_WORDS = 2 * (1 + 20)  # int64 of one row's report, see report_draws.py


def mask_words(vocab_size: int) -> int:
    """int32 words of a mask with a bit a token."""
    return -(-vocab_size // 32)
