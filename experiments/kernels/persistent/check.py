"""The phases against torch without a GPU, a launch each.

    TRITON_INTERPRET=1 python experiments/kernels/persistent/check.py
"""

import torch
from step import Config, Shape, Step

SMALL = Shape(hidden=128, num_heads=4, num_kv_heads=2, head_dim=32, intermediate=384)


def main() -> None:
    for lens in ([1], [300], [65, 1, 64, 130, 200]):
        for early, programs in ((False, 5), (True, 8)):
            step = Step(lens, 2, SMALL, torch.float32, "cpu")
            config = Config(programs, 4, 0, early, 2, (32, 16, 32, 16), 128)
            step.launch_by_phase(config)
            exact = step.reference(torch.float32)
            error = ((step.result() - exact).norm() / exact.norm()).item()
            print(lens, programs, error, flush=True)
            assert error < 1e-5


if __name__ == "__main__":
    main()
