"""/v1/chat/completions."""

import time
from collections.abc import AsyncIterator
from typing import Any

from paged.server.chunks import Chunks, ending
from paged.server.generation import Delta, Generation, Sample
from paged.server.logprobs import shown_prompt_logprobs
from paged.server.protocol import ChatRequest
from paged.server.responses import (
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChosenLogprob,
    TokenLogprob,
    ToolCall,
)  # fmt: skip
from paged.server.service import Service, new_id, usage_of
from paged.server.sse import quoted
from paged.server.tool_formats import ToolFormat
from paged.server.tool_parser import read_calls
from paged.server.tool_stream import ToolStream
from paged.server.tools import new_call_id, template_tools, tool_format
from paged.server.wire import Top


class ChatAnswer:
    """From a request to the answer's bytes."""

    def __init__(self, service: Service, body: ChatRequest) -> None:
        self.service, self.body = service, body
        # max_tokens is the older name of the same limit.
        newer = body.max_completion_tokens
        self.max_tokens = body.max_tokens if newer is None else newer
        self.id, self.created, self.model = new_id("chatcmpl"), int(time.time()), service.names[0]
        self.form = tool_format(body, service.tool_format)
        self._streams: dict[int, ToolStream] = {}  # of each choice, if there may be calls

    def prepare(self) -> list[list[Sample]]:
        """Requests to the engine for the conversation; tokenizes."""
        body = self.body
        ids = self.service.reader.conversation(
            body.messages,
            add_generation_prompt=body.add_generation_prompt is not False
            and not body.continue_final_message,
            continue_final_message=bool(body.continue_final_message),
            tools=template_tools(body),
            template_arguments=body.chat_template_kwargs,
        )
        marks = () if self.form is None else (self.form.begin, self.form.end)
        return self.service.requests(body, [ids], self.max_tokens, shown=marks)

    def whole(self, generation: Generation, deltas: list[Delta]) -> ChatCompletion:
        """The answer in one piece."""
        choices = [self._whole_choice(delta) for delta in deltas]
        source, num_top = generation.samples[0], self.body.prompt_logprobs
        prompt_logprobs = None
        if num_top is not None and source.prompt_logprobs is not None:
            prompt_logprobs = shown_prompt_logprobs(
                self.service.token_text, source.prompt_logprobs, source.token_ids, num_top
            )
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage_of(generation),
            prompt_logprobs=prompt_logprobs,
        )

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        """The answer as it grows."""
        options = self.body.stream_options
        chunks = Chunks("chat.completion.chunk", self.id, self.created, self.model, options)
        role = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        yield chunks.encode(f'{{"index":{sample.index},{role}}}' for sample in generation.samples)
        async for data in chunks.of(generation, self._choice):
            yield data

    def _whole_choice(self, delta: Delta) -> ChatChoice:
        message, reason = ChatMessage(content=delta.text), delta.finish_reason
        if self.form is not None:
            parallel = self.body.parallel_tool_calls is not False
            content, calls = read_calls(self.form, delta.text, parallel=parallel)
            if calls:
                message = ChatMessage(
                    content=content if content.strip() else None,
                    tool_calls=[
                        ToolCall(
                            id=new_call_id(self.form),
                            function=CalledFunction(name=name, arguments=arguments),
                        )
                        for name, arguments in calls
                    ],
                )
                reason = "tool_calls" if reason == "stop" else reason
        return ChatChoice(
            index=delta.index,
            message=message,
            logprobs=self._logprobs(delta),
            finish_reason=reason,  # type: ignore[arg-type]
            stop_reason=delta.stop_reason,
        )

    def _choice(self, delta: Delta) -> str:
        """A streamed choice; empty if there is nothing to show."""
        reason, content = delta.finish_reason, f'"content":{quoted(delta.text)}'
        if not delta.text:
            content = ""
        if self.form is not None:
            content, reason = self._stream(delta.index, self.form).events(delta.text, reason)
        if not (content or reason or self.body.logprobs):
            return ""
        logprobs = self._logprobs(delta)
        shown = "null" if logprobs is None else logprobs.model_dump_json()
        ended = ending(reason, delta.stop_reason)
        return f'{{"index":{delta.index},"delta":{{{content}}},"logprobs":{shown},{ended}}}'

    def _stream(self, index: int, form: ToolFormat) -> ToolStream:
        if index not in self._streams:
            parallel = self.body.parallel_tool_calls is not False
            self._streams[index] = ToolStream(form, parallel=parallel)
        return self._streams[index]

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
