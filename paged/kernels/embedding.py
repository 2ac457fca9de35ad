"""Token embedding: out[t] = scale * weight[ids[t]] (+ position_weight[positions[t] + offset]).

Grid: (capacity / BLOCK_T,), a program holds whole rows. All tensors contiguous. The sum is fp32,
rounded once. An id or a position outside its table reads as a row of zeros, never as foreign
memory; that is also what a vocabulary split over ranks needs before its all-reduce.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, pdl, rows_per_program

EMBEDDING_VARIANTS = ({"learned_positions": True},)


@triton.jit
def _embedding_kernel(
    ids_ptr,
    weight_ptr,
    positions_ptr,
    position_weight_ptr,
    out_ptr,
    num_tokens_ptr,
    vocab_size,
    hidden_size,
    num_positions,
    position_offset,
    scale,
    HAS_POSITIONS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        # in this order: the kernels after this one read the plan before they wait
        tl.extra.cuda.gdc_launch_dependents()
    num_tokens = tl.load(num_tokens_ptr)
    if tl.program_id(0) * BLOCK_T >= num_tokens:
        return
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, BLOCK_H)
    live = token < num_tokens
    in_row = (column < hidden_size)[None, :]

    ids = tl.load(ids_ptr + token, mask=live, other=-1).to(tl.int64)
    known = (ids >= 0) & (ids < vocab_size)
    weight_ptrs = weight_ptr + ids[:, None] * hidden_size + column[None, :]
    rows = tl.load(weight_ptrs, mask=known[:, None] & in_row, other=0.0).to(tl.float32) * scale
    if HAS_POSITIONS:
        position = tl.load(positions_ptr + token, mask=live, other=0).to(tl.int64)
        position += position_offset
        known = live & (position >= 0) & (position < num_positions)
        position_ptrs = position_weight_ptr + position[:, None] * hidden_size + column[None, :]
        rows += tl.load(position_ptrs, mask=known[:, None] & in_row, other=0.0).to(tl.float32)

    out_ptrs = out_ptr + token.to(tl.int64)[:, None] * hidden_size + column[None, :]
    tl.store(out_ptrs, rows.to(out_ptr.dtype.element_ty), mask=live[:, None] & in_row)


def embedding(
    ids: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    positions: torch.Tensor | None = None,
    position_weight: torch.Tensor | None = None,
    position_offset: int = 0,
    scale: float = 1.0,
) -> None:
    """Write the embeddings of the first `num_tokens` ids into `out`.

    ids [T] int32; weight [V, H]; num_tokens [1] int32; out [T, H]; for learned positions also
    positions [T] int32 and position_weight [P, H]. Raises ValueError on a wrong shape or dtype.
    """
    check_tensor("weight", weight, (None, None))
    vocab_size, hidden_size = weight.shape
    check_tensor("ids", ids, (None,), torch.int32)
    capacity = ids.shape[0]
    check_tensor("num_tokens", num_tokens, (1,), torch.int32)
    check_tensor("out", out, (capacity, hidden_size), weight.dtype)
    if (positions is None) != (position_weight is None):
        raise ValueError("positions and position_weight must be given together, got only one")
    if positions is not None:
        check_tensor("positions", positions, (capacity,), torch.int32)
        check_tensor("position_weight", position_weight, (None, hidden_size), weight.dtype)
    block_h = triton.next_power_of_2(hidden_size)
    block_t = rows_per_program(capacity, block_h)
    if capacity == 0:
        return
    _embedding_kernel[(triton.cdiv(capacity, block_t),)](
        ids,
        weight,
        positions,
        position_weight,
        out,
        num_tokens,
        vocab_size,
        hidden_size,
        0 if position_weight is None else position_weight.shape[0],
        position_offset,
        scale,
        HAS_POSITIONS=positions is not None,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        num_warps=4,
        **pdl(),
    )


def embedding_ref(
    ids: torch.Tensor,
    weight: torch.Tensor,
    num_tokens: torch.Tensor,
    out: torch.Tensor,
    positions: torch.Tensor | None = None,
    position_weight: torch.Tensor | None = None,
    position_offset: int = 0,
    scale: float = 1.0,
) -> torch.Tensor:
    """The live rows of the result, [num_tokens, H] in the dtype of `out`; ids must be known."""
    live = slice(0, int(num_tokens))
    rows = weight[ids[live].long()].float() * scale
    if position_weight is not None:
        rows += position_weight[positions[live].long() + position_offset].float()
    return rows.to(out.dtype)


def embedding_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    capacity: int = 20,
    num_tokens: int = 17,
    vocab_size: int = 301,
    hidden_size: int = 129,
    learned_positions: bool = False,
) -> dict:
    """Arguments of `embedding`: random ids, NaN in `out`, impossible ids in dead rows."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (capacity,), generator=generator, dtype=torch.int32)
    ids[num_tokens:] = torch.iinfo(torch.int32).min
    weight = torch.randn(vocab_size, hidden_size, generator=generator)
    inputs = {
        "ids": ids.to(device),
        "weight": weight.to(device, dtype),
        "num_tokens": torch.tensor([num_tokens], dtype=torch.int32, device=device),
        "out": torch.full((capacity, hidden_size), float("nan"), dtype=dtype, device=device),
        "scale": 1.5,
    }
    if learned_positions:
        positions = torch.randperm(capacity, generator=generator).int()
        position_weight = torch.randn(capacity + 2, hidden_size, generator=generator)
        inputs |= {
            "positions": positions.to(device),
            "position_weight": position_weight.to(device, dtype),
            "position_offset": 2,
        }
    return inputs
