"""How close a kernel must come to its fp32 reference: one table, by dtype."""

import torch

# dtype: (largest absolute error relative to the reference's RMS, RMS error relative to its RMS)
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float32: (5e-5, 5e-6),
    torch.float16: (2e-2, 2e-3),
    torch.bfloat16: (8e-2, 8e-3),
}


def assert_close(out: torch.Tensor, ref: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Assert that `out` matches `ref` within the tolerance of `dtype` (default: out's dtype).

    NaN or infinity anywhere fails, so an unwritten, poisoned element cannot pass.
    """
    assert out.shape == ref.shape, f"shape {tuple(out.shape)} is not {tuple(ref.shape)}"
    if out.numel() == 0:
        return
    out64, ref64 = out.detach().cpu().double(), ref.detach().cpu().double()
    assert torch.isfinite(out64).all(), "the output holds NaN or infinity"
    scale = ref64.square().mean().sqrt().clamp_min(1e-6)
    error = (out64 - ref64).abs()
    largest, rms = (error.max() / scale).item(), (error.square().mean().sqrt() / scale).item()
    allowed_largest, allowed_rms = TOLERANCES[dtype or out.dtype]
    assert largest <= allowed_largest, f"largest error {largest:.2e} over {allowed_largest:.0e}"
    assert rms <= allowed_rms, f"RMS error {rms:.2e} over {allowed_rms:.0e}"


def poisoned(*shape: int, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """A tensor of NaN (floats) or of the smallest integer: what a kernel must not leave or read."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min
    return torch.full(shape, value, dtype=dtype, device=device)
