"""What a caller asks for and what comes back. Names and defaults are vLLM's where it has them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from paged.kernels.control.columns import NUM_STOP_IDS

MAX_STOP_IDS = NUM_STOP_IDS.value


@dataclass
class SamplingParams:
    """How to continue a prompt.

    Args:
        max_tokens: output tokens at most; None continues to the model's length.
        min_tokens: stop tokens cannot be drawn before this many output tokens.
        temperature: 0 is greedy.
        top_p: smallest set of tokens whose probability reaches this; 1 is off.
        top_k: this many most probable tokens; 0 or -1 is off.
        min_p: tokens at least this probable relative to the most probable one; 0 is off.
        seed: of this request's draws; None takes one from the engine's seed.
        stop_token_ids: tokens that end the output, beside the model's own.
        ignore_eos: go on after the model's end-of-sequence tokens.
        priority, client, predicted_tokens, deadline: read by scheduling policies. Smaller
            priority is served first; the deadline is in seconds from submission.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    priority: int = 0
    client: int = 0
    predicted_tokens: int | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        def require(holds: bool, rule: str, value: object) -> None:
            if not holds:
                raise ValueError(f"SamplingParams.{rule}, got {value!r}")

        for name in ("min_tokens", "top_k", "priority", "client"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and abs(value) < 2**31, f"{name} must be an int of 32 bits", value)
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            real = isinstance(value, int | float) and not isinstance(value, bool)
            require(real, f"{name} must be a number", value)
        if self.max_tokens is not None:
            whole = isinstance(self.max_tokens, int)
            require(
                whole and self.max_tokens >= 1, "max_tokens must be at least 1", self.max_tokens
            )
            rule = f"min_tokens must be at most max_tokens ({self.max_tokens})"
            require(self.min_tokens <= self.max_tokens, rule, self.min_tokens)
        require(self.min_tokens >= 0, "min_tokens must not be negative", self.min_tokens)
        require(
            0 <= self.temperature < float("inf"),
            "temperature must be 0 (greedy) or a positive number",
            self.temperature,
        )
        require(0 < self.top_p <= 1, "top_p must be in (0, 1]", self.top_p)
        require(self.top_k >= -1, "top_k must be -1 or 0 (off) or positive", self.top_k)
        require(0 <= self.min_p <= 1, "min_p must be in [0, 1]", self.min_p)
        seed_fits = self.seed is None or -(2**63) <= self.seed < 2**63
        require(seed_fits, "seed must be an int of 64 bits", self.seed)
        few = len(self.stop_token_ids) <= MAX_STOP_IDS
        require(few, f"stop_token_ids can name at most {MAX_STOP_IDS} tokens", self.stop_token_ids)


@dataclass
class RequestMetrics:
    """Times in seconds on one clock (time.perf_counter)."""

    arrival_time: float
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0

    @property
    def ttft(self) -> float | None:
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first."""
        if self.first_token_time is None or self.last_token_time is None:
            return None
        if self.num_output_tokens < 2:
            return None
        return (self.last_token_time - self.first_token_time) / (self.num_output_tokens - 1)

    @property
    def e2e(self) -> float | None:
        return None if self.finished_time is None else self.finished_time - self.arrival_time


@dataclass
class CompletionOutput:
    """One continuation: `finish_reason` is stop, length, abort or error once it has ended."""

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of each token, raw distribution
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    """A request and what has come of it so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    finished: bool = False
    error: str | None = None
