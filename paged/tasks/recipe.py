"""How to make the engine of a run, for tasks that make it themselves, more than once, or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paged.llm import LLM
from paged.models.config import find_model, preset_config, read_config, spec_of
from paged.models.gguf_loader import GGUFCheckpoint
from paged.models.presets import PRESETS
from paged.models.spec import DecoderSpec
from paged.sizing import resolve_dtype


@dataclass(frozen=True)
class Recipe:
    """Arguments of `LLM` by name; components may be objects or None for the default."""

    arguments: Mapping[str, Any]

    def build(self, **changes: Any) -> LLM:
        """A new engine with its weights on the device; `changes` replace arguments."""
        return LLM(**{**self.arguments, **changes})

    @property
    def model(self) -> str:
        return self.arguments.get("model", "stories")

    @property
    def is_dummy(self) -> bool:
        return self.arguments.get("load") == "dummy"

    def dtype(self, device: Any) -> Any:
        """Precision of weights and activations on `device`."""
        return resolve_dtype(self.arguments.get("dtype", "auto"), device)

    def hf_config(self) -> Any:
        """The model's transformers configuration, without its weights."""
        if self.is_dummy and self.model in PRESETS:
            return preset_config(self.model)
        path = find_model(self.model, with_weights=False)
        return GGUFCheckpoint(path).config() if path.is_file() else read_config(path)

    def spec(self) -> DecoderSpec:
        """The decoder that the configuration describes."""
        return spec_of(self.hf_config())

    def name(self) -> str:
        """The model for the eye."""
        return f"{self.model}, random weights" if self.is_dummy else self.model
