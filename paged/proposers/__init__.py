"""Proposers: which tokens probably come next, to be verified several at a time."""
