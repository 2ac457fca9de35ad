"""Instructions, barriers, loads and registers of every control kernel on sm_90, without a GPU.

    TRITON_INTERPRET=0 python experiments/kernels/control/resources.py --slots 256 1024

A kernel of one program has nothing to hide a barrier or a load behind: they are most of its time.
"""

import argparse
import re
import subprocess
import tempfile

import torch
import triton

from paged.eviction.lru import score
from paged.kernels.control.evict import evict
from paged.kernels.control.ingest import ingest
from paged.kernels.control.lookup import lookup
from paged.kernels.control.order import order
from paged.kernels.control.prepare import prepare
from paged.kernels.control.publish import publish
from paged.kernels.control.release import release
from paged.kernels.control.schedule import schedule
from paged.kernels.control.update import update
from paged.mailbox import Mailbox
from paged.schedulers.fcfs import rank
from paged.state import PagePool, RequestTable, Sizes, StepPlan
from paged.testing.compiling import SM90, compiled_launches

COMPILE = triton.compile
CUOBJDUMP = triton.knobs.nvidia.cuobjdump.path
COUNTED = {"barriers": "BAR.SYNC", "loads": "LDG", "stores": "STG", "shuffles": "SHFL"}


def measure(source, target, options):
    """Compile with the divisibility that real arguments have; print and return the kernel."""
    for position, name in enumerate(source.fn.arg_names):
        if str(source.signature[name]).startswith("*"):
            source.attrs[(position,)] = [["tt.divisibility", 16]]
    kernel = COMPILE(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    lines = [line for line in code.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/\s", line)]
    counts = ", ".join(
        f"{sum(operation in line for line in lines)} {name}" for name, operation in COUNTED.items()
    )
    print(
        f"  {source.fn.__name__:18} {kernel.metadata.num_warps} warps, {registers} registers, "
        f"stack {stack}, {len(lines)} instructions: {counts}",
        flush=True,
    )
    return kernel


def launch_all(slots: int) -> None:
    sizes = Sizes(
        num_slots=slots, max_num_seqs=slots, max_num_batched_tokens=8192, max_model_len=4096,
        page_size=16, num_pages=16 * slots,
    )  # fmt: skip
    requests, pool = RequestTable(sizes, "cpu", 64), PagePool(sizes, "cpu")
    plan = StepPlan(sizes, "cpu")
    mailbox = Mailbox(sizes, torch.device("cpu"))
    ingest(requests, pool, mailbox.commands, mailbox.max_commands)
    lookup(requests, pool)
    order(requests, pool, plan, rank)
    schedule(requests, pool, plan, budget=8192, chunk=8192)
    prepare(requests, pool, plan)
    update(requests, pool, plan, mailbox.events)
    publish(requests, pool, plan)
    release(requests, pool, plan, mailbox.events)
    evict(pool, 3, score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[256, 1024])
    args = parser.parse_args()
    triton.compile = measure
    with compiled_launches(SM90):
        for slots in args.slots:
            print(f"{slots} slots")
            launch_all(slots)


if __name__ == "__main__":
    main()
