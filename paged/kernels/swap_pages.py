"""Copy pages of KV memory to host memory and back, in one launch.

    host_pages[p, out_target[c]] = pages[p, out_source[c]]      for every plane p, c < num_out
    pages[p, in_target[c]] = host_pages[p, in_source[c]]        for every plane p, c < num_in

A plane is the keys or the values of one layer. `host_pages` is pinned memory of the host, which a
GPU reads and writes by its address like its own, over the bus; so a copy needs no call of the host
and can be captured. Grid: a fixed number of programs, which stride over (copy, plane, tile).
No page, on either side, may be both source and target, and targets must be distinct, so the order
does not matter. Everything contiguous. Swapping of Kwon et al., "PagedAttention" (SOSP 2023).
"""

import torch
import triton
import triton.language as tl

from paged.kernels.copy_pages import NUM_PROGRAMS, move_pages
from paged.kernels.launch import check_tensor, interpreted, pdl

SWAP_PAGES_VARIANTS = ({"page_elements": 2048},)


@triton.jit
def _swap_pages_kernel(
    pages_ptr, host_ptr, out_source_ptr, out_target_ptr, num_out_ptr, in_source_ptr, in_target_ptr,
    num_in_ptr, num_pages, num_host_pages,
    NUM_PLANES: tl.constexpr, PAGE_ELEMENTS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    move_pages(
        pages_ptr, host_ptr, out_source_ptr, out_target_ptr, num_out_ptr, num_pages,
        num_host_pages, NUM_PLANES, PAGE_ELEMENTS, BLOCK,
    )  # fmt: skip
    move_pages(
        host_ptr, pages_ptr, in_source_ptr, in_target_ptr, num_in_ptr, num_host_pages, num_pages,
        NUM_PLANES, PAGE_ELEMENTS, BLOCK,
    )  # fmt: skip


def swap_pages(
    pages: torch.Tensor,
    host_pages: torch.Tensor,
    out_source: torch.Tensor,
    out_target: torch.Tensor,
    num_out: torch.Tensor,
    in_source: torch.Tensor,
    in_target: torch.Tensor,
    num_in: torch.Tensor,
) -> None:
    """Copy the listed pages between `pages` and `host_pages`.

    Args:
        pages: [planes, N, elements of a page], any dtype.
        host_pages: [planes, H, elements of a page] of the same dtype; pinned, on a GPU.
        out_source, in_target: [H] int32, pages; out_target, in_source: [H] int32, host pages.
        num_out, num_in: [1] int32, how many of them are copied.

    Side effect: the target pages. Raises ValueError on a wrong shape, dtype or stride.
    """
    check_tensor("pages", pages, (None, None, None))
    planes, num_pages, elements = pages.shape
    check_tensor("host_pages", host_pages, (planes, None, elements), pages.dtype)
    check_tensor("out_source", out_source, (None,), torch.int32)
    lists = {"out_target": out_target, "in_source": in_source, "in_target": in_target}
    for name, tensor in lists.items():
        check_tensor(name, tensor, tuple(out_source.shape), torch.int32)
    check_tensor("num_out", num_out, (1,), torch.int32)
    check_tensor("num_in", num_in, (1,), torch.int32)
    block = triton.next_power_of_2(elements)
    _swap_pages_kernel[(1 if interpreted() else NUM_PROGRAMS,)](
        pages, host_pages, out_source, out_target, num_out, in_source, in_target, num_in,
        num_pages, host_pages.shape[1],
        NUM_PLANES=planes, PAGE_ELEMENTS=elements,
        BLOCK=block if interpreted() else min(2048, block), **pdl(),
    )  # fmt: skip


def swap_pages_ref(
    pages: torch.Tensor,
    host_pages: torch.Tensor,
    out_source: torch.Tensor,
    out_target: torch.Tensor,
    num_out: torch.Tensor,
    in_source: torch.Tensor,
    in_target: torch.Tensor,
    num_in: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `pages` and `host_pages` become, as copies; the arguments stay as they are."""
    outs, ins = int(num_out), int(num_in)
    after, host_after = pages.clone(), host_pages.clone()
    host_after[:, out_target[:outs].long().cpu()] = pages[:, out_source[:outs].long()].cpu()
    back = host_pages[:, in_source[:ins].long().cpu()]
    after[:, in_target[:ins].long()] = back.to(pages.device)
    return after, host_after


def swap_pages_inputs(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    num_out: int = 3,
    num_in: int = 2,
    num_planes: int = 4,
    num_pages: int = 11,
    num_host_pages: int = 7,
    page_elements: int = 5 * 16 * 3,
) -> dict:
    """Arguments of `swap_pages`; unused entries of the lists name no page."""
    generator = torch.Generator().manual_seed(0)
    pages, host = (
        torch.randn(num_planes, count, page_elements, generator=generator).to(dtype)
        for count in (num_pages, num_host_pages)
    )
    order = torch.randperm(num_pages, generator=generator).int()
    host_order = torch.randperm(num_host_pages, generator=generator).int()
    lists = torch.full((4, num_host_pages), -(2**30), dtype=torch.int32)
    lists[0, :num_out], lists[1, :num_out] = order[:num_out], host_order[:num_out]
    lists[2, :num_in] = host_order[num_out : num_out + num_in]
    lists[3, :num_in] = order[num_out : num_out + num_in]
    on_gpu = torch.device(device).type == "cuda"
    return {
        "pages": pages.to(device),
        "host_pages": host.pin_memory() if on_gpu else host,
        "out_source": lists[0].to(device),
        "out_target": lists[1].to(device),
        "num_out": torch.tensor([num_out], dtype=torch.int32, device=device),
        "in_source": lists[2].to(device),
        "in_target": lists[3].to(device),
        "num_in": torch.tensor([num_in], dtype=torch.int32, device=device),
    }
