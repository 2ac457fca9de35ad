"""/v1/completions."""

import time
from collections.abc import AsyncIterator
from functools import partial

from paged.request import mean_logprob
from paged.server.chunks import Chunks, ending
from paged.server.errors import ApiError
from paged.server.generation import Delta, Generation, Sample
from paged.server.logprobs import (
    completion_logprobs,
    drawn_entries,
    prompt_entries,
    shown_prompt_logprobs,
)  # fmt: skip
from paged.server.parameters import num_samples
from paged.server.protocol import CompletionRequest
from paged.server.responses import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    ShownPromptLogprobs,
)  # fmt: skip
from paged.server.service import Service, new_id, usage_of
from paged.server.sse import quoted


class CompletionAnswer:
    """From a request to the answer's bytes."""

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        self.service, self.body = service, body
        self.max_tokens = 16 if body.max_tokens is None else body.max_tokens
        self.id, self.created, self.model = new_id("cmpl"), int(time.time()), service.names[0]
        self.echoes: list[str] = []  # of each prompt, the text in front of its continuation
        self._offsets: dict[int, int] = {}  # of each choice, characters its tokens have had
        self._echoed: set[int] = set()  # choices whose prompt is out

    def prepare(self) -> list[list[Sample]]:
        """Requests to the engine for all prompts; tokenizes."""
        body, reader = self.body, self.service.reader
        special = body.add_special_tokens is not False
        prompts: list = [body.prompt] if _is_one(body.prompt) else list(body.prompt)
        if not prompts:
            raise ApiError("prompt must hold at least one token, got none", param="prompt")
        ids = [
            reader.text(prompt, add_special_tokens=special)
            if isinstance(prompt, str)
            else reader.ids(prompt)
            for prompt in prompts
        ]
        requests = self.service.requests(body, ids, self.max_tokens)
        if body.echo:
            kept = [samples[0].token_ids for samples in requests[:: len(requests) // len(ids)]]
            self.echoes = [
                prompt
                if isinstance(prompt, str) and len(tokens) == len(rest)
                else reader.need_tokenizer().decode(rest)
                for prompt, tokens, rest in zip(prompts, ids, kept)
            ]
        return requests

    def whole(self, generation: Generation, deltas: list[Delta]) -> Completion:
        """The answer in one piece."""
        choices = []
        for index, delta in enumerate(self._best(deltas)):
            text, logprobs = self._shown(generation, delta)
            choices.append(
                CompletionChoice(
                    index=index,
                    text=text,
                    logprobs=logprobs,
                    finish_reason=delta.finish_reason,  # type: ignore[arg-type]
                    stop_reason=delta.stop_reason,
                    prompt_logprobs=self._prompt_logprobs(self._source(generation, delta)),
                )
            )
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage_of(generation),
        )

    def events(self, generation: Generation) -> AsyncIterator[bytes]:
        """The answer as it grows."""
        options = self.body.stream_options
        chunks = Chunks("text_completion", self.id, self.created, self.model, options)
        return chunks.of(generation, partial(self._choice, generation))

    def _choice(self, generation: Generation, delta: Delta) -> str:
        """A streamed choice; empty if there is nothing to show."""
        text, logprobs = self._shown(generation, delta)
        if not (text or delta.finish_reason or self.body.logprobs is not None):
            return ""
        shown = "null"
        if logprobs is not None and logprobs.tokens:
            shown = logprobs.model_dump_json()
        ended = ending(delta.finish_reason, delta.stop_reason)
        return f'{{"index":{delta.index},"text":{quoted(text)},"logprobs":{shown},{ended}}}'

    def _shown(self, generation: Generation, delta: Delta) -> tuple[str, CompletionLogprobs | None]:
        """A delta's text and logprobs; with `echo` the first of a choice begins with the prompt."""
        text, num_top = delta.text, self.body.logprobs
        echoes = bool(self.body.echo) and delta.index not in self._echoed
        if echoes:
            self._echoed.add(delta.index)
            source = self._source(generation, delta)
            text = self.echoes[source.prompt] + text
        if num_top is None:
            return text, None
        entries = drawn_entries(delta.token_ids, delta.logprobs, delta.top_logprobs)
        if echoes:
            known = source.prompt_logprobs or []
            entries = prompt_entries(source.token_ids, known, num_top) + entries
        offset = self._offsets.get(delta.index, 0)
        logprobs = completion_logprobs(self.service.token_text, entries, offset)
        self._offsets[delta.index] = offset + sum(map(len, logprobs.tokens))
        return text, logprobs

    def _best(self, deltas: list[Delta]) -> list[Delta]:
        """With `best_of`, the `n` of each prompt with the highest log-probability per token."""
        n, each = self.body.n or 1, num_samples(self.body)
        if n == each:
            return deltas
        kept = []
        for start in range(0, len(deltas), each):
            drawn = deltas[start : start + each]
            drawn.sort(key=lambda delta: mean_logprob(delta.logprobs), reverse=True)
            kept += drawn[:n]
        return kept

    def _prompt_logprobs(self, source: Sample) -> ShownPromptLogprobs | None:
        num_top = self.body.prompt_logprobs
        known = source.prompt_logprobs
        if num_top is None or known is None:
            return None
        return shown_prompt_logprobs(self.service.token_text, known, source.token_ids, num_top)

    def _source(self, generation: Generation, delta: Delta) -> Sample:
        """The first sample of a choice's prompt: the one that knows the prompt's logprobs."""
        prompt = generation.samples[delta.index].prompt
        return generation.samples[prompt * num_samples(self.body)]


def _is_one(prompt: object) -> bool:
    """Whether this is one prompt rather than a list of them."""
    return isinstance(prompt, str) or (
        isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
    )
