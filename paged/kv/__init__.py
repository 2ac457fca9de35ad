"""Allocators of KV memory."""
