"""How long a step takes, as a linear model fitted from measured steps.

    seconds = constant + token * max(0, num_tokens - free_tokens)
            + sequence * num_seqs + key * num_keys

`num_keys` is the sum of the sequences' lengths: what attention reads. `free_tokens` is where the
roofline bends: with fewer tokens a linear layer takes as long as reading its weights. No
coefficient is negative: more work never takes less time. A fit is a small JSON file with what it
was fitted from and how far it is off, so that a simulation can say what its clock is worth.

Least squares of the relative error, because a step of 2 ms and a prefill of 300 ms matter alike;
sets of coefficients are tried, of all sizes, which is exact for so few, and `free_tokens` from a
short list. Rows are divided by the measured seconds, then twice more by what the pass before
predicted (iteratively reweighted least squares): divided by their own measurement, steps that were
seen too early would weigh most and pull every time down.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TIMES = Path(__file__).parent / "times"
TERMS = ("constant", "token", "sequence", "key")
PASSES = 3  # of the fit; two change its third digit no more
BENDS = (0, 16, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512)  # choices of free_tokens


class MeasuredStep(NamedTuple):
    """A step as it was measured."""

    num_tokens: int
    num_seqs: int
    num_keys: int
    seconds: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what it computes.

    Args:
        constant, token, sequence, key: seconds of any step, and for each.
        free_tokens: tokens that add nothing.
        kv_bytes_per_token: keys and values of the model, for turning memory into pages; 0 =
            unknown.
        model, device, source: what was measured, for people.
        steps: what it was fitted from: tokens, sequences, keys, seconds, and the fit's seconds.
        num_steps, mean_error, largest_error: of the fit; errors are relative to the measured time.
    """

    constant: float
    token: float = 0.0
    sequence: float = 0.0
    key: float = 0.0
    free_tokens: int = 0
    kv_bytes_per_token: int = 0
    model: str = ""
    device: str = ""
    source: str = ""
    num_steps: int = 0
    mean_error: float = 0.0
    largest_error: float = 0.0
    steps: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in TERMS:
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"step_time.{name} must not be negative, got {value!r}")
        if self.constant == 0 and self.token == 0:
            raise ValueError("step_time.constant and token are both 0: time would stand still")

    @functools.cached_property
    def femtoseconds(self) -> tuple[int, ...]:
        """The coefficients as whole numbers, in the order of `TERMS`."""
        return tuple(round(getattr(self, name) * 1e15) for name in TERMS)

    def seconds(self, num_tokens: int, num_seqs: int, num_keys: int) -> float:
        """Of a step, in whole nanoseconds; summed in integers, so that every machine agrees."""
        constant, token, sequence, key = self.femtoseconds
        beyond = max(0, num_tokens - self.free_tokens)
        work = constant + token * beyond + sequence * num_seqs + key * num_keys
        return max(1, work // 1_000_000) / 1e9

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load_step_time(name: str) -> StepTime:
    """A fit by the name of a shipped one, or by its path."""
    path = Path(name).expanduser()
    if path.suffix != ".json":
        path = TIMES / f"{name}.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        shipped = ", ".join(sorted(one.stem for one in TIMES.glob("*.json")))
        raise ValueError(
            f"step_time must be a .json file of a fit or one of {shipped}, got {name!r} ({error})"
        ) from error
    try:
        return StepTime(**content)
    except TypeError as error:
        raise ValueError(f"step_time: {path} is not a fit ({error})") from error


def fit(
    steps: Sequence[MeasuredStep],
    *,
    given: Mapping[str, float] | None = None,
    keep: int = 32,
    kv_bytes_per_token: int = 0,
    model: str = "",
    device: str = "",
    source: str = "",
) -> StepTime:
    """The model nearest to the steps.

    Args:
        given: coefficients that are known otherwise, by name: few steps, all of one kind, cannot
            tell tokens, sequences and keys apart.
        kv_bytes_per_token, model, device, source: as the result's.
        keep: steps kept in the file, evenly spread over the measured times.

    Raises ValueError if no step is given, or none that took time.
    """
    usable = [step for step in steps if step.seconds > 0 and step.num_tokens > 0]
    if not usable:
        raise ValueError("a fit needs at least one step with tokens that took time, got none")
    table = np.array(usable, dtype=np.float64)
    seconds = table[:, 3]
    known = np.array([(given or {}).get(name, 0.0) for name in TERMS])
    open_terms = [at for at, name in enumerate(TERMS) if name not in (given or {})]
    predicted = seconds
    for _ in range(PASSES):
        least, scale = np.inf, predicted
        for free_tokens in BENDS:
            beyond = np.maximum(table[:, 0] - free_tokens, 0)
            terms = np.column_stack((np.ones(len(table)), beyond, table[:, 1:3]))
            trial = known.copy()
            rest = (seconds - terms @ known) / scale
            trial[open_terms] = _nonnegative(terms[:, open_terms] / scale[:, None], rest)
            residual = float((((terms @ trial - seconds) / scale) ** 2).sum())
            if residual < least * (1 - 1e-9):
                least, best, bend, predicted = residual, trial, free_tokens, terms @ trial
    error = np.abs(predicted / seconds - 1)
    shown = np.argsort(seconds, kind="stable")
    shown = shown[np.unique(np.linspace(0, len(shown) - 1, min(keep, len(shown))).astype(int))]
    return StepTime(
        **dict(zip(TERMS, best.tolist())),
        free_tokens=bend,
        kv_bytes_per_token=kv_bytes_per_token,
        model=model,
        device=device,
        source=source,
        num_steps=len(usable),
        mean_error=float(error.mean()),
        largest_error=float(error.max()),
        steps=[
            usable[at]._asdict() | {"fitted_seconds": float(predicted[at])} for at in shown.tolist()
        ],
    )


def _nonnegative(terms: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with coefficients from 0 up, by trying every set of them."""
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    best, least = np.zeros(terms.shape[1]), np.inf
    for count in range(1, terms.shape[1] + 1):
        for chosen in itertools.combinations(range(terms.shape[1]), count):
            columns = list(chosen)
            solution = np.linalg.lstsq(terms[:, columns] / scale[columns], target, rcond=None)[0]
            if (solution < 0).any():
                continue
            trial = np.zeros(terms.shape[1])
            trial[columns] = solution / scale[columns]
            residual = float(((terms @ trial - target) ** 2).sum())
            if residual < least * (1 - 1e-9):
                best, least = trial, residual
    return best


def steps_of_run(folder: Path) -> list[MeasuredStep]:
    """The steps of a run folder, by its steps.jsonl.

    The first step, which may compile, is left out.

    Raises ValueError if the file is not there, or its steps have no `num_keys`.
    """
    path = folder / "steps.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"a run folder holds steps.jsonl, got {folder} ({error})") from error
    return list(_measured(records))[1:]


def _measured(records: Iterable[Mapping[str, Any]]) -> Iterable[MeasuredStep]:
    for record in records:
        if "num_keys" not in record:
            raise ValueError(
                "steps.jsonl has no num_keys: it was written before steps reported the keys they "
                "attend to; run it again"
            )
        yield MeasuredStep(
            record["num_tokens"], record["num_seqs"], record["num_keys"], record["seconds"]
        )
