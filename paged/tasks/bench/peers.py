"""Another engine on the same device and workload, in a process of its own.

The peer's script imports nothing of paged, so it runs under any Python that has the peer. It gets
one JSON file, the job, and answers with one JSON line, the last of its stdout:

    job     model (folder with config.json), dummy, std, dtype, max_model_len, max_num_seqs,
            max_num_batched_tokens, kv_tokens (of our cache), memory_fraction (of the device, in
            all), prefix_caching, eager, seed, sampling,
            passes [[[prompt ids, max_tokens], ...], ...] with the warm-up first,
            grid [[batch, context, output_len], ...] with runs and vocab_size
    answer  name, version, init_seconds, passes [seconds, ...],
            grid [{ttft, decode_ms}, ...], details; or only: missing (why the peer cannot run)
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paged.llm import LLM
from paged.models.config import architecture_of, find_model
from paged.models.dummy import STANDARD_DEVIATION
from paged.tasks.recipe import Recipe

PEERS = ("vllm", "transformers")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Peer:
    """How to start a peer.

    Args:
        name: vllm or transformers.
        python: interpreter that has it; None is this one.
        pythonpath: folders put in front of that interpreter's path, separated as in PYTHONPATH.
        memory_fraction: share of the device's memory that it may use in all.
        timeout: seconds it may take.
    """

    name: str
    python: str | None = None
    pythonpath: str | None = None
    memory_fraction: float = 0.85
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if self.name not in PEERS:
            raise ValueError(f"task.peer must be one of {', '.join(PEERS)}, got {self.name!r}")
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(
                f"task.peer_memory_fraction must be in (0, 1], got {self.memory_fraction}"
            )

    def run(self, job: dict[str, Any], recipe: Recipe, log: Path) -> dict[str, Any]:
        """The peer's answer; its output goes to `log`. Without an answer, {"missing": why}."""
        with tempfile.TemporaryDirectory(prefix="paged-bench-") as name:
            folder = Path(name)
            # A copy: Python puts a script's folder first on its path, and ours has modules in it.
            script = shutil.copy(Path(__file__).with_name(f"peer_{self.name}.py"), folder)
            model = folder if recipe.is_dummy else find_model(recipe.model)
            if recipe.is_dummy:
                (folder / "config.json").write_text(json.dumps(plain_config(recipe)))
            job = job | {"model": str(model), "memory_fraction": self.memory_fraction}
            (folder / "job.json").write_text(json.dumps(job))
            command = [self.python or sys.executable, script, str(folder / "job.json")]
            try:
                with log.open("w") as stderr:
                    done = subprocess.run(
                        command, env=self._environment(), stdout=subprocess.PIPE, stderr=stderr,
                        text=True, timeout=self.timeout, cwd=folder,
                    )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                return {"missing": f"{self.name} could not be run: {error}"}
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            return {"missing": f"{self.name} ended with code {done.returncode}; see {log.name}"}
        return json.loads(lines[-1])

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ) | OFFLINE
        environment.pop("TRITON_INTERPRET", None)  # ours, where there is no GPU
        if self.pythonpath is not None:
            environment["PYTHONPATH"] = self.pythonpath
        return environment


def common_job(llm: LLM, recipe: Recipe) -> dict[str, Any]:
    """The engine's settings as a peer's: what both must share for a ratio to mean anything."""
    sizes, kv = llm.engine.sizes, llm.engine.kv
    return {
        "dummy": recipe.is_dummy,
        "std": STANDARD_DEVIATION,
        "dtype": str(llm.dtype).removeprefix("torch."),
        "max_model_len": sizes.max_model_len,
        "max_num_seqs": sizes.max_num_seqs,
        "max_num_batched_tokens": sizes.max_num_batched_tokens,
        "kv_tokens": sizes.num_pages * sizes.page_size,
        "prefix_caching": getattr(kv, "prefix_caching", False),
        "eager": llm.engine.steps.capture_seconds == 0 and llm.device.type == "cuda",
        "seed": llm.engine.seed,
        "vocab_size": llm.spec.vocab_size,
        "sampling": {"temperature": 0.0},
        "passes": [],
        "grid": [],
        "runs": 1,
    }


def plain_config(recipe: Recipe) -> dict[str, Any]:
    """config.json in the spelling that both old and new versions of transformers read."""
    hf_config = recipe.hf_config()
    entries = hf_config.to_dict()
    entries["architectures"] = [architecture_of(hf_config)]
    rope = entries.pop("rope_parameters", None)
    if rope:
        rope = dict(rope)
        entries["rope_theta"] = rope.pop("rope_theta", 10000.0)
        entries["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    for key in ("dtype", "torch_dtype", "transformers_version", "_name_or_path"):
        entries.pop(key, None)
    return entries
