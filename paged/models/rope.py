"""Rotary position tables: the cosines and sines of every position, once, at load time.

Sources: RoPE, Su et al., "RoFormer" (2021); linear position interpolation, Chen et al. (2023) and
kaiokendev; llama3, Meta's Llama 3.1 release; YaRN, Peng et al., "YaRN: Efficient Context Window
Extension of Large Language Models" (2023).
"""

import math

import torch

REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
    "divided": ("divisors",),  # one a frequency, as GGUF files of Llama 3.1 carry them
}


def rope_table(
    rope_type: str,
    theta: float,
    rotary_dim: int,
    max_positions: int,
    scaling: dict | None = None,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Cosines then sines of every position, [max_positions, rotary_dim] float32.

    `scaling` holds the entries of a checkpoint's rope_scaling (or rope_parameters); its other
    entries are not read. Raises ValueError on an unsupported `rope_type`, an odd `rotary_dim` or
    a missing entry.
    """
    scaling = scaling or {}
    if rope_type not in REQUIRED:
        supported = ", ".join(REQUIRED)
        raise ValueError(f"rope_type must be one of {supported}, got {rope_type!r}")
    if rotary_dim < 2 or rotary_dim % 2:
        raise ValueError(f"rotary_dim must be even and positive, got {rotary_dim}")
    missing = [name for name in REQUIRED[rope_type] if scaling.get(name) is None]
    if missing:
        raise ValueError(f"rope_scaling of type {rope_type} needs {', '.join(missing)}: {scaling}")

    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / theta**exponents  # [rotary_dim / 2] radians a position
    attention_factor = 1.0
    if rope_type == "linear":
        frequencies = frequencies / scaling["factor"]
    elif rope_type == "llama3":
        frequencies = _llama3_frequencies(frequencies, scaling)
    elif rope_type == "yarn":
        frequencies = _yarn_frequencies(frequencies, theta, scaling)
        attention_factor = _yarn_attention_factor(scaling)
    elif rope_type == "divided":
        frequencies = frequencies / torch.tensor(scaling["divisors"])
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies[None, :]
    return (torch.cat([angles.cos(), angles.sin()], dim=-1) * attention_factor).to(device)


def _llama3_frequencies(frequencies: torch.Tensor, scaling: dict) -> torch.Tensor:
    """Divide the slow frequencies by the factor, keep the fast ones, blend those between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    # full turns within the original context: fewer than `low` is slow, more than `high` is fast
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling["factor"])


def _yarn_frequencies(frequencies: torch.Tensor, theta: float, scaling: dict) -> torch.Tensor:
    """Divide by the factor what turns slower than beta_slow, keep what beats beta_fast."""
    half = frequencies.numel()

    def index_of(turns: float) -> float:
        """The (real) frequency index that makes `turns` full turns in the original context."""
        wavelength = scaling["original_max_position_embeddings"] / turns
        return half * math.log(wavelength / (2 * math.pi)) / math.log(theta)

    fast = index_of(scaling.get("beta_fast") or 32)
    slow = index_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, 2 * half - 1)
    width = slow - fast or 0.001  # equal ends make a step, not a division by zero
    kept = 1.0 - ((torch.arange(half, dtype=torch.float32) - fast) / width).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling["factor"])


def _yarn_attention_factor(scaling: dict) -> float:
    """What cosines and sines are multiplied by, so that logits keep their entropy."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def magnitude(weight: float) -> float:
        return 1.0 if scaling["factor"] <= 1 else 0.1 * weight * math.log(scaling["factor"]) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    return magnitude(1.0)
