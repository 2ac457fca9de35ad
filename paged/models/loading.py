"""Load a model: find it, read its configuration, fill the weights, build the decoder."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from paged.models.config import architecture_of, find_model, preset_config, read_config, spec_of
from paged.models.decoder import Decoder
from paged.models.dummy import dummy_weights
from paged.models.families import family_of
from paged.models.gguf_loader import GGUFCheckpoint
from paged.models.presets import PRESETS
from paged.models.safetensors_loader import stored_tensors
from paged.models.spec import DecoderSpec
from paged.models.weights import empty_weights, fill_weights, targets_of

LOAD_MODES = ("auto", "dummy")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class LoadedModel(NamedTuple):
    """A decoder ready for `allocate`, and what else its files say."""

    decoder: Decoder
    spec: DecoderSpec
    hf_config: Any  # of transformers
    eos_ids: tuple[int, ...]  # tokens that end a text
    tokenizer_path: Path | None  # for `paged.tokenizer.load_tokenizer`; None = it has no tokenizer


def load_model(
    model: str | Path,
    dtype: torch.dtype,
    device: torch.device | str,
    load: str = "auto",
) -> LoadedModel:
    """Load `model` onto `device`.

    Args:
        model: `stories`, a Hugging Face folder or hub id, a GGUF file, or with load=dummy also the
            name of a preset (`paged.models.presets`).
        dtype: of weights, activations and KV cache.
        load: `auto` reads the weights, `dummy` makes random ones and needs no weight files.

    Raises:
        ValueError: the model is not found, not supported, incomplete or damaged.
    """
    if load not in LOAD_MODES:
        raise ValueError(f"model.load must be one of {', '.join(LOAD_MODES)}, got {load!r}")
    if load == "dummy" and str(model) in PRESETS:
        hf_config = preset_config(str(model))
        spec = spec_of(hf_config)
        decoder = Decoder(spec, dummy_weights(spec, device, dtype))
        return LoadedModel(decoder, spec, hf_config, _as_ids(hf_config.eos_token_id), None)

    path = find_model(model, with_weights=load == "auto")
    checkpoint = GGUFCheckpoint(path) if path.is_file() else None
    hf_config = checkpoint.config() if checkpoint else read_config(path)
    spec = spec_of(hf_config)
    if checkpoint:
        spec = checkpoint.adapt(spec)
    if load == "dummy":
        weights = dummy_weights(spec, device, dtype)
    else:
        weights = empty_weights(spec, device, dtype)
        if checkpoint:
            _fill_from_gguf(weights, spec, checkpoint)
        else:
            _fill_from_folder(weights, spec, architecture_of(hf_config), path)
    eos_ids = _as_ids(hf_config.eos_token_id)
    tokenizer_path: Path | None = path
    if path.is_dir():
        eos_ids = _generation_eos(path) or eos_ids
        tokenizer_path = path if any((path / f).is_file() for f in TOKENIZER_FILES) else None
    return LoadedModel(Decoder(spec, weights), spec, hf_config, eos_ids, tokenizer_path)


def _as_ids(token_ids: int | list[int] | None) -> tuple[int, ...]:
    if token_ids is None:
        return ()
    return (token_ids,) if isinstance(token_ids, int) else tuple(token_ids)


def _generation_eos(folder: Path) -> tuple[int, ...]:
    """The end tokens of generation_config.json: chat models end turns with more than one."""
    file = folder / "generation_config.json"
    return _as_ids(json.loads(file.read_text()).get("eos_token_id")) if file.is_file() else ()


def _fill_from_gguf(
    weights: dict[str, torch.Tensor], spec: DecoderSpec, checkpoint: GGUFCheckpoint
) -> None:
    fill_weights(
        weights,
        targets_of(spec, checkpoint.names()),
        checkpoint.stored_tensors(),
        ignored=r"^rope_freqs\.weight$",
        convert=lambda target, values: checkpoint.convert(spec, target, values),
    )


def _fill_from_folder(
    weights: dict[str, torch.Tensor], spec: DecoderSpec, architecture: str, folder: Path
) -> None:
    family = family_of(architecture)
    fill_weights(
        weights,
        targets_of(spec, family.names, family.transposed),
        stored_tensors(folder),
        prefix=family.prefix,
        ignored=family.ignored,
    )
