"""One decoder described by data, the families that map onto it, and their weights."""

from paged.models.decoder import Decoder
from paged.models.loading import LoadedModel, load_model
from paged.models.spec import DecoderSpec, RopeSpec, kv_bytes_per_page

__all__ = ["Decoder", "DecoderSpec", "LoadedModel", "RopeSpec", "kv_bytes_per_page", "load_model"]
