"""Every policy function compiles inside its kernel for an H100/H200 and an MI300."""

import os
import subprocess
import sys
from pathlib import Path

from paged.testing.contracts.test_compression import FUNCTIONS as COMPRESSIONS
from paged.testing.contracts.test_eviction import FUNCTIONS as SCORES
from paged.testing.contracts.test_scheduler import FUNCTIONS as RANKS

RESERVES = ("contiguous_max", "contiguous_pow2", "contiguous_oracle")


def test_every_policy_function_compiles_for_both_targets():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_policies.py"))],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    expected = {f"rank.{name}" for name in RANKS} | {f"score.{name}" for name in SCORES}
    expected |= {f"compression.{name}" for name in COMPRESSIONS}
    assert set(done.stdout.split()) == expected | {f"reserve.{name}" for name in RESERVES}
