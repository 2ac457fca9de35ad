"""A model of step times (step_time.py) from measured steps.

Least squares of the relative error, because a step of 2 ms and a prefill of 300 ms matter alike.
Rows are divided by the measured seconds, then some times more by what the pass before predicted
(iteratively reweighted least squares): divided by their own measurement, steps that were seen too
early would weigh most and pull every time down. A step that is far off weighs less (Huber, 1964),
for a host that pauses makes one step long that was not, and the next one short.

Where all steps have one line, `free_tokens` is tried from a short list. Where the capacities are
known that steps were launched with, each has a line of its own, and the bend is between them.
Constants are then fitted as jumps from one graph to the next larger, each from 0 up. What the steps
of a graph leave open is drawn, with the weight of a fraction of a step, to no jump and to the time
a sequence and a key of all steps together: decodes alone, with one token a sequence, cannot tell
tokens from sequences, and steps of nearly equal tokens cannot tell them from the constant.

A graph with fewer than `ENOUGH` steps gets no line of its own: its coefficients lie, by capacity,
on the straight line between the nearest graphs below and above that have one, and equal the
nearest's where there are none on one side. So a trace of decodes says little of long prompts, and
the fit says so: `num_steps` of that regime is 0.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paged.graphs import REGIMES
from paged.simulator.step_time import TERMS, Regime, StepTime

PASSES = 5  # of the fit; more change its third digit no more
BENDS = (0, 16, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512)  # choices of free_tokens
ENOUGH = 5  # steps of a graph for a line of its own
FAR = 0.2  # relative error from which a step weighs less (Huber)
PULL = 0.03  # weight of what is drawn to 0, of a step's


class MeasuredStep(NamedTuple):
    """A step as it was measured."""

    num_tokens: int
    num_seqs: int
    num_keys: int
    seconds: float
    capacity: int = 0  # of the graph that was replayed; 0 = unknown


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

    All steps have one line where a capacity is unknown, no graph has `ENOUGH` steps, or something
    is given.

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
    counts = Counter(step.capacity for step in usable)
    measured = [size for size in sorted(counts) if counts[size] >= ENOUGH]
    regimes: list[Regime] = []
    if 0 in counts or not measured or given:
        line, bend = _one_line(table, given or {}, BENDS)
    else:
        rows = table[np.isin(table[:, 4], measured)]
        lines = _lines(rows, measured, _one_line(rows, {}, (0,))[0])
        for size in sorted({*counts, *REGIMES}):
            line = np.array([np.interp(size, measured, values) for values in lines.T])
            had = counts[size] if size in measured else 0
            regimes.append(Regime(size, num_steps=had, **dict(zip(TERMS, line.tolist()))))
        bend = 0  # and `line` is that of the largest: nothing is known of larger ones
    found = StepTime(
        **dict(zip(TERMS, line.tolist())),
        free_tokens=bend,
        regimes=tuple(regimes),
        kv_bytes_per_token=kv_bytes_per_token,
        model=model,
        device=device,
        source=source,
        num_steps=len(usable),
    )
    seconds = table[:, 3]
    predicted = np.array([found.seconds(*one[:3], one.capacity) for one in usable])
    error = np.abs(predicted / seconds - 1)
    shown = np.argsort(seconds, kind="stable")
    shown = shown[np.unique(np.linspace(0, len(shown) - 1, min(keep, len(shown))).astype(int))]
    return replace(
        found,
        mean_error=float(error.mean()),
        largest_error=float(error.max()),
        steps=[
            usable[at]._asdict() | {"fitted_seconds": float(predicted[at])} for at in shown.tolist()
        ],
    )


def _one_line(
    table: np.ndarray, given: Mapping[str, float], bends: Sequence[int]
) -> tuple[np.ndarray, int]:
    """Coefficients [4] of all steps together, and the best of `bends`."""
    seconds = table[:, 3]
    known = np.array([given.get(name, 0.0) for name in TERMS])
    is_open = np.array([name not in given for name in TERMS])
    scale = seconds
    for _ in range(PASSES):
        least = np.inf
        for free_tokens in bends:
            terms = _terms(table, free_tokens)
            trial = known.copy()
            rest = (seconds - terms @ known) / scale
            trial[is_open] = _nonnegative(terms[:, is_open] / scale[:, None], rest)
            residual = float((((terms @ trial - seconds) / scale) ** 2).sum())
            if residual < least * (1 - 1e-9):
                least, best, bend, predicted = residual, trial, free_tokens, terms @ trial
        scale = _scale(predicted, seconds)
    return best, bend


def _scale(predicted: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """What a pass divides its rows by: `predicted`, and more where the error is beyond `FAR`."""
    error = np.abs(seconds / predicted - 1)
    return predicted * np.sqrt(np.maximum(error / FAR, 1))


def _lines(table: np.ndarray, measured: Sequence[int], shared: np.ndarray) -> np.ndarray:
    """Coefficients [R, 4] of the graphs in `measured`; `shared` [4] is the line of all steps."""
    count = len(measured)
    seconds, typical = table[:, 3], table[:, 3].mean()
    own = table[:, 4, None] == np.array(measured)  # [steps, R]
    terms = _terms(table, 0)
    # R jumps, of which a step has those up to its graph, then R tokens, R sequences and R keys
    jumps = table[:, 4, None] >= np.array(measured)
    columns = np.hstack((jumps, *(own * work[:, None] for work in terms.T[1:])))
    drawn_to = np.repeat(shared * (0, 0, 1, 1), count)
    weight = np.repeat(PULL * terms.mean(axis=0) / typical, count)
    weight[[0, *range(count, 2 * count)]] = 0.0  # not the first constant, and not the tokens
    scale = seconds
    for _ in range(PASSES):
        weighed = np.vstack((columns / scale[:, None], np.diag(weight)))
        best = _nonnegative(weighed, np.append(seconds / scale, weight * drawn_to))
        scale = _scale(columns @ best, seconds)
    steps_up, *others = best.reshape(4, count)
    return np.column_stack((np.cumsum(steps_up), *others))


def _terms(table: np.ndarray, free_tokens: int) -> np.ndarray:
    """[steps, 4]: what a step has of each of `TERMS`."""
    beyond = np.maximum(table[:, 0] - free_tokens, 0)
    return np.column_stack((np.ones(len(table)), beyond, table[:, 1:3]))


def _nonnegative(terms: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with coefficients from 0 up (Lawson and Hanson, 1974, chapter 23).

    Of columns that say the same the first is taken.
    """
    lengths = np.maximum(np.linalg.norm(terms, axis=0), 1e-300)
    # The triangle of a QR has the same optimum in far fewer rows.
    small: Any = np.linalg.qr(np.column_stack((terms / lengths, target)), mode="r")
    terms, target = small[:, :-1], small[:, -1]
    solution, taken = np.zeros(terms.shape[1]), np.zeros(terms.shape[1], bool)
    for _ in range(10 * len(solution)):
        gain = np.where(taken, 0.0, terms.T @ (target - terms @ solution))
        if gain.max(initial=0.0) <= 1e-10 * np.linalg.norm(target):
            break
        taken[np.argmax(gain >= gain.max() * (1 - 1e-6))] = True  # the first of the best
        while True:
            trial = np.zeros(len(solution))
            trial[taken] = np.linalg.lstsq(terms[:, taken], target, rcond=None)[0]
            negative = taken & (trial <= 0)
            if not negative.any():
                break
            # As far towards the trial as no coefficient falls under 0; the first to reach 0 leaves.
            share = solution[negative] / (solution[negative] - trial[negative] + 1e-300)
            solution = solution + share.min() * (trial - solution)
            taken &= ~negative | (solution > 1e-15)
            solution[~taken] = 0.0
        solution = trial
    return solution / lengths


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
            record["num_tokens"],
            record["num_seqs"],
            record["num_keys"],
            record["seconds"],
            record.get("capacity", 0),  # a simulation's steps do not say
        )
