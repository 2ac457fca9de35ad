"""draw_known: every sampled row draws the token that its `token_ids` hold in advance.

    sampled_tokens[i] = token_ids[slot_i, total_len of slot_i], slot_i = sample_slots[i]

The sampler's place in a step without a model. One program, a lane a sampled row; rows from
`plan.num_samples` on are left alone, and so are log-probabilities.
"""

import triton
import triton.language as tl

from paged.kernels.control.columns import TOTAL_LEN
from paged.kernels.control.stage import stage
from paged.kernels.launch import pdl


@triton.jit
def _draw_known_kernel(
    columns, token_ids, sample_slots, num_samples, sampled_tokens,
    R: tl.constexpr, MAX_LEN_TOKENS: tl.constexpr, LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.arange(0, LANES)
    live = row < tl.load(num_samples)
    slot = tl.load(sample_slots + row, mask=live, other=0)
    total = tl.load(columns + TOTAL_LEN * R + slot, mask=live, other=0)
    known = token_ids + slot.to(tl.int64) * MAX_LEN_TOKENS + total
    tl.store(sampled_tokens + row, tl.load(known, mask=live, other=0), mask=live)


@stage
def draw_known(requests, plan) -> None:
    """Write `plan.sampled_tokens` of the step's sampled rows."""
    sizes = requests.sizes
    _draw_known_kernel[(1,)](
        requests.columns, requests.token_ids, plan.sample_slots, plan.num_samples,
        plan.sampled_tokens,
        R=sizes.num_slots, MAX_LEN_TOKENS=sizes.max_model_len,
        LANES=triton.next_power_of_2(sizes.max_num_samples), **pdl(),
    )  # fmt: skip


def draw_known_ref(requests, plan) -> None:
    """The same, row by row."""
    for row, slot in enumerate(plan.sample_slots[: int(plan.num_samples)].tolist()):
        plan.sampled_tokens[row] = requests.token_ids[slot, int(requests.total_len[slot])]
