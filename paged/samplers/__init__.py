"""Samplers: how a token is drawn from the logits of each sampled row."""
