"""Attention sinks and a sliding window (Xiao et al., "StreamingLLM", 2023): the oldest page goes.

A request of any length holds a bounded number of pages. Unlike there, keys keep the rotation of
their true positions.
"""

from paged.interfaces import Model
from paged.kernels.control.compress import Drops
from paged.kv.compression.base import PageCompression
from paged.state import RequestTable


class StreamingLLM(PageCompression):
    """Takes the keys of `PageCompression` by name; the window is what `pages` leaves of it."""

    def __init__(self, **knobs) -> None:
        super().__init__(**knobs)

    def scores(self, requests: RequestTable, drops: Drops, model: Model) -> None:
        """All stay 0, and of equal pages the oldest goes."""
