"""Implementations of `paged.interfaces.Attention`, one a file."""
