"""Apply a researcher's elementwise function to the logits, in place.

    logit = function(logit, token_id, row)

`function` is a @triton.jit function, inlined: logit [BLOCK] fp32, token_id [BLOCK] int32, and `row`
the request as a scheduling policy sees it, int32 scalars (`columns.Row`). Grid [blocks of the
vocabulary, B]; rows from num_rows on are left alone. Everything contiguous.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.control.columns import COLUMN_NAMES, TOTAL_LEN, Row, load_row
from paged.kernels.launch import check_tensor, interpreted, is_kernel_function, pdl


@triton.jit
def _map_logits_kernel(
    logits_ptr, slots_ptr, num_rows_ptr, columns, vocab_size,
    FUNCTION: tl.constexpr, R: tl.constexpr, BLOCK_V: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(1)
    if row >= tl.load(num_rows_ptr):
        return
    slot = tl.load(slots_ptr + row)
    ids = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    at = logits_ptr + row.to(tl.int64) * vocab_size + ids
    logits = tl.load(at, mask=ids < vocab_size, other=float("-inf"))
    changed = FUNCTION(logits, ids, load_row(columns, slot, slot >= 0, R))
    tl.store(at, changed.to(tl.float32), mask=ids < vocab_size)


def map_logits(
    logits: torch.Tensor,
    slots: torch.Tensor,
    num_rows: torch.Tensor,
    columns: torch.Tensor,
    function,
) -> None:
    """Change the first num_rows rows of logits [B, V] fp32; slots [B] int32, num_rows [1] int32 and
    the request table's columns [C, R] int32. ValueError if something is not as said."""
    check_tensor("logits", logits, (None, None), torch.float32)
    rows, vocab_size = logits.shape
    check_tensor("slots", slots, (rows,), torch.int32)
    check_tensor("num_rows", num_rows, (1,), torch.int32)
    check_tensor("columns", columns, (len(COLUMN_NAMES), None), torch.int32)
    if not is_kernel_function(function):
        raise ValueError(f"function must be a @triton.jit function, got {function!r}")
    if rows == 0:
        return
    block = min(triton.next_power_of_2(vocab_size), 16384 if interpreted() else 2048)
    _map_logits_kernel[(triton.cdiv(vocab_size, block), rows)](
        logits, slots, num_rows, columns, vocab_size,
        FUNCTION=function, R=columns.shape[1], BLOCK_V=block, **pdl(),
    )  # fmt: skip


def map_logits_ref(logits, slots, num_rows, columns, function) -> torch.Tensor:
    """The changed logits [B, V], row by row, by the plain arithmetic that `function` wraps."""
    changed, ids = logits.clone(), torch.arange(logits.shape[1], device=logits.device)
    named = dict(zip(COLUMN_NAMES, columns))
    for index in range(int(num_rows)):
        values = {name: named[name][int(slots[index])] for name in Row._fields if name in named}
        row = Row(running=(named["status"][int(slots[index])] == 2).int(), **values)
        changed[index] = function.fn(logits[index], ids, row)
    return changed


@triton.jit
def _sink_by_length(logit, token_id, row):
    return logit - 0.125 * row.total_len * (token_id % 3)


def map_logits_inputs(device="cpu", dtype=torch.float32, rows=5, vocab_size=300):
    generator = torch.Generator().manual_seed(0)
    columns = torch.zeros(len(COLUMN_NAMES), rows, dtype=torch.int32, device=device)
    columns[TOTAL_LEN.value] = torch.arange(rows, device=device)
    return {
        "logits": torch.randn(rows, vocab_size, generator=generator).to(dtype).float().to(device),
        "slots": torch.arange(rows, dtype=torch.int32, device=device).flip(0),
        "num_rows": torch.tensor([rows], dtype=torch.int32, device=device),
        "columns": columns,
        "function": _sink_by_length,
    }
