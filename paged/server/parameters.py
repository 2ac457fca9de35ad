"""A request's body to the engine's sampling parameters. Nothing is dropped in silence.

A field is passed on, served here, or refused by name.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

from paged.request import SamplingParams
from paged.server.errors import ApiError, not_supported
from paged.server.grammars import grammar_field, output_grammar
from paged.server.protocol import ChatRequest, CompletionRequest, Generate

# Fields of the body that `SamplingParams` has by the same name.
PASSED = (
    "temperature", "top_p", "top_k", "min_p", "min_tokens", "ignore_eos", "stop_token_ids",
    "include_stop_str_in_output", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "bad_words", "allowed_token_ids", "forced_token_ids", "seed", "priority", "client",
    "predicted_tokens", "deadline",
)  # fmt: skip
# Fields nothing here can honour, and the values beside null that ask for nothing.
NOT_SERVED: Mapping[str, tuple] = {
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
    "prompt_cache_retention": ("in_memory",),
    "prompt_cache_options": ({},),
    "moderation": (),
}
ENGINE_FIELDS = frozenset(field.name for field in dataclasses.fields(SamplingParams))


def check_served(body: Generate) -> None:
    """Raises ApiError for the first field whose value the server cannot honour."""
    for name, neutral in NOT_SERVED.items():
        value = getattr(body, name, None)
        if value is not None and value not in neutral:
            raise not_supported(name, f"not supported by this server yet, got {value!r}")
    if isinstance(body, CompletionRequest):
        n = body.n or 1
        if body.best_of is not None and body.best_of < n:
            raise ApiError(f"best_of must be at least n ({n}), got {body.best_of}", param="best_of")
        if body.best_of not in (None, n) and body.stream:
            raise not_supported("best_of", f"above n ({n}) needs stream=false, got {body.best_of}")
        if echoes_logprobs(body) and body.stream and (body.n or 1) > 1:
            raise not_supported("echo", "with logprobs and stream needs n=1")
    if body.stream and body.prompt_logprobs is not None:
        raise not_supported("prompt_logprobs", "needs stream=false")
    if isinstance(body, ChatRequest) and body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs=true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options needs stream=true", param="stream_options")


def sampling_params(body: Generate, max_tokens: int, n: int) -> SamplingParams:
    """The engine's parameters. Stop strings are not among them: they are found where tokens become
    text.

    Raises ApiError naming the field whose value is wrong.
    """
    given: dict[str, Any] = {"max_tokens": max_tokens, "n": n}
    given |= {name: value for name in PASSED if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        given["logit_bias"] = _token_biases(body.logit_bias)
    if (user := _user_of(body)) is not None and body.client is None:
        given["client"] = zlib.crc32(user.encode()) & 0x7FFFFFFF
    if num_top := num_top_logprobs(body):
        given["logprobs"] = num_top
    wanted = num_prompt_logprobs(body)
    if wanted is not None:
        given["prompt_logprobs"] = wanted
    if grammar := output_grammar(body):
        given["structured_outputs"] = grammar
    try:
        return SamplingParams(**given)
    except ValueError as error:
        message = str(error).removeprefix("SamplingParams.")
        raise ApiError(message, param=field_named(message, body)) from error


def field_named(message: str, body: Generate) -> str | None:
    """The body's field that a message of the engine's begins with."""
    name = message.partition(" ")[0].rstrip(":").partition(".")[0]
    if name in ("structured_outputs", "StructuredOutputsParams"):
        return grammar_field(body)
    if name == "beam_width":
        return "n"
    return name if name in ENGINE_FIELDS or name == "prompt" else None


def num_samples(body: Generate) -> int:
    """Outputs to generate for each prompt; of `best_of` the best `n` are shown."""
    best_of = body.best_of if isinstance(body, CompletionRequest) else None
    return best_of or body.n or 1


def num_top_logprobs(body: Generate) -> int:
    """Most probable tokens to report beside the drawn one."""
    if isinstance(body, ChatRequest):
        return body.top_logprobs or 0
    return (body.logprobs or 0) if isinstance(body, CompletionRequest) else 0


def echoes_logprobs(body: Generate) -> bool:
    return isinstance(body, CompletionRequest) and bool(body.echo) and body.logprobs is not None


def num_prompt_logprobs(body: Generate) -> int | None:
    """Most probable tokens to report beside each of the prompt; None: nothing of the prompt."""
    if not echoes_logprobs(body):
        return body.prompt_logprobs
    return max(num_top_logprobs(body), body.prompt_logprobs or 0)


def stop_strings(body: Generate) -> list[str]:
    stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    if "" in stop:
        raise ApiError("stop: strings must not be empty", param="stop")
    return stop


def output_limit(
    body: Generate, asked: int | None, num_prompt: int, max_model_len: int
) -> tuple[int, int]:
    """(tokens to keep of the prompt, output tokens at most).

    Raises ApiError if prompt and output together do not fit the model.
    """
    least = asked if asked is not None else 1
    kept = num_prompt
    if body.truncate_prompt_tokens is not None:
        if body.truncate_prompt_tokens == 0:
            raise ApiError(
                "truncate_prompt_tokens must be positive, or -1 for what fits, got 0",
                param="truncate_prompt_tokens",
            )
        room = max(1, max_model_len - max(1, least))
        kept = min(kept, room if body.truncate_prompt_tokens < 0 else body.truncate_prompt_tokens)
    if kept + least > max_model_len or kept >= max_model_len:
        raise ApiError(
            f"this model's maximum context length is {max_model_len} tokens, but {kept + least} "
            f"were requested ({kept} in the prompt, {least} for the output); please reduce the "
            "prompt or the output",
            param="messages" if isinstance(body, ChatRequest) else "prompt",
            code="context_length_exceeded",
        )
    return kept, asked if asked is not None else max_model_len - kept


def _user_of(body: Generate) -> str | None:
    newer = body.safety_identifier if isinstance(body, ChatRequest) else None
    return body.user if newer is None else newer


def _token_biases(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError as error:
        raise ApiError("logit_bias: keys must be token ids", param="logit_bias") from error
