"""What the scripts here share: shapes of real models, graph timing, compilation in parallel."""

import multiprocessing
from collections.abc import Callable

import torch

from paged.tasks.bench.hardware import graph_seconds

SHAPES = {  # (out_features, in_features)
    "8b qkv": (6144, 4096), "8b o": (4096, 4096), "8b gate_up": (28672, 4096),
    "8b down": (4096, 14336), "8b head": (128256, 4096),
    "0.6b qkv": (4096, 1024), "0.6b o": (1024, 2048), "0.6b gate_up": (6144, 1024),
    "0.6b down": (1024, 3072), "0.6b head": (151936, 1024),
}  # fmt: skip
LAYERS = {"8b": 32, "0.6b": 28}
BANDWIDTH = 4.55e12  # bytes a second, read, measured on an H200
ARITHMETIC = 790e12  # operations a second
ROTATE_BYTES = 160e6  # more than the 50 MB of L2
PROCESSES = 14
BF16 = {"device": "cuda", "dtype": torch.bfloat16}


def random_weights(out_features: int, in_features: int, copies: int | None = None) -> list:
    """Weights to rotate through, [out_features, in_features] each, that keep outputs at unit size.

    Without `copies` as many as fill ROTATE_BYTES.
    """
    copies = copies or max(2, min(40, int(ROTATE_BYTES / (out_features * in_features * 2)) + 1))
    return [
        torch.empty(out_features, in_features, **BF16).normal_(0, in_features**-0.5)
        for _ in range(copies)
    ]


def count_of(rows: int) -> torch.Tensor:
    return torch.full((1,), rows, dtype=torch.int32, device="cuda")


def floor_us(rows: int, out_features: int, in_features: int, out_bytes: int = 2) -> float:
    """Microseconds to move weight, input and output once, or to compute, whichever is longer."""
    moved = 2 * in_features * (out_features + rows) + out_bytes * rows * out_features
    return max(moved / BANDWIDTH, 2 * rows * out_features * in_features / ARITHMETIC) * 1e6


def graph_us(launch_all: Callable[[], None], launches: int = 1, repeats: int = 7) -> float:
    """Microseconds of one of the `launches` in `launch_all`, captured: median of replays."""
    return 1e6 * graph_seconds([launch_all], repeats) / launches


def check_close(out: torch.Tensor, exact: torch.Tensor) -> None:
    error = ((out.float() - exact).norm() / exact.norm()).item()
    if not error < 5e-3:
        raise AssertionError(f"relative error {error} against torch")


def compile_all(compile_one: Callable, jobs: list) -> list:
    """Run compile_one(job) for all jobs in processes of their own; the jobs that failed."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        failed = pool.map(compile_one, jobs, chunksize=2)
    failures = [failure for failure in failed if failure is not None]
    print(f"{len(jobs)} kernels, {len(failures)} failed {failures[:3]}", flush=True)
    return failures
