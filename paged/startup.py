"""Where the time of a start goes."""

import time

import torch

import paged


class StartClock:
    """Seconds of each phase, from the package's first import on; what the device does counts."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds = {"imports and configuration": self._last - paged.IMPORTED_AT}

    def end(self, phase: str, device: torch.device, without: float = 0.0) -> None:
        """End `phase`; `without` are seconds of it that are another phase's."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        self.seconds[phase] = now - self._last - without
        self._last = now
