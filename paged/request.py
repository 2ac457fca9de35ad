"""What a caller asks for and what comes back. Names and defaults are vLLM's where it has them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from paged.kernels.control.columns import NUM_STOP_IDS
from paged.kernels.logit_edits import MAX_LOGPROBS

MAX_STOP_IDS = NUM_STOP_IDS.value
MAX_TOP = MAX_LOGPROBS.value


@dataclass(frozen=True)
class StructuredOutputsParams:
    """What the output must be; exactly one of them. Names are vLLM's.

    Args:
        json: a JSON schema, as text or as a dictionary.
        regex: a regular expression of the whole output.
        choice: one of these strings.
        grammar: in Lark or GBNF.
        json_object: any JSON object.
        disable_any_whitespace: JSON without spaces and line breaks; small models may go on with
            them for ever.
    """

    json: str | dict | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        if len(self._given) != 1:
            raise ValueError(
                "StructuredOutputsParams takes exactly one of json, regex, choice, grammar, "
                f"json_object, got {', '.join(self._given) or 'none'}"
            )
        if self.choice is not None and not self.choice:
            raise ValueError("StructuredOutputsParams.choice must hold a string, got none")

    @property
    def kind(self) -> str:
        """The name of the one that is given."""
        return self._given[0]

    @property
    def _given(self) -> list[str]:
        values = vars(self).items()
        given = [name for name, value in values if value is not None and value is not False]
        return [name for name in given if name != "disable_any_whitespace"]


@dataclass
class SamplingParams:
    """How to continue a prompt.

    Args:
        n: outputs to draw, each with a stream of its own from the seed; the first is what n=1
            would give. The prompt is computed once.
        best_of: draw so many, and keep the n with the highest log-probability per token, best
            first; None draws n.
        max_tokens: output tokens at most; None continues to the model's length.
        min_tokens: stop tokens cannot be drawn before this many output tokens.
        temperature: 0 is greedy.
        top_p: smallest set of tokens whose probability reaches this; 1 is off.
        top_k: this many most probable tokens; 0 or -1 is off.
        min_p: tokens at least this probable relative to the most probable one; 0 is off.
        repetition_penalty: over 1, tokens of the prompt and the output become less probable.
        presence_penalty: over 0, tokens of the output become less probable.
        frequency_penalty: the same by how often the output holds them.
        logit_bias: {token id: what is added to its logit}.
        allowed_token_ids: the only tokens that can be drawn; None allows all.
        bad_words: texts, or lists of token ids, that the output must not contain.
        forced_token_ids: the beginning of the output, given instead of drawn, whatever else is
            asked for: the replay of a recorded answer. Their log-probabilities are the model's.
        structured_outputs: a grammar that the output must follow.
        logprobs: how many of the most probable tokens to report beside each token of the output,
            at most 20; None reports none.
        prompt_logprobs: the same for the tokens of the prompt but the first. The prompt is then
            computed a token a step, and nothing of it is taken from the prefix cache.
        seed: of this request's draws; None takes one from the engine's seed.
        stop: a string or several: the output ends where the first of them is complete, also
            across tokens, and its text is cut in front of it. Not looked for before min_tokens.
        include_stop_str_in_output: keep the stop string, or the text of the stop token.
        stop_token_ids: tokens that end the output, beside the model's own.
        ignore_eos: go on after the model's end-of-sequence tokens.
        detokenize: turn tokens into text.
        skip_special_tokens: leave special tokens out of the text.
        truncate_prompt_tokens: keep only so many tokens of the prompt, the last; -1 keeps what
            leaves room for max_tokens (one if that is None).
        priority, client, predicted_tokens, deadline: read by scheduling policies. Smaller
            priority is served first; the deadline is in seconds from submission.
    """

    n: int = 1
    best_of: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str | Sequence[int]] = ()
    forced_token_ids: Sequence[int] = ()
    structured_outputs: StructuredOutputsParams | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    priority: int = 0
    client: int = 0
    predicted_tokens: int | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        def require(holds: bool, rule: str, value: object) -> None:
            if not holds:
                raise ValueError(f"SamplingParams.{rule}, got {value!r}")

        for name in ("n", "min_tokens", "top_k", "priority", "client"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and abs(value) < 2**31, f"{name} must be an int of 32 bits", value)
        for name in (
            "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
            "frequency_penalty",
        ):  # fmt: skip
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
        require(self.n >= 1, "n must be at least 1", self.n)
        most = self.best_of
        enough = most is None or (isinstance(most, int) and self.n <= most < 2**31)
        require(enough, f"best_of must be at least n ({self.n})", most)
        varied = self.num_outputs == 1 or self.temperature > 0
        name = "n" if most is None else "best_of"
        rule = f"{name} must be 1 with temperature=0: all outputs would be equal"
        require(varied, rule, self.num_outputs)
        require(0 < self.top_p <= 1, "top_p must be in (0, 1]", self.top_p)
        require(self.top_k >= -1, "top_k must be -1 or 0 (off) or positive", self.top_k)
        require(0 <= self.min_p <= 1, "min_p must be in [0, 1]", self.min_p)
        positive = 0 < self.repetition_penalty < float("inf")
        require(positive, "repetition_penalty must be positive", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            require(-2 <= value <= 2, f"{name} must be in [-2, 2]", value)
        finite = all(math.isfinite(bias) for bias in (self.logit_bias or {}).values())
        require(finite, "logit_bias must hold finite numbers", self.logit_bias)
        some = self.allowed_token_ids is None or len(self.allowed_token_ids) > 0
        require(some, "allowed_token_ids must allow a token", self.allowed_token_ids)
        is_list = not isinstance(self.bad_words, str) and all(map(len, self.bad_words))
        require(is_list, "bad_words must be a list of words that are not empty", self.bad_words)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            known = value is None or 0 <= value <= MAX_TOP
            require(known, f"{name} must be from 0 to {MAX_TOP}", value)
        if isinstance(self.structured_outputs, dict):
            self.structured_outputs = StructuredOutputsParams(**self.structured_outputs)
        bound = self.structured_outputs is not None
        ends = not (bound and self.ignore_eos)
        require(ends, "ignore_eos must be False with structured_outputs", self.ignore_eos)
        drawn = not (bound and self.forced_token_ids)
        rule = "prompt_logprobs must be None with structured_outputs"
        require(not bound or self.prompt_logprobs is None, rule, self.prompt_logprobs)
        rule = "forced_token_ids must be empty with structured_outputs"
        require(drawn, rule, self.forced_token_ids)
        seed_fits = self.seed is None or -(2**63) <= self.seed < 2**63
        require(seed_fits, "seed must be an int of 64 bits", self.seed)
        strings = all(isinstance(stop, str) and stop for stop in self.stop_strings)
        require(strings, "stop must be strings that are not empty", self.stop)
        needs_text = self.detokenize or not self.stop_strings
        require(needs_text, "stop needs detokenize=True to see the text", self.stop)
        kept = self.truncate_prompt_tokens
        truncates = kept is None or (isinstance(kept, int) and (kept == -1 or kept >= 1))
        require(truncates, "truncate_prompt_tokens must be -1 or positive", kept)
        few = len(self.stop_token_ids) <= MAX_STOP_IDS
        require(few, f"stop_token_ids can name at most {MAX_STOP_IDS} tokens", self.stop_token_ids)

    @property
    def num_outputs(self) -> int:
        """Outputs to draw."""
        return self.n if self.best_of is None else self.best_of

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def keep_of_prompt(self, num_tokens: int, max_model_len: int) -> int:
        """How many tokens of a prompt of num_tokens remain."""
        if self.truncate_prompt_tokens is None:
            return num_tokens
        room = max(1, max_model_len - (self.max_tokens or 1))
        wanted = self.truncate_prompt_tokens
        return min(num_tokens, room if wanted == -1 else wanted)


@dataclass
class RequestMetrics:
    """Times in seconds on one clock (time.perf_counter); tokens and preemptions of all outputs."""

    arrival_time: float
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_outputs: int = 1

    @property
    def ttft(self) -> float | None:
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first; with several outputs, of their mean length."""
        if self.first_token_time is None or self.last_token_time is None:
            return None
        later = self.num_output_tokens / self.num_outputs - 1
        return (self.last_token_time - self.first_token_time) / later if later > 0 else None

    @property
    def e2e(self) -> float | None:
        return None if self.finished_time is None else self.finished_time - self.arrival_time


class Logprob(NamedTuple):
    """A token's log-probability, of the raw distribution, and how many are at least as probable."""

    logprob: float
    rank: int


def mean_logprob(logprobs: Sequence[float]) -> float:
    """What `best_of` ranks outputs by."""
    return sum(logprobs) / max(1, len(logprobs))


@dataclass
class CompletionOutput:
    """One continuation: `finish_reason` is stop, length, abort or error once it has ended.

    `stop_reason` is the stop string, or the one of stop_token_ids, that ended it; else None.
    """

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of each token, raw distribution
    # With SamplingParams.logprobs: for each token {id: Logprob}, itself and the most probable ones.
    top_logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    """A request and what has come of it so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    finished: bool = False
    # With SamplingParams.prompt_logprobs: as `top_logprobs`, for each token; None for the first.
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    error: str | None = None
