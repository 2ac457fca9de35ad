"""Log-probabilities as completions and vLLM's `prompt_logprobs` show them."""

from collections.abc import Iterable, Sequence

from paged.request import Logprob
from paged.server.responses import CompletionLogprobs, PromptLogprob, ShownPromptLogprobs
from paged.server.token_text import TokenText
from paged.server.wire import PromptLogprobs, Top

Entry = tuple[int, float | None, Top | None]  # (token, its logprob, the most probable tokens)


def drawn_entries(
    token_ids: Sequence[int], logprobs: Sequence[float], tops: Sequence[Top] | None
) -> list[Entry]:
    """Of tokens of the output."""
    return list(zip(token_ids, logprobs, tops or [[] for _ in token_ids]))


def prompt_entries(token_ids: Sequence[int], known: PromptLogprobs, num_top: int) -> list[Entry]:
    """Of the tokens of a prompt; nothing is known of the first."""
    return [
        (token, None, None)
        if found is None
        else (token, found[token].logprob, _top(found, num_top))
        for token, found in zip(token_ids, known)
    ]


def completion_logprobs(
    token_text: TokenText, entries: Iterable[Entry], offset: int
) -> CompletionLogprobs:
    """What /v1/completions shows; `offset` is the place of the first token in the text.

    Tokens that look the same share an entry of `top_logprobs`, which has the larger value: so a
    token was the most probable if and only if its logprob is the maximum of its entry.
    """
    shown = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token, logprob, top in entries:
        text = token_text.text_of(token)
        shown.tokens.append(text)
        shown.token_logprobs.append(logprob)
        shown.text_offset.append(offset)
        offset += len(text)
        if logprob is None:
            shown.top_logprobs.append(None)
            continue
        values: dict[str, float] = {}
        for likely, value in [*(top or []), (token, logprob)]:
            name = token_text.text_of(likely)
            values[name] = max(value, values.get(name, value))
        shown.top_logprobs.append(values)
    return shown


def shown_prompt_logprobs(
    token_text: TokenText, known: PromptLogprobs, token_ids: Sequence[int], num_top: int
) -> ShownPromptLogprobs:
    """vLLM's form: of each token, by its id, itself and the `num_top` most probable ones."""
    return [
        None
        if found is None
        else {
            str(one): PromptLogprob(
                logprob=value.logprob, rank=value.rank, decoded_token=token_text.text_of(one)
            )
            for one, value in found.items()
            if one == token or value.rank <= num_top
        }
        for token, found in zip(token_ids, known)
    ]


def _top(found: dict[int, Logprob], num_top: int) -> Top:
    ranked = sorted(found.items(), key=lambda item: item[1].rank)
    return [(token, value.logprob) for token, value in ranked if value.rank <= num_top]
