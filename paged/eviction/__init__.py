"""Eviction policies: one file each, one function each."""
