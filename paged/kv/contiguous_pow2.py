"""Room for the answer rounded up to a power of two: "Orca (Pow2)" of Kwon et al., SOSP 2023.

It supposes that the server knows the answer's length up to a factor of two. In the replay of a
recorded workload `max_len` is where the request ends, so the next power of two is what it guessed.
"""

import triton

from paged.kv.buddy import ContiguousKV, round_up
from paged.state import next_power_of_2


@triton.jit
def reserve_len(prompt_len, total_len, max_len):
    return round_up(prompt_len + round_up(max_len - prompt_len))


class ContiguousPow2(ContiguousKV):
    """Takes the keys of `PagedKV` by name."""

    def __init__(self, **knobs) -> None:
        super().__init__(reserve_len, **knobs)

    def asked_len(self, prompt_len: int, max_len: int) -> int:
        return prompt_len + next_power_of_2(max_len - prompt_len)
