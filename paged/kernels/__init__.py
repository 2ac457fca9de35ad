"""Triton kernels, one operation a file: kernel, launcher, reference, inputs."""
