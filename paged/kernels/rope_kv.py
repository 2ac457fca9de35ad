"""Head-wise q/k norm, rotary embedding and KV write, in place on the packed qkv buffer.

    x = round(round(x / sqrt(mean(x^2) + eps)) * weight)              (with q_norm and k_norm)
    (a, b) = (a cos - b sin, b cos + a sin)   for each pair of the first rotary_dim elements

A pair is (i, i + rotary_dim / 2), or (2i, 2i + 1) if interleaved. Then K and V go to their slots:
slot = page * page_size + offset, -1 skips the token. RoPE is Su et al., "RoFormer" (2021).

Grid: (capacity * heads / BLOCK_R,), where a row is one head of one token, q heads first, then k,
then v, as they lie in qkv. All tensors contiguous, arithmetic fp32. On a GPU BLOCK_R depends on
head_dim alone, so a row's bits do not depend on the batch.
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted, pdl

ROPE_KV_VARIANTS = (
    {"with_norm": True, "interleaved": True},
    {"with_norm": True, "rotary_dim": 0},
    {"rotary_dim": 0},
)


@triton.jit
def _rope_kv_kernel(
    qkv_ptr,
    positions_ptr,
    cos_sin_ptr,
    slot_mapping_ptr,
    k_cache_ptr,
    v_cache_ptr,
    num_tokens_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    HEADS: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    num_rows = tl.load(num_tokens_ptr, cache_modifier=".cg") * HEADS
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = row < num_rows
    token = row // HEADS
    head = row % HEADS
    is_v = head >= NUM_HEADS + NUM_KV_HEADS
    is_k = (head >= NUM_HEADS) & (head < NUM_HEADS + NUM_KV_HEADS)
    d = tl.arange(0, BLOCK_D)
    slot_ptrs = slot_mapping_ptr + token
    slot = tl.load(slot_ptrs, mask=live & (is_k | is_v), other=-1, cache_modifier=".cg")
    if HAS_NORM:
        weight = _norm_weight(q_norm_ptr, k_norm_ptr, d, is_k, HEAD_DIM)
    if ROTARY_DIM > 0:
        HALF: tl.constexpr = ROTARY_DIM // 2
        if INTERLEAVED:
            partner = d ^ 1
            first = d % 2 == 0
            frequency = d // 2
        else:
            partner = tl.where(d < HALF, d + HALF, d - HALF)
            first = d < HALF
            frequency = d % HALF
        rotated = live[:, None] & (d < ROTARY_DIM)[None, :]
        if HAS_NORM:
            partner_weight = _norm_weight(q_norm_ptr, k_norm_ptr, partner, is_k, HEAD_DIM)
        position = tl.load(positions_ptr + token, mask=live, other=0, cache_modifier=".cg")
        angle_ptrs = cos_sin_ptr + position.to(tl.int64)[:, None] * ROTARY_DIM + frequency[None, :]
        cos = tl.load(angle_ptrs, mask=rotated, other=1.0)
        sin = tl.load(angle_ptrs + HALF, mask=rotated, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if tl.program_id(0) * BLOCK_R >= num_rows:
        return

    mask = live[:, None] & (d < HEAD_DIM)[None, :]
    row_ptrs = qkv_ptr + row.to(tl.int64)[:, None] * HEAD_DIM
    raw = tl.load(row_ptrs + d[None, :], mask=mask, other=0.0)  # [BLOCK_R, BLOCK_D]
    x = raw.to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / HEAD_DIM + eps)
        x = _scaled(x, scale, weight, raw.dtype)
    if ROTARY_DIM > 0:
        # the other half of each pair, again from memory: a second read hits L1
        y = tl.load(row_ptrs + partner[None, :], mask=rotated, other=0.0).to(tl.float32)
        if HAS_NORM:
            y = _scaled(y, scale, partner_weight, raw.dtype)
        x = x * cos + tl.where(first[None, :], -y, y) * sin
    out = tl.where(is_v[:, None], raw, x.to(raw.dtype))
    if HAS_NORM or ROTARY_DIM > 0:
        # other threads of this program have read these addresses as partners
        tl.debug_barrier()
        tl.store(row_ptrs + d[None, :], out, mask=mask & (head < NUM_HEADS + NUM_KV_HEADS)[:, None])

    page = slot // PAGE_SIZE
    kv_head = (head - NUM_HEADS) % NUM_KV_HEADS
    offsets = ((page * NUM_KV_HEADS + kv_head) * PAGE_SIZE + slot % PAGE_SIZE) * HEAD_DIM
    offsets = offsets[:, None] + d[None, :]
    written = mask & (slot >= 0)[:, None]
    cached = out.to(k_cache_ptr.dtype.element_ty)
    tl.store(k_cache_ptr + offsets, cached, mask=written & is_k[:, None])
    tl.store(v_cache_ptr + offsets, cached, mask=written & is_v[:, None])


@triton.jit
def _norm_weight(q_norm_ptr, k_norm_ptr, d, is_k, HEAD_DIM: tl.constexpr):
    """Weight of each row's norm at columns `d`, [BLOCK_R, BLOCK_D] fp32."""
    in_head = d < HEAD_DIM
    q_weight = tl.load(q_norm_ptr + d, mask=in_head, other=0.0).to(tl.float32)
    k_weight = tl.load(k_norm_ptr + d, mask=in_head, other=0.0).to(tl.float32)
    return tl.where(is_k[:, None], k_weight[None, :], q_weight[None, :])


@triton.jit
def _scaled(x, scale, weight, dtype: tl.constexpr):
    """x * scale * weight, rounded to `dtype` after each product."""
    x = (x * scale).to(dtype).to(tl.float32)
    return (x * weight).to(dtype).to(tl.float32)


def rope_kv(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_tokens: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
) -> None:
    """Normalise and rotate q and k of the first `num_tokens` rows, and cache their k and v.

    qkv [T, (num_heads + 2 * num_kv_heads) * head_dim]; positions [T] int32; cos_sin
    [P, rotary_dim] fp32, cos then sin, or None; slot_mapping [T] int64; k_cache, v_cache
    [num_pages, num_kv_heads, page_size, head_dim]; num_tokens [1] int32; q_norm, k_norm [head_dim].
    Side effects: q and k of qkv in place, and the caches. Raises ValueError on a wrong shape or
    dtype, or if rotary_dim is odd or larger than head_dim.
    """
    heads = num_heads + 2 * num_kv_heads
    check_tensor("qkv", qkv, (None, heads * head_dim))
    capacity = qkv.shape[0]
    check_tensor("positions", positions, (capacity,), torch.int32)
    check_tensor("slot_mapping", slot_mapping, (capacity,), torch.int64)
    check_tensor("k_cache", k_cache, (None, num_kv_heads, None, head_dim))
    check_tensor("v_cache", v_cache, tuple(k_cache.shape), k_cache.dtype)
    check_tensor("num_tokens", num_tokens, (1,), torch.int32)
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm and k_norm must be given together, got only one")
    if q_norm is not None:
        check_tensor("q_norm", q_norm, (head_dim,))
        check_tensor("k_norm", k_norm, (head_dim,))
    rotary_dim = 0
    if cos_sin is not None:
        check_tensor("cos_sin", cos_sin, (None, None), torch.float32)
        rotary_dim = cos_sin.shape[1]
        if rotary_dim % 2 or rotary_dim > head_dim:
            raise ValueError(f"rotary_dim must be even and <= {head_dim}, got {rotary_dim}")
    block_d = triton.next_power_of_2(head_dim)
    block_r = max(1, 1024 // block_d)
    if capacity == 0:
        return
    if interpreted():
        block_r = min(triton.next_power_of_2(capacity * heads), max(1, 2**16 // block_d))
    _rope_kv_kernel[(triton.cdiv(capacity * heads, block_r),)](
        qkv,
        positions,
        cos_sin,
        slot_mapping,
        k_cache,
        v_cache,
        num_tokens,
        q_norm,
        k_norm,
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        ROTARY_DIM=rotary_dim,
        PAGE_SIZE=k_cache.shape[2],
        HAS_NORM=q_norm is not None,
        INTERLEAVED=interleaved,
        BLOCK_R=block_r,
        BLOCK_D=block_d,
        num_warps=4,
        **pdl(),
    )


def rope_kv_ref(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_tokens: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What qkv, k_cache and v_cache become, as copies; the arguments stay as they are."""
    live = int(num_tokens)
    qkv, k_cache, v_cache = qkv.clone(), k_cache.clone(), v_cache.clone()
    heads = qkv[:live].view(live, -1, head_dim)  # a view: writing it writes the copy of qkv
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    for x, weight in ((q, q_norm), (k, k_norm)):
        y = x.float()
        if weight is not None:
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
            y = (y.to(qkv.dtype).float() * weight.float()).to(qkv.dtype).float()
        if cos_sin is not None:
            half = cos_sin.shape[1] // 2
            cos, sin = cos_sin[positions[:live].long()][:, None].split(half, dim=-1)
            first, second = slice(0, half), slice(half, 2 * half)
            if interleaved:
                first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
            a, b = y[..., first].clone(), y[..., second].clone()
            y[..., first], y[..., second] = a * cos - b * sin, b * cos + a * sin
        x.copy_(y)
    slots = slot_mapping[:live]
    pages, offsets = slots[slots >= 0] // k_cache.shape[2], slots[slots >= 0] % k_cache.shape[2]
    k_cache[pages, :, offsets] = k[slots >= 0].to(k_cache.dtype)
    v_cache[pages, :, offsets] = v[slots >= 0].to(v_cache.dtype)
    return qkv, k_cache, v_cache


def rope_kv_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    capacity: int = 20,
    num_tokens: int = 17,
    num_heads: int = 5,
    num_kv_heads: int = 1,
    head_dim: int = 64,
    rotary_dim: int | None = None,
    page_size: int = 16,
    with_norm: bool = False,
    interleaved: bool = False,
) -> dict:
    """Arguments of `rope_kv`: tokens on shuffled slots, every fifth skipped, NaN in the caches."""
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    generator = torch.Generator().manual_seed(0)
    num_pages = 2 * triton.cdiv(capacity, page_size) + 1
    qkv = torch.randn(capacity, (num_heads + 2 * num_kv_heads) * head_dim, generator=generator)
    angles = torch.rand(2 * capacity + 1, rotary_dim // 2, generator=generator) * 6.283
    positions = torch.randperm(2 * capacity + 1, generator=generator)[:capacity].int()
    slots = torch.randperm(num_pages * page_size, generator=generator)[:capacity]
    slots[::5] = -1
    norms = torch.randn(2, head_dim, generator=generator).to(device, dtype)
    cache = (num_pages, num_kv_heads, page_size, head_dim)
    return {
        "qkv": qkv.to(device, dtype),
        "positions": positions.to(device),
        "cos_sin": torch.cat([angles.cos(), angles.sin()], -1).to(device) if rotary_dim else None,
        "slot_mapping": slots.to(device),
        "k_cache": torch.full(cache, float("nan"), dtype=dtype, device=device),
        "v_cache": torch.full(cache, float("nan"), dtype=dtype, device=device),
        "num_tokens": torch.tensor([num_tokens], dtype=torch.int32, device=device),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "q_norm": norms[0].contiguous() if with_norm else None,
        "k_norm": norms[1].contiguous() if with_norm else None,
        "interleaved": interleaved,
    }
