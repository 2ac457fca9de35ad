"""How long a step takes: a line for each graph that can be replayed, in whole femtoseconds.

    seconds = constant + token * max(0, num_tokens - free_tokens)
            + sequence * num_seqs + key * num_keys

`num_keys` is the sum of the sequences' lengths: what attention reads. `free_tokens` is where the
roofline bends: with fewer tokens a linear layer takes as long as reading its weights.

A step's time jumps where a graph of more tokens is replayed, with larger grids and other tiles, so
every capacity for which there is a graph (paged/graphs.py) may have coefficients of its own.

The capacity is the one the step was launched with, not the smallest that would hold its tokens. The
host guesses it before the device knows what the step computes (`Ledger.guess`): prompts that are
found in the prefix cache, or that get no pages, leave a step with few tokens in a large graph, and
it takes as long as that graph takes. The simulator makes the same guess for the same step.

No coefficient is negative and no larger graph has a smaller constant: more work never takes less
time, and neither does the same work in more programs. `paged.simulator.fitting` fits one. A fit is
a small JSON file with what it was fitted from and how far it is off, so that a simulation can say
what its clock is worth.
"""

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

TIMES = Path(__file__).parent / "times"
TERMS = ("constant", "token", "sequence", "key")


@dataclass(frozen=True)
class Regime:
    """The coefficients of one captured graph.

    Args:
        capacity: tokens that it holds.
        constant, token, sequence, key: seconds of any step that replays it, and for each.
        num_steps: measured ones that it was fitted from; 0 = taken from its neighbours.
    """

    capacity: int
    constant: float
    token: float = 0.0
    sequence: float = 0.0
    key: float = 0.0
    num_steps: int = 0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what it computes and the graph that is replayed.

    Args:
        constant, token, sequence, key: seconds of a step in a graph larger than all `regimes`, and
            for each.
        free_tokens: tokens that add nothing.
        regimes: of the others, by capacity, ascending; a step belongs to the first that holds
            its capacity. Empty = one line for all graphs.
        kv_bytes_per_token: keys and values of the model, for turning memory into pages; 0 =
            unknown.
        model, device, source: what was measured, for people.
        steps: what it was fitted from: tokens, sequences, keys, seconds, capacity (0 = unknown),
            and the fit's seconds.
        num_steps, mean_error, largest_error: of the fit; errors are relative to the measured time.

    Raises ValueError if a coefficient is negative, or regimes or their constants do not ascend.
    """

    constant: float
    token: float = 0.0
    sequence: float = 0.0
    key: float = 0.0
    free_tokens: int = 0
    regimes: tuple[Regime, ...] = ()
    kv_bytes_per_token: int = 0
    model: str = ""
    device: str = ""
    source: str = ""
    num_steps: int = 0
    mean_error: float = 0.0
    largest_error: float = 0.0
    steps: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lines: tuple[Regime | StepTime, ...] = (*self.regimes, self)
        for line in lines:
            for name in TERMS:
                value = getattr(line, name)
                if not value >= 0:
                    raise ValueError(f"step_time.{name} must not be negative, got {value!r}")
            if line.constant == 0 and line.token == 0:
                raise ValueError("step_time.constant and token are both 0: time would stand still")
        capacities = [regime.capacity for regime in self.regimes]
        if capacities != sorted(set(capacities)):
            raise ValueError(f"step_time.regimes must have ascending capacities, got {capacities}")
        constants = [*(regime.constant for regime in self.regimes), self.constant]
        if constants != sorted(constants):
            raise ValueError(f"step_time.regimes must have ascending constants, got {constants}")

    @functools.cached_property
    def _femtoseconds(self) -> list[tuple[int, ...]]:
        """Of each regime, then of larger graphs."""
        lines: tuple[Regime | StepTime, ...] = (*self.regimes, self)
        return [tuple(round(getattr(line, name) * 1e15) for name in TERMS) for line in lines]

    @property
    def unmeasured(self) -> list[int]:
        """Capacities whose coefficients were taken from other graphs."""
        return [regime.capacity for regime in self.regimes if regime.num_steps == 0]

    def femtoseconds(self, capacity: int) -> tuple[int, ...]:
        """The coefficients of a graph of `capacity` tokens as whole numbers, in `TERMS`' order."""
        return self._femtoseconds[sum(regime.capacity < capacity for regime in self.regimes)]

    def seconds(
        self, num_tokens: int, num_seqs: int, num_keys: int, capacity: int | None = None
    ) -> float:
        """Of a step, in whole nanoseconds; summed in integers, so that every machine agrees.

        `capacity` is that of its launch; None is the smallest graph that holds its tokens.
        """
        line = self.femtoseconds(num_tokens if capacity is None else capacity)
        constant, token, sequence, key = line
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
        regimes = tuple(Regime(**regime) for regime in content.pop("regimes", ()))
        return StepTime(regimes=regimes, **content)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"step_time: {path} is not a fit ({error})") from error
