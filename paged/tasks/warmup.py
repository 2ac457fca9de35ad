"""task=warmup: every kernel that a model needs on this GPU, into Triton's cache, ahead of serving.

    paged warmup model=dummy model.path=llama-3.1-8b

What a kernel is compiled for follows from shapes, precision and settings, never from the values of
weights: so none are read.
"""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from triton import knobs

from paged.kernels.launch import interpreted
from paged.request import SamplingParams
from paged.tasks.recipe import Recipe


def warmup(recipe: Recipe) -> None:
    """Start the engine as serving would, with random weights, and say how long each phase took.

    An engine with graphs compiles all it will ever launch before it captures them; an eager one
    compiles more as its sequences grow.

    Give it the settings that will serve: page size, batch sizes, the share of memory. Raises
    ValueError where there is no GPU to compile for.
    """
    if interpreted():
        raise ValueError(
            "warmup needs a GPU: Triton's interpreter, which runs here, compiles nothing"
        )
    cache = Path(knobs.cache.dir)
    before, began = num_compiled(cache), time.perf_counter()
    llm = recipe.build(load="dummy")
    llm.generate([[0]], SamplingParams(max_tokens=2, ignore_eos=True))
    seconds = time.perf_counter() - began
    shown = Table(box=None, pad_edge=False, show_header=False)
    for phase, taken in llm.startup.items():
        shown.add_row(phase, f"{taken:.1f} s")
    console = Console(highlight=False)
    console.print(shown)
    console.print(
        f"{num_compiled(cache) - before} kernels were compiled for {recipe.model}; "
        f"{num_compiled(cache)} are in {cache}; {seconds:.1f} s"
    )


def num_compiled(cache: Path) -> int:
    """Kernels in a cache of Triton: binaries for NVIDIA's or AMD's GPUs."""
    return sum(1 for kind in ("cubin", "hsaco") for _ in cache.glob(f"*/*.{kind}"))
