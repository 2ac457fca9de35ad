"""`use_beam_search`: a request whose `n` choices are the best sequences of one search."""

from collections.abc import Iterator
from dataclasses import fields

from paged.beams import BeamSearchParams
from paged.request import SamplingParams
from paged.server.errors import ApiError, not_supported
from paged.server.parameters import field_named, num_samples, sampling_params, stop_strings
from paged.server.protocol import Generate

OWN = ("length_penalty", "early_stopping")
# What a search reads, by the names of SamplingParams. It draws nothing, so any seed is honoured.
READ = (
    "n", "max_tokens", "temperature", "ignore_eos", "truncate_prompt_tokens",
    "skip_special_tokens", "seed",
)  # fmt: skip


def beam_search(body: Generate, max_tokens: int) -> BeamSearchParams | None:
    """The search that the body asks for; None if it asks for samples.

    Raises ApiError for a wrong value, and for a field that a search cannot honour.
    """
    given = {name: value for name in OWN if (value := getattr(body, name)) is not None}
    if not body.use_beam_search:
        for name in given:
            raise ApiError(f"{name} needs use_beam_search=true", param=name)
        return None
    for name in _unread(body, max_tokens):
        got = getattr(body, name)
        raise not_supported(name, f"a beam search does not read it, got {got!r}; leave it out")
    try:
        return BeamSearchParams(
            num_samples(body),
            max_tokens,
            ignore_eos=bool(body.ignore_eos),
            temperature=1.0 if body.temperature is None else body.temperature,
            **given,
        )
    except ValueError as error:
        message = str(error).removeprefix("BeamSearchParams.")
        raise ApiError(message, param=field_named(message, body)) from error


def _unread(body: Generate, max_tokens: int) -> Iterator[str]:
    """Fields of the body that ask for what a search would drop."""
    params, plain = sampling_params(body, max_tokens, 1), SamplingParams()
    if params.top_k == -1:
        params.top_k = 0  # both are off
    for one in fields(SamplingParams):
        asked, default = getattr(params, one.name), getattr(plain, one.name)
        if one.name not in READ and (asked or None) != (default or None):
            yield (
                "user"
                if one.name == "client" and body.client is None
                else str(field_named(one.name, body))
            )
    if stop_strings(body):
        yield "stop"
    if body.stream:
        yield "stream"
    logprobs = getattr(body, "logprobs", None)
    if logprobs is not None and logprobs is not False:
        yield "logprobs"
    if num_samples(body) != (body.n or 1):
        yield "best_of"
