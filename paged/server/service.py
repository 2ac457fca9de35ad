"""What the handlers of completions and chat completions share."""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fastapi import Request

from paged.bad_words import with_bad_word_ids
from paged.beams import BeamSearchParams, check_room
from paged.detokenizer import Detokenizer
from paged.request import SamplingParams
from paged.server.beams import beam_search
from paged.server.client import EngineClient
from paged.server.errors import ApiError, ClientGone, unknown_model
from paged.server.generation import Delta, Generation, Sample
from paged.server.parameters import (
    check_served,
    field_named,
    num_prompt_logprobs,
    num_samples,
    output_limit,
    sampling_params,
    stop_strings,
)  # fmt: skip
from paged.server.prompts import PromptReader
from paged.server.protocol import MAX_CHOICES, Generate
from paged.server.responses import Usage
from paged.server.token_text import TokenText
from paged.server.tool_formats import ToolFormat


@dataclass
class Service:
    """The engine, and what turns requests into samples.

    Args:
        names: of the model; the first is the one answers carry.
        tool_format: how the model writes tool calls; None if that is not known.
        threads: where tokenization runs.
    """

    client: EngineClient
    reader: PromptReader
    token_text: TokenText
    names: tuple[str, ...]
    threads: ThreadPoolExecutor
    tool_format: ToolFormat | None = None
    started: int = field(default_factory=lambda: int(time.time()))

    def check(self, body: Generate) -> None:
        """Refuse what needs no look at the prompt."""
        self.check_model(body.model)
        check_served(body)
        self.client.check_room(1)

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            raise unknown_model(name, self.names)

    async def in_thread(self, work: Callable, *arguments: object):
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)

    def requests(
        self,
        body: Generate,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
        shown: Sequence[str] = (),
    ) -> list[list[Sample]]:
        """Requests to the engine, each as its samples: n, or best_of, of every prompt in all.

        `shown`: if one of them is a special token, the text shows special tokens.

        Raises ApiError if one of them can never be served.
        """
        n = num_samples(body)
        if len(prompts) * n > MAX_CHOICES:
            raise ApiError(
                f"a request may have {MAX_CHOICES} choices at most, got {len(prompts)} prompts "
                f"with n={n}",
                param="n",
            )
        if stop_strings(body):
            self.reader.need_tokenizer()
        requests: list[list[Sample]] = []
        for number, ids in enumerate(prompts):
            kept, limit = output_limit(body, max_tokens, len(ids), self.reader.max_model_len)
            ids, limit = ids[-kept:], max(1, limit)
            search = beam_search(body, limit)
            # Equal outputs are not one request to the engine: n of them are n requests.
            together = n if search is not None or body.temperature != 0 else 1
            if search is not None:
                params = search.sampling()
            else:
                params = sampling_params(body, limit, together)
            params = self._accepted(body, ids, params, search, with_grammar=number == 0)
            made = [
                Sample(
                    number * n + index, number, ids, params, self._detokenizer(body, ids, shown),
                    only_prompt=max_tokens == 0, search=search,
                )
                for index in range(n)
            ]  # fmt: skip
            requests += [made[start : start + together] for start in range(0, n, together)]
        return requests

    def _accepted(
        self,
        body: Generate,
        ids: Sequence[int],
        params: SamplingParams,
        search: BeamSearchParams | None,
        *,
        with_grammar: bool,
    ) -> SamplingParams:
        """The parameters with bad words as tokens. Raises ApiError if the engine would refuse."""
        info = self.client.info
        try:
            if self.reader.tokenizer is not None:
                params = with_bad_word_ids(params, self.reader.tokenizer)
            info.limits.accept(ids, params, "", None, 0)
            if search is not None:
                check_room(search, len(ids), info.sizes, shares=True)
            wanted = params.structured_outputs
            if with_grammar and wanted is not None and info.grammars is not None:
                info.grammars.compile(wanted)  # in a stream the engine would say so too late
        except ValueError as error:
            raise ApiError(str(error), param=field_named(str(error), body)) from error
        return params

    def _detokenizer(self, body: Generate, ids: Sequence[int], shown: Sequence[str]) -> Detokenizer:
        skip = body.skip_special_tokens is not False and not self.token_text.is_special(shown)
        return Detokenizer(
            self.reader.tokenizer,
            ids,
            stop=stop_strings(body),
            include_stop=bool(body.include_stop_str_in_output),
            min_tokens=body.min_tokens or 0,
            skip_special_tokens=skip,
            decoder=self.token_text.decoder(ids, skip_special_tokens=skip),
        )

    def begin(
        self, body: Generate, requests: list[list[Sample]], max_tokens: int | None
    ) -> Generation:
        """Send requests to the engine; without a token to generate they end at once."""
        whole = not body.stream
        if max_tokens == 0 and num_prompt_logprobs(body) is None:
            samples = [sample for request in requests for sample in request]
            generation = Generation(samples, lambda keys: None, whole)
            for sample in samples:
                generation.push(Delta(sample.index, "", [], [], finish_reason="length"))
            return generation
        generation = self.client.submit(requests, whole=whole)
        self.client.metrics.requested(num_samples(body), max_tokens)
        return generation


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


async def results(generation: Generation, request: Request) -> list[Delta]:
    """Everything the samples bring, a delta each, in order.

    Raises ClientGone if the client closes its connection before; the samples are given up then.
    """
    reading = asyncio.ensure_future(_read(generation))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise ClientGone
        return sorted(reading.result(), key=lambda delta: delta.index)
    finally:
        generation.close()
        leaving.cancel()
        reading.cancel()


def usage_of(generation: Generation) -> Usage:
    return Usage.of(
        generation.prompt_tokens(), generation.completion_tokens(), generation.cached_tokens()
    )


async def _read(generation: Generation) -> list[Delta]:
    return [delta async for batch in generation.batches() for delta in batch]


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
