"""The phases against torch without a GPU, a launch each.

    TRITON_INTERPRET=1 python experiments/kernels/persistent/check.py

Two layers of a small model in float32, with programs that have several tiles and items.
"""

import torch
from step import Config, Shape, Step

SMALL = Shape(hidden=128, num_heads=4, num_kv_heads=2, head_dim=32, intermediate=384)


def main() -> None:
    for lens in ([1], [300], [65, 1, 64, 130, 200]):
        for early, programs in ((False, 5), (True, 8)):
            step = Step(lens, 2, SMALL, torch.float32, "cpu")
            config = Config(programs, 4, 0, early, 2, (32, 16, 32, 16), 128)
            config = config._replace(words=early and len(lens) == 1)
            step.launch_by_phase(config)
            exact, written = step.reference(torch.float32)
            error = ((step.result() - exact).norm() / exact.norm()).item()
            kv_error = ((step.written() - written).norm() / written.norm()).item()
            print(f"{lens}, {programs} programs: {error:.1e}, KV {kv_error:.1e}", flush=True)
            assert error < 1e-5
            assert kv_error < 1e-5


if __name__ == "__main__":
    main()
