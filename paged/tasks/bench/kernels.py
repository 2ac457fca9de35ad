"""mode=kernels: each operation at the model's shapes, against its floor and a library."""

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch

from paged.attention.triton import TritonAttention
from paged.interfaces import Attention
from paged.kernels.launch import interpreted
from paged.sizing import resolve_device
from paged.tasks.bench.batch_cases import attention_case, sampling_cases
from paged.tasks.bench.cases import Case, Shapes, linear_case, row_cases
from paged.tasks.bench.hardware import Hardware, graph_seconds, measure
from paged.tasks.bench.report import Report, Row
from paged.tasks.recipe import Recipe

ROTATE_BYTES = 2e8  # arguments cycle through more than any L2 holds
MAX_COPIES = 32


def kernels(
    recipe: Recipe,
    *,
    rows: Sequence[int],
    decodes: Sequence[Sequence[int]],
    prefills: Sequence[int],
    only: str = "",
) -> Report:
    """A row an operation and shape.

    Args:
        rows: tokens of a step, for the operations that work token by token.
        decodes: [batch, context] pairs for decode attention.
        prefills: prompt lengths for prefill attention, one prompt each.
        only: operations whose name contains this.
    """
    device = resolve_device(recipe.arguments.get("device"))
    dtype = recipe.dtype(device)
    hardware = measure(device, dtype)
    attention: Attention = recipe.arguments.get("attention") or TritonAttention()
    kv = recipe.arguments.get("kv")
    shapes = Shapes(recipe.spec(), device, dtype, getattr(kv, "page_size", 16), attention)
    cases = [case for case in all_cases(shapes, rows, decodes, prefills) if only in case.name]
    if not cases:
        raise ValueError(f"task.only={only!r} names no operation; leave it empty for all")
    settings = {
        "model": recipe.name(),
        "dtype": str(dtype).removeprefix("torch."),
        "page_size": shapes.page_size,
    }
    if hardware is not None:
        settings |= {"bandwidth_bytes_per_s": hardware.bandwidth, "flops": hardware.flops}
    report = Report("kernels", "", settings, peer="library")
    failures = 0
    for case in cases:
        row, failure = measure_case(case, hardware)
        report.rows.append(row)
        if failure:
            failures += 1
            report.notes.append(f"{case.name} is wrong and was not timed: {failure}")
    report.check = f"{len(cases) - failures} of {len(cases)} operations against their references"
    if interpreted():
        report.notes.append("times are of the CPU interpreter: they say nothing about a GPU")
    return report


def all_cases(
    shapes: Shapes,
    rows: Sequence[int],
    decodes: Sequence[Sequence[int]],
    prefills: Sequence[int],
) -> list[Case]:
    spec = shapes.spec
    cases: list[Case] = []
    for count in rows:
        cases += row_cases(shapes, count)
    for batch in sorted({batch for batch, _ in decodes}):
        cases.append(linear_case(shapes, "linear head", batch, spec.vocab_size, spec.hidden_size))
        cases += sampling_cases(shapes, batch)
    cases += [attention_case(shapes, batch, 1, context) for batch, context in decodes]
    cases += [attention_case(shapes, 1, length, length) for length in prefills]
    return cases


def measure_case(case: Case, hardware: Hardware | None) -> tuple[Row, str]:
    """The row of a case and what is wrong with its result, if anything; a wrong one has no time."""
    inputs = case.make()
    row = Row(case.name, "us", None)
    row.details = {"bytes": case.num_bytes, "flops": case.num_flops}
    try:
        case.run(inputs)
        case.check(inputs)
    except AssertionError as error:
        return row, str(error).partition("\n")[0]
    if hardware is None:
        began = time.perf_counter()
        case.run(inputs)
        row.ours = 1e6 * (time.perf_counter() - began)
        return row, ""
    copies = max(2, min(MAX_COPIES, int(ROTATE_BYTES / case.num_bytes) + 1))
    arguments = [inputs, *(case.make() for _ in range(copies - 1))]
    row.ours = 1e6 * graph_seconds([partial(case.run, own) for own in arguments])
    times = {}
    for name, library in case.libraries.items():
        with suppress(RuntimeError):  # a backend that does not take this shape
            times[name] = 1e6 * graph_seconds([partial(library, own) for own in arguments])
    if times:
        row.peer = min(times.values())
        row.details["libraries_us"] = times
    row.floor = 1e6 * hardware.floor(case.num_bytes, case.num_flops)
    row.details["flops_per_s"] = 1e6 * case.num_flops / row.ours
    torch.cuda.empty_cache()
    return row, ""
