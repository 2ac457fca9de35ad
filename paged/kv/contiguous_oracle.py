"""Room for exactly the answer: "Orca (Oracle)" of Kwon et al., SOSP 2023.

No server knows an answer's length; in the replay of a recorded workload `max_len` is where the
request ends. What is left of the waste is the buddy system's.
"""

import triton

from paged.kv.buddy import ContiguousKV, round_up


@triton.jit
def reserve_len(prompt_len, total_len, max_len):
    return round_up(max_len)


class ContiguousOracle(ContiguousKV):
    """Takes the keys of `PagedKV` by name."""

    def __init__(self, **knobs) -> None:
        super().__init__(reserve_len, **knobs)

    def asked_len(self, prompt_len: int, max_len: int) -> int:
        return max_len
