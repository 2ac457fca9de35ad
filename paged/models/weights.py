"""From stored tensors to the decoder's weights: one at a time, checked, straight to the device."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from paged.models.spec import DecoderSpec, row_range, weight_shapes


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint that is not read yet."""

    name: str
    file: Path
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Target:
    """Where a stored tensor goes: rows of one of our weights."""

    weight: str
    rows: slice
    transposed: bool = False  # stored as [in_features, out_features]
    part: str = ""  # q, k, v, gate or up


def targets_of(
    spec: DecoderSpec, names: dict[str, str], transposed_layers: bool = False
) -> dict[str, Target]:
    """The target of every stored name that the spec asks for, from a family's table of names."""
    shapes = weight_shapes(spec)
    targets = {}
    for stored, ours in names.items():
        for i in range(spec.num_layers if "{i}" in stored else 1):
            module, _, part = ours.format(i=i).partition("/")
            for kind in ("weight", "bias"):
                weight = f"{module}.{kind}"
                if weight not in shapes:
                    continue
                rows = row_range(spec, part) if part else slice(0, shapes[weight][0])
                transposed = transposed_layers and "{i}" in stored and len(shapes[weight]) == 2
                targets[f"{stored.format(i=i)}.{kind}"] = Target(weight, rows, transposed, part)
    return targets


def empty_weights(
    spec: DecoderSpec, device: torch.device | str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Uninitialised weights of every shape the spec asks for."""
    shapes = weight_shapes(spec)
    return {name: torch.empty(s, device=device, dtype=dtype) for name, s in shapes.items()}


def fill_weights(
    weights: dict[str, torch.Tensor],
    targets: dict[str, Target],
    stored: Iterable[StoredTensor],
    *,
    prefix: str = "",
    ignored: str = "$^",
    convert: Callable[[Target, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Copy every stored tensor into its rows of `weights`, in their dtype.

    A stored name may lack `prefix`; names that match `ignored` are passed over. `convert` changes
    a tensor before it is copied. Raises ValueError naming the missing or unexpected tensors, or
    the file and the tensor whose shape is wrong, before anything of that tensor is copied.
    """
    found, unexpected = {}, []
    for tensor in stored:
        name = tensor.name if tensor.name in targets else prefix + tensor.name
        if name in targets:
            found[name] = tensor
        # a tied model may store its head again
        elif not re.search(ignored, tensor.name) and tensor.name not in TIED_HEADS:
            unexpected.append(f"{tensor.name} ({tensor.file.name})")
    missing = [name for name in targets if name not in found]
    if missing or unexpected:
        raise ValueError(
            "the checkpoint does not fit its configuration: "
            + "; ".join(
                f"{len(names)} {kind} tensors: {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
                for kind, names in (("missing", missing), ("unexpected", unexpected))
                if names
            )
        )
    for name, tensor in found.items():
        target = targets[name]
        rows = weights[target.weight][target.rows]
        wanted = tuple(rows.shape)[::-1] if target.transposed else tuple(rows.shape)
        if tensor.shape != wanted:
            raise ValueError(
                f"{tensor.file}: tensor {tensor.name} must have shape {list(wanted)}, "
                f"got {list(tensor.shape)}"
            )
        values = tensor.read()
        if convert is not None:
            values = convert(target, values)
        rows.copy_(values.T if target.transposed else values)


TIED_HEADS = ("lm_head.weight", "output.weight")
