"""Where to run, in which precision, and how many pages fit."""

import sys

import torch

from paged.interfaces import KVManager, Scheduler
from paged.kernels.launch import interpreted
from paged.models.spec import DecoderSpec, kv_bytes_per_page
from paged.state import Sizes

CPU_SEQUENCES = 16  # full-length sequences the default pool holds without a GPU
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(device: str | None) -> torch.device:
    """The device kernels run on. Says so, in one line, when it is the interpreter."""
    if interpreted():
        if device not in (None, "cpu"):
            raise ValueError(
                f"device must be cpu where Triton's interpreter runs (no GPU was found, or "
                f"TRITON_INTERPRET=1 is set), got {device!r}"
            )
        print(
            "paged: no GPU in use; kernels run in Triton's CPU interpreter, in float32",
            file=sys.stderr,
        )
        return torch.device("cpu")
    chosen = torch.device(device or "cuda")
    if chosen.type != "cuda":
        raise ValueError(
            f"device must be a CUDA device, got {device!r}; to run on the CPU through Triton's "
            "interpreter set TRITON_INTERPRET=1"
        )
    return torch.device("cuda", chosen.index or 0)


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Precision of weights, activations and KV."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    if chosen is torch.bfloat16 and device.type == "cpu":
        raise ValueError(
            "dtype bfloat16 needs a GPU: Triton's interpreter computes it wrongly; "
            "use float32 or float16"
        )
    return chosen


def check_compression(kv: KVManager, spec: DecoderSpec, num_draft_tokens: int) -> None:
    """Raise ValueError if pages cannot be dropped from what is read of this model."""
    if kv.compression is not None and num_draft_tokens:
        raise ValueError(
            "kv.compression must be none with drafts, whose keys are counted from the start of the "
            "sequence; use proposer=none or kv/compression=none"
        )
    if kv.compression is not None and any(spec.sliding_window or ()):
        raise ValueError(
            "kv.compression must be none for a model with sliding windows: attention counts how "
            "far back a key is by the keys that are there"
        )


def choose_num_host_pages(scheduler: Scheduler, kv: KVManager) -> int:
    """Pages for swapped rows, 0 where preempted rows compute again. Raises ValueError if rows
    cannot be swapped."""
    if scheduler.preemption != "swap":
        return 0
    if kv.num_host_pages is None:
        raise ValueError(
            "scheduler.preemption=swap needs kv.num_host_pages, the pages of pinned host memory "
            "that it may fill; give some, or use scheduler.preemption=recompute"
        )
    if kv.reserve_len is not None or kv.compression is not None:
        raise ValueError(
            "scheduler.preemption=swap brings back pages of whole sequences, booked as tokens need "
            "them; use kv=paged with kv/compression=none, or scheduler.preemption=recompute"
        )
    return kv.num_host_pages


def choose_num_pages(
    kv: KVManager,
    spec: DecoderSpec,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    max_num_seqs: int,
) -> int:
    """Pages of the pool: as configured, or what memory allows (see `PagedKV`), and then no more
    than all sequences at full length could hold.
    """
    if kv.num_pages is not None:
        return kv.num_pages
    pages_per_seq = -(-max_model_len // kv.page_size)
    if device.type == "cpu":
        return pages_per_seq * min(max_num_seqs, CPU_SEQUENCES)
    most = pages_per_seq * max_num_seqs
    page_bytes = kv_bytes_per_page(spec, kv.page_size, dtype)
    free, _ = torch.cuda.mem_get_info(device)
    pages = min(int(free * kv.memory_fraction) // page_bytes, most)
    if pages < pages_per_seq:
        raise ValueError(
            f"kv.memory_fraction={kv.memory_fraction} of the {free / 2**30:.1f} GiB free leaves "
            f"{max(pages, 0)} pages, but one sequence of max_model_len={max_model_len} needs "
            f"{pages_per_seq}; lower max_model_len or raise the fraction"
        )
    return pages


def engine_sizes(
    spec: DecoderSpec,
    scheduler: Scheduler,
    kv: KVManager,
    num_draft_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_model_len: int | None,
    num_slots: int | None,
) -> Sizes:
    """Every capacity of an engine over a model. Raises ValueError if they do not go together."""
    longest, seqs = spec.max_model_len, scheduler.max_num_seqs
    if max_model_len is not None and not 1 < max_model_len <= longest:
        raise ValueError(
            f"max_model_len must be from 2 to the model's own limit {longest}, got {max_model_len}"
        )
    length = max_model_len or longest
    check_compression(kv, spec, num_draft_tokens)
    return Sizes(
        num_slots=num_slots or (max(seqs, 1024) if device.type == "cuda" else seqs),
        max_num_seqs=seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=length,
        page_size=kv.page_size,
        num_pages=choose_num_pages(kv, spec, dtype, device, length, seqs),
        num_draft_tokens=num_draft_tokens,
        num_host_pages=choose_num_host_pages(scheduler, kv),
    )
