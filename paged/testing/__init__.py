"""Public helpers for testing kernels and policies, ours or a researcher's."""
