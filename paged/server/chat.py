"""/v1/chat/completions."""

import time
from collections.abc import AsyncIterator
from typing import Any

from paged.server.generation import Delta, Generation, Sample
from paged.server.protocol import ChatRequest
from paged.server.responses import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChosenLogprob,
    TokenLogprob,
)  # fmt: skip
from paged.server.service import Service, new_id, usage_of
from paged.server.sse import quoted
from paged.server.wire import Top


class ChatAnswer:
    """From a request to the answer's bytes."""

    def __init__(self, service: Service, body: ChatRequest) -> None:
        self.service, self.body = service, body
        # max_tokens is the older name of the same limit.
        newer = body.max_completion_tokens
        self.max_tokens = body.max_tokens if newer is None else newer
        self.id, self.created, self.model = new_id("chatcmpl"), int(time.time()), service.names[0]

    def prepare(self) -> list[list[Sample]]:
        """Requests to the engine for the conversation; tokenizes."""
        body = self.body
        ids = self.service.reader.conversation(
            body.messages,
            add_generation_prompt=body.add_generation_prompt is not False
            and not body.continue_final_message,
            continue_final_message=bool(body.continue_final_message),
            template_arguments=body.chat_template_kwargs,
        )
        return self.service.requests(body, [ids], self.max_tokens)

    def whole(self, generation: Generation, deltas: list[Delta]) -> ChatCompletion:
        """The answer in one piece."""
        choices = [
            ChatChoice(
                index=delta.index,
                message=ChatMessage(content=delta.text),
                logprobs=self._logprobs(delta),
                finish_reason=delta.finish_reason,  # type: ignore[arg-type]
                stop_reason=delta.stop_reason,
            )
            for delta in deltas
        ]
        return ChatCompletion(
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
            f'data: {{"id":"{self.id}","object":"chat.completion.chunk","created":{self.created},'
            f'"model":{quoted(self.model)},"choices":['
        )
        tail = '],"usage":null}\n\n' if with_usage else "]}\n\n"
        role = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        yield "".join(
            f'{head}{{"index":{sample.index},{role}}}{tail}' for sample in generation.samples
        ).encode()
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
        content = f'"content":{quoted(delta.text)}' if delta.text else ""
        stop = delta.stop_reason
        stopped = quoted(stop) if isinstance(stop, str) else "null" if stop is None else stop
        return (
            f'{{"index":{delta.index},"delta":{{{content}}},"logprobs":{shown},'
            f'"finish_reason":{reason},"stop_reason":{stopped}}}'
        )

    def _shows(self, delta: Delta) -> bool:
        return bool(delta.text or delta.finish_reason or self.body.logprobs)

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if not self.body.logprobs or (self.body.stream and not delta.token_ids):
            return None
        tops: list[Top] = delta.top_logprobs or [[] for _ in delta.token_ids]
        return ChatLogprobs(
            content=[
                ChosenLogprob(
                    **self._shown(token, logprob),
                    top_logprobs=[
                        TokenLogprob(**self._shown(*likely))
                        for likely in top[: self.body.top_logprobs or 0]
                    ],
                )
                for token, logprob, top in zip(delta.token_ids, delta.logprobs, tops)
            ]
        )

    def _shown(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.service.token_text
        data = list(text.bytes_of(token))
        return {"token": text.text_of(token), "logprob": logprob, "bytes": data}
