"""Policies that drop pages of running requests, one a file."""
