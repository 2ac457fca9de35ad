"""A barrier of all programs of a launch, which must all be on the device at once."""

import triton
import triton.language as tl


@triton.jit
def grid_barrier(arrivals):
    """Waits for all programs; what they stored before can be read after, past L1 (".cg").

    `arrivals` counts those of every launch, whose programs are always as many: so nobody has to set
    it back to 0.
    """
    programs = tl.num_programs(0)
    tl.debug_barrier()
    before = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu")
    needed = (before // programs + 1) * programs
    arrived = before + 1
    while arrived < needed:
        arrived = tl.atomic_add(arrivals, 0, sem="acq_rel", scope="gpu")
    tl.debug_barrier()


@triton.jit
def meet(arrivals, programs):
    """The same of `programs` programs of a launch; `arrivals`, int32, a kernel before set to 0."""
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < programs:
        arrived = tl.atomic_add(arrivals, 0, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
