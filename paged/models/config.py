"""Find a model by name, and read its configuration.

A model is named by `stories` (embedded), a Hugging Face folder, a GGUF file, a hub id, or, for
random weights, a preset.
"""

import json
from pathlib import Path
from typing import Any

from paged.models.families import family_of
from paged.models.presets import PRESETS
from paged.models.spec import DecoderSpec

EMBEDDED = {"stories": Path(__file__).parent / "stories"}
CONFIG_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]  # configuration and tokenizer


def find_model(model: str | Path, with_weights: bool = True) -> Path:
    """The folder or GGUF file of `model`; a hub id is downloaded, or found in the cache.

    Raises ValueError if there is no such model, saying what was tried.
    """
    path = EMBEDDED.get(str(model), Path(model).expanduser())
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ValueError(f"model must be a folder or a .gguf file, got the file {path}")
    if path.is_absolute() or str(model).startswith((".", "~")):
        raise ValueError(f"model must be a folder or a .gguf file, and {path} does not exist")
    return _download(str(model), with_weights)


def _download(repo_id: str, with_weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        wanted = [*CONFIG_FILES, "model*.safetensors"] if with_weights else CONFIG_FILES
        folder = Path(snapshot_download(repo_id, allow_patterns=wanted))
        if with_weights and not any(folder.glob("*.safetensors")):
            snapshot_download(repo_id, allow_patterns=["pytorch_model*.bin*"])
        return folder
    except (OSError, ValueError) as error:
        hint = "; this preset needs load=dummy" if repo_id in PRESETS else ""
        raise ValueError(
            "model must be a folder, a .gguf file, a hub id that can be downloaded or "
            f"{', '.join(EMBEDDED)}; got {repo_id!r}: {str(error).splitlines()[0]}{hint}"
        ) from error


def read_config(folder: Path) -> Any:
    """The transformers configuration of a folder.

    Raises ValueError if config.json is missing or damaged, or describes a quantised checkpoint or
    an architecture that is not supported.
    """
    from transformers import AutoConfig

    file = folder / "config.json"
    try:
        entries = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a model: it holds no config.json") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not valid JSON ({error}); copy it again") from error
    if "quantization_config" in entries:
        method = entries["quantization_config"].get("quant_method", "unknown")
        raise ValueError(
            f"{file}: quantised checkpoints are supported as GGUF only, got quant_method {method!r}"
        )
    for architecture in entries.get("architectures") or ():
        family_of(architecture)  # before transformers, which may not know it either
    return AutoConfig.from_pretrained(folder)


def preset_config(name: str) -> Any:
    """The transformers configuration of a preset."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**PRESETS[name])


def architecture_of(hf_config: Any) -> str:
    """The architecture that a configuration names, or the causal language model of its type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if hf_config.architectures:
        return hf_config.architectures[0]
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(hf_config.model_type, hf_config.model_type)


def spec_of(hf_config: Any) -> DecoderSpec:
    """The decoder that a configuration describes; ValueError if it is not supported."""
    return family_of(architecture_of(hf_config)).spec_from_config(hf_config)
