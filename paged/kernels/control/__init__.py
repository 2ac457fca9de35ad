"""The control kernels of a step: every decision of the engine, on device-resident state."""
