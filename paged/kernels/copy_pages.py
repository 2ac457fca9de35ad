"""Copy pages of KV memory: what forked sequences need of the page that is only partly filled.

    pages[p, target[c]] = pages[p, source[c]]      for every plane p and the first num_copies c

A plane is the keys or the values of one layer. Grid: a fixed number of programs, which stride over
(copy, plane, tile); without copies each leaves at once. Targets must be distinct and no source may
be a target, so the order does not matter. Everything contiguous. Copy-on-write of Kwon et al.,
"PagedAttention" (SOSP 2023).
"""

import torch
import triton
import triton.language as tl

from paged.kernels.launch import check_tensor, interpreted, pdl

NUM_PROGRAMS = 256  # about two for each SM of an H100
COPY_PAGES_VARIANTS = ({"page_elements": 2048},)


@triton.jit
def move_pages(
    from_ptr, to_ptr, source_ptr, target_ptr, count_ptr, from_pages, to_pages,
    NUM_PLANES: tl.constexpr, PAGE_ELEMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy the listed pages of one memory to those of another."""
    TILES: tl.constexpr = (PAGE_ELEMENTS + BLOCK - 1) // BLOCK
    num_items = tl.load(count_ptr) * NUM_PLANES * TILES
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        copy = item // (NUM_PLANES * TILES)
        plane = tl.cast(item // TILES % NUM_PLANES, tl.int64)
        source = plane * from_pages + tl.load(source_ptr + copy)
        target = plane * to_pages + tl.load(target_ptr + copy)
        at = item % TILES * BLOCK + tl.arange(0, BLOCK)
        inside = at < PAGE_ELEMENTS
        kept = tl.load(from_ptr + source * PAGE_ELEMENTS + at, mask=inside)
        tl.store(to_ptr + target * PAGE_ELEMENTS + at, kept, mask=inside)


@triton.jit
def _copy_pages_kernel(
    pages_ptr, source_ptr, target_ptr, num_copies_ptr, num_pages,
    NUM_PLANES: tl.constexpr, PAGE_ELEMENTS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    move_pages(
        pages_ptr, pages_ptr, source_ptr, target_ptr, num_copies_ptr, num_pages, num_pages,
        NUM_PLANES, PAGE_ELEMENTS, BLOCK,
    )  # fmt: skip


def copy_pages(
    pages: torch.Tensor, source: torch.Tensor, target: torch.Tensor, num_copies: torch.Tensor
) -> None:
    """Copy pages source[c] to target[c] of `pages` [planes, N, elements of a page], any dtype.

    source and target [S] int32; num_copies [1] int32. Side effect: the target pages. Raises
    ValueError on a wrong shape, dtype or stride.
    """
    check_tensor("pages", pages, (None, None, None))
    check_tensor("source", source, (None,), torch.int32)
    check_tensor("target", target, tuple(source.shape), torch.int32)
    check_tensor("num_copies", num_copies, (1,), torch.int32)
    planes, num_pages, elements = pages.shape
    block = triton.next_power_of_2(elements)
    _copy_pages_kernel[(1 if interpreted() else NUM_PROGRAMS,)](
        pages, source, target, num_copies, num_pages,
        NUM_PLANES=planes, PAGE_ELEMENTS=elements,
        BLOCK=block if interpreted() else min(2048, block), **pdl(),
    )  # fmt: skip


def copy_pages_ref(
    pages: torch.Tensor, source: torch.Tensor, target: torch.Tensor, num_copies: torch.Tensor
) -> torch.Tensor:
    """What `pages` becomes, as a copy; the argument stays as it is."""
    count = int(num_copies)
    result = pages.clone()
    result[:, target[:count].long()] = pages[:, source[:count].long()]
    return result


def copy_pages_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    num_copies: int = 3,
    num_planes: int = 4,
    num_pages: int = 11,
    page_elements: int = 5 * 16 * 3,
) -> dict:
    """Arguments of `copy_pages`; unused entries of the lists name no page."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(num_pages, generator=generator).int()
    source, target = torch.full((2, num_copies + 2), -(2**30), dtype=torch.int32)
    source[:num_copies] = order[: max(1, num_copies // 2)].repeat(num_copies)[:num_copies]
    target[:num_copies] = order[num_pages - num_copies :]
    pages = torch.randn(num_planes, num_pages, page_elements, generator=generator)
    return {
        "pages": pages.to(device, dtype),
        "source": source.to(device),
        "target": target.to(device),
        "num_copies": torch.tensor([num_copies], dtype=torch.int32, device=device),
    }
