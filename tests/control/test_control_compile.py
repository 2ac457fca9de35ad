"""The control kernels compile for an H100/H200 and an MI300, on any machine."""

import os
import subprocess
import sys
from pathlib import Path

KERNELS = {
    "_ingest_kernel", "_lookup_kernel", "_order_kernel", "_schedule_kernel", "_prepare_kernel",
    "_update_kernel", "_publish_kernel", "_release_kernel", "_evict_kernel",
    "_beam_select_kernel", "_beam_repoint_kernel", "_grant_drafts_kernel", "_verify_drafts_kernel",
    "_compress_rows_kernel", "_mark_pages_kernel", "_drop_pages_kernel", "_drive_kernel",
    "_swap_kernel",
}  # fmt: skip


def test_every_control_kernel_compiles_for_both_targets():
    script = Path(__file__).with_name("compile_control.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert set(done.stdout.split()) == KERNELS
