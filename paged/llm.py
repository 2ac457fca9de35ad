"""The offline API: text in, text out, over the engine."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from paged.attention.triton import TritonAttention
from paged.bad_words import with_bad_word_ids
from paged.beams import BeamSearchOutput, BeamSearchParams
from paged.engine import Engine
from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.graphs import use_graphs
from paged.intake import beam_search_output
from paged.interfaces import (
    Attention,
    Eviction,
    KVManager,
    LogitsProcessor,
    Proposer,
    Sampler,
    Scheduler,
)  # fmt: skip
from paged.kv.paged import PagedKV
from paged.live_request import LiveRequest
from paged.logits_processors import logits_processor
from paged.models.loading import load_model
from paged.proposers.none import NoProposer
from paged.request import RequestOutput, SamplingParams
from paged.samplers.stochastic import StochasticSampler
from paged.schedulers.base import RankScheduler
from paged.sizing import engine_sizes, resolve_device, resolve_dtype
from paged.startup import StartClock
from paged.structured.base import GrammarCompiler
from paged.structured.llguidance import LLGuidance
from paged.texts import Texts
from paged.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Sequence[int]


class LLM:
    """A model with an engine around it.

    Args:
        model: "stories" (embedded), a Hugging Face folder or hub id, a GGUF file, or with
            `load="dummy"` a preset or a folder with a config.json.
        scheduler, kv, eviction: an object of the interface, or a policy function for the ready
            class (`RankScheduler`, `PagedKV`, `ScoreEviction`); None is fcfs, paged, lru.
        attention, sampler, proposer: objects; None is Triton attention, stochastic, no drafts.
        dtype: "auto" is bfloat16 on a GPU and float32 in the interpreter.
        max_model_len: tokens of a sequence at most; None is the model's own limit.
        num_slots: rows of the request table; requests beyond it queue on the host.
        seed: of requests that bring none.
        load: "auto" or "dummy" (random weights).
        engine: "graph" replays captured CUDA graphs, two steps ahead of the host; "eager" launches
            every kernel from Python; "auto" is graph on a GPU where every part can be captured.
        logits_processors: changes of every request's logits, in order: `@triton.jit` functions,
            torch functions, or objects of the interface (see `paged.logits_processors`).
        grammars: makes the compiler of structured_outputs of (tokenizer, vocab_size, eos_ids).
    """

    def __init__(
        self,
        model: str = "stories",
        *,
        scheduler: Scheduler | Callable | None = None,
        kv: KVManager | Callable | None = None,
        eviction: Eviction | Callable | None = None,
        attention: Attention | None = None,
        sampler: Sampler | None = None,
        proposer: Proposer | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        max_model_len: int | None = None,
        num_slots: int | None = None,
        seed: int = 0,
        load: str = "auto",
        engine: str = "auto",
        logits_processors: Sequence[LogitsProcessor | Callable] = (),
        grammars: Callable[[Tokenizer, int, Sequence[int]], GrammarCompiler] = LLGuidance,
    ) -> None:
        clock = StartClock()
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        scheduler = RankScheduler() if scheduler is None else scheduler
        if not isinstance(scheduler, Scheduler):
            scheduler = RankScheduler(scheduler)
        kv = PagedKV() if kv is None else kv
        if not isinstance(kv, KVManager):
            kv = PagedKV(reserve_len=kv)
        proposer = NoProposer() if proposer is None else proposer
        eviction = lru if eviction is None else eviction
        if not isinstance(eviction, Eviction):
            eviction = ScoreEviction(eviction)

        loaded = load_model(model, dtype=self.dtype, device=self.device, load=load)
        self.model, self.spec = loaded.decoder, loaded.spec
        clock.end("weights", self.device)
        self.tokenizer = load_tokenizer(loaded.tokenizer_path)
        clock.end("tokenizer", self.device)
        sizes = engine_sizes(
            self.spec, scheduler, kv, proposer.num_draft_tokens, self.dtype, self.device,
            max_model_len=max_model_len, num_slots=num_slots,
        )  # fmt: skip
        self.model.allocate(
            sizes.max_num_batched_tokens, sizes.max_num_samples, sizes.page_size, sizes.num_pages
        )
        clock.end("KV cache", self.device)
        attention, sampler = attention or TritonAttention(), sampler or StochasticSampler()
        processors = [logits_processor(one) for one in logits_processors]
        parts = (scheduler, kv, eviction, attention, sampler, proposer, *processors)
        graphs = use_graphs(engine, self.device, all(part.capturable for part in parts))
        vocab_size, tokenizer = self.spec.vocab_size, self.tokenizer
        compiler = grammars(tokenizer, vocab_size, loaded.eos_ids) if tokenizer else None
        self.engine = Engine(
            graphs=graphs,
            in_flight=2 if graphs else 1,
            model=self.model,
            sizes=sizes,
            scheduler=scheduler,
            kv=kv,
            eviction=eviction,
            attention=attention,
            sampler=sampler,
            device=self.device,
            vocab_size=vocab_size,
            eos_ids=loaded.eos_ids,
            seed=seed,
            grammars=compiler,
            logits_processors=processors,
            proposer=proposer,
        )
        capture = self.engine.steps.capture_seconds
        clock.end("compile and warm up", self.device, without=capture)
        self.startup = clock.seconds | {"graph capture": capture}  # seconds of each phase
        self._texts = Texts(self.tokenizer, self.engine)
        self._grown: dict[str, dict[str, RequestOutput]] = {}  # by request: its stream's news
        self._watched: set[str] = set()  # requests that somebody wants to see, or to stop, growing

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt (text, or a list of token ids); outputs in the prompts' order."""
        return self._run(self._submit_all(prompts, sampling_params))

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[RequestOutput]:
        """Yield a request's output, grown in place, whenever a step has added to it or ended it.

        Ends with its own requests; without a prompt it reads those of `submit`, until all requests
        have ended. Several streams may be read in turns: whoever reads runs the steps of all, and
        what nobody reads costs the others nothing.
        """
        return self._read(self._submit_all(prompts, sampling_params))

    def chat(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template."""
        if self.tokenizer is None:
            raise ValueError("chat needs a tokenizer, and this model has none; pass token ids")
        if not messages:
            raise ValueError("messages must hold at least one message, got none")
        several: Any = [messages] if isinstance(messages[0], dict) else messages
        return self.generate(list(map(self.tokenizer.chat_ids, several)), sampling_params)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams
    ) -> list[BeamSearchOutput]:
        """The `beam_width` most probable continuations that a beam search finds of every prompt."""
        requests: list[LiveRequest] = []
        try:
            for prompt in _several(prompts):
                text = prompt if isinstance(prompt, str) else None
                requests.append(self.engine.submit_beams(self._ids(prompt), params, prompt=text))
        except ValueError:
            for live in requests:
                self.abort(live.request_id)
            raise
        self._run(requests)
        decode = None if self.tokenizer is None else self.tokenizer.decode
        return [beam_search_output(live, decode) for live in requests]

    def abort(self, request_id: str) -> None:
        """End a request early; what it has so far stays in its output."""
        self.engine.abort(request_id)
        if not self.engine.is_live(request_id):
            self._forget(request_id)

    def _submit_all(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[LiveRequest]:
        """Queue all prompts or, if one of them is refused, none."""
        several = _several(prompts)
        if params is None or isinstance(params, SamplingParams):
            each = [params or SamplingParams()] * len(several)
        else:
            each = list(params)
        if len(each) != len(several):
            raise ValueError(
                f"sampling_params must be one or as many as the prompts ({len(several)}), "
                f"got {len(each)}"
            )
        requests: list[LiveRequest] = []
        try:
            for prompt, own in zip(several, each):
                requests.append(self.submit(prompt, own))
        except ValueError:
            for live in requests:
                self.abort(live.request_id)
            raise
        return requests

    def submit(
        self, prompt: Prompt, params: SamplingParams, request_id: str | None = None
    ) -> LiveRequest:
        """Queue one request without running it; `engine.step()` or another call's loop will."""
        text = prompt if isinstance(prompt, str) else None
        if self.tokenizer is not None:
            params = with_bad_word_ids(params, self.tokenizer)
        elif params.stop_strings:
            raise ValueError("stop strings need a tokenizer, and this model has none")
        live = self.engine.submit(self._ids(prompt), params, request_id=request_id, prompt=text)
        self._texts.add(live)
        self._watched.add(live.request_id)
        return live

    def _ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; pass the prompt as token ids")
        if not prompt:
            raise ValueError("prompt must hold at least one token, got an empty string")
        return self.tokenizer.encode(prompt)

    def _run(self, requests: Sequence[LiveRequest]) -> list[RequestOutput]:
        """Run `requests` to their end, with nobody looking on."""
        for live in requests:
            self._grown[live.request_id] = {}
            if not live.params.stop_strings:
                self._watched.discard(live.request_id)
        for live in requests:
            while not live.finished:
                self._step({})
        return [live.output for live in requests]

    def _read(self, requests: Sequence[LiveRequest]) -> Iterator[RequestOutput]:
        """The stream of `requests`, which grow from now on, read or not."""
        grown: dict[str, RequestOutput] = {}  # by request; what the reader has not seen
        for live in requests:
            self._grown[live.request_id] = grown

        def read() -> Iterator[RequestOutput]:
            unfinished = deque(requests)
            while True:
                while grown:
                    yield grown.pop(next(iter(grown)))
                while unfinished and unfinished[0].finished:
                    unfinished.popleft()
                if not unfinished and (requests or not self.engine.has_unfinished):
                    return
                self._step(grown)

        return read()

    def _step(self, grown: dict[str, RequestOutput]) -> None:
        """Run a step, and tell the streams; requests of no stream are told to `grown`."""
        touched = self.engine.step()
        for live in touched if self._watched else self.engine.ended:
            name = live.request_id
            if live.has_ended or name in self._watched:
                self._texts.update(live)
                self._grown.get(name, grown)[name] = live.output
        for live in self.engine.ended:
            if live.finished:
                self._forget(live.request_id)

    def _forget(self, request_id: str) -> None:
        self._texts.drop(request_id)
        self._grown.pop(request_id, None)
        self._watched.discard(request_id)


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Any]:
    """The prompts as a list, also of one, be it text or token ids."""
    is_one = isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], int))
    return [prompts] if is_one else list(prompts)
