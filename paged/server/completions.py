"""/v1/completions."""

import time
from collections.abc import AsyncIterator

from paged.server.errors import ApiError
from paged.server.generation import Delta, Generation, Sample
from paged.server.protocol import CompletionRequest
from paged.server.responses import Completion, CompletionChoice, CompletionLogprobs
from paged.server.service import Service, new_id, usage_of
from paged.server.sse import quoted
from paged.server.token_text import TokenText


class CompletionAnswer:
    """From a request to the answer's bytes."""

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        self.service, self.body = service, body
        self.max_tokens = 16 if body.max_tokens is None else body.max_tokens
        self.id, self.created, self.model = new_id("cmpl"), int(time.time()), service.names[0]
        self.echoes: list[str] = []  # of each prompt, the text in front of its continuation
        self._offsets: dict[int, int] = {}  # of each choice, characters its tokens have had

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
            self.echoes = [
                prompt if isinstance(prompt, str) else reader.need_tokenizer().decode(prompt)
                for prompt in prompts
            ]
        return requests

    def whole(self, generation: Generation, deltas: list[Delta]) -> Completion:
        """The answer in one piece."""
        choices = []
        for sample, delta in zip(generation.samples, deltas):
            choices.append(
                CompletionChoice(
                    index=delta.index,
                    text=self._echo(sample) + delta.text,
                    logprobs=self._logprobs(delta),
                    finish_reason=delta.finish_reason,  # type: ignore[arg-type]
                    stop_reason=delta.stop_reason,
                )
            )
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage_of(generation),
        )

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        """The answer as it grows; only what changes is encoded anew."""
        options = self.body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        continuous = options is not None and bool(options.continuous_usage_stats)
        head = (
            f'data: {{"id":"{self.id}","object":"text_completion","created":{self.created},'
            f'"model":{quoted(self.model)},"choices":['
        )
        tail = '],"usage":null}\n\n' if with_usage else "]}\n\n"
        for sample in generation.samples:
            if echo := self._echo(sample):
                yield f"{head}{self._choice(Delta(sample.index, echo, [], []))}{tail}".encode()
        async for deltas in generation.batches():
            if continuous:
                tail = f'],"usage":{usage_of(generation).model_dump_json()}}}\n\n'
            yield "".join(
                f"{head}{self._choice(delta)}{tail}" for delta in deltas if self._shows(delta)
            ).encode()
        if with_usage:
            yield f'{head}],"usage":{usage_of(generation).model_dump_json()}}}\n\n'.encode()

    def _choice(self, delta: Delta) -> str:
        logprobs = self._logprobs(delta)
        shown = "null" if logprobs is None else logprobs.model_dump_json()
        reason = "null" if delta.finish_reason is None else f'"{delta.finish_reason}"'
        stop = delta.stop_reason
        stopped = quoted(stop) if isinstance(stop, str) else "null" if stop is None else stop
        return (
            f'{{"index":{delta.index},"text":{quoted(delta.text)},"logprobs":{shown},'
            f'"finish_reason":{reason},"stop_reason":{stopped}}}'
        )

    def _shows(self, delta: Delta) -> bool:
        return bool(delta.text or delta.finish_reason or self.body.logprobs is not None)

    def _echo(self, sample: Sample) -> str:
        return self.echoes[sample.prompt] if self.echoes else ""

    def _logprobs(self, delta: Delta) -> CompletionLogprobs | None:
        if self.body.logprobs is None or (self.body.stream and not delta.token_ids):
            return None
        offset = self._offsets.get(delta.index, 0)
        logprobs = _logprobs(self.service.token_text, delta, offset)
        self._offsets[delta.index] = offset + sum(map(len, logprobs.tokens))
        return logprobs


def _logprobs(token_text: TokenText, delta: Delta, offset: int) -> CompletionLogprobs:
    tokens = [token_text.text_of(token) for token in delta.token_ids]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    own = [{token: value} for token, value in zip(tokens, delta.logprobs)]
    if delta.top_logprobs is not None:
        likely = [
            {token_text.text_of(token): value for token, value in top} for top in delta.top_logprobs
        ]
        own = [top | drawn for top, drawn in zip(likely, own)]
    return CompletionLogprobs(
        tokens=tokens, token_logprobs=delta.logprobs, top_logprobs=own, text_offset=offsets
    )


def _is_one(prompt: object) -> bool:
    """Whether this is one prompt rather than a list of them."""
    return isinstance(prompt, str) or (
        isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
    )
