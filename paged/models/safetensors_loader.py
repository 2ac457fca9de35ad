"""Checkpoints of a Hugging Face folder: safetensors, one file or sharded, memory-mapped.

Folders that only hold the older pytorch_model.bin (such as facebook/opt-125m) are read too, with
torch's weights-only unpickler.
"""

import json
import zipfile
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from paged.models.weights import StoredTensor

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that hold the weights, from the index if there is one.

    Raises ValueError if there are none, or if the index names a file that is not there.
    """
    for single in SINGLE_FILES:
        index = folder / f"{single}.index.json"
        if index.is_file():
            return _indexed_files(index)
        if (folder / single).is_file():
            return [folder / single]
    raise ValueError(
        f"{folder} holds no weights, looked for {' and '.join(SINGLE_FILES)} and their "
        ".index.json; use load=dummy for random weights"
    )


def _indexed_files(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{index}: not an index of weights ({error!r}); copy it again") from error
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ValueError(f"{index} names files that are missing: {', '.join(absent)}")
    return files


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Every tensor of the folder's checkpoint, unread. ValueError names a file that is damaged."""
    tensors: list[StoredTensor] = []
    for file in checkpoint_files(folder):
        tensors += _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    return tensors


def _safetensors(file: Path) -> list[StoredTensor]:
    try:
        handle = safe_open(file, framework="pt", device="cpu")  # maps the file, checks its length
    except SafetensorError as error:
        raise ValueError(
            f"{file}: corrupt or truncated safetensors file ({error}); copy it again"
        ) from error
    return [
        StoredTensor(
            name,
            file,
            tuple(handle.get_slice(name).get_shape()),
            partial(handle.get_tensor, name),
        )
        for name in handle.keys()  # noqa: SIM118 - not a mapping
    ]


def _pickled(file: Path) -> list[StoredTensor]:
    try:
        values = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise ValueError(
            f"{file}: corrupt or truncated checkpoint ({error}); copy it again"
        ) from error
    return [
        StoredTensor(name, file, tuple(tensor.shape), tensor.detach)
        for name, tensor in values.items()
    ]
