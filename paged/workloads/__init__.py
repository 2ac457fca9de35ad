"""Workloads: what is asked of the engine. One file each."""
