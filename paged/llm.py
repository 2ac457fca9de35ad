"""The offline API: text in, text out, over the engine."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from paged.attention.triton import TritonAttention
from paged.engine import Engine
from paged.eviction.base import ScoreEviction
from paged.eviction.lru import score as lru
from paged.intake import LiveRequest
from paged.interfaces import Attention, Eviction, KVManager, Sampler, Scheduler
from paged.kv.paged import PagedKV
from paged.models.loading import load_model
from paged.request import RequestOutput, SamplingParams
from paged.samplers.stochastic import StochasticSampler
from paged.schedulers.base import RankScheduler
from paged.sizing import choose_num_pages, resolve_device, resolve_dtype
from paged.state import Sizes
from paged.tokenizer import IncrementalDecoder, load_tokenizer

Prompt = str | Sequence[int]


class LLM:
    """A model with an engine around it.

    Args:
        model: "stories" (embedded), a Hugging Face folder or hub id, a GGUF file, or with
            `load="dummy"` a preset or a folder with a config.json.
        scheduler, kv, eviction: an object of the interface, or a policy function for the ready
            class (`RankScheduler`, `PagedKV`, `ScoreEviction`); None is fcfs, paged, lru.
        attention, sampler: an object of the interface; None is Triton attention, stochastic.
        dtype: "auto" is bfloat16 on a GPU and float32 in the interpreter.
        max_model_len: tokens of a sequence at most; None is the model's own limit.
        num_slots: rows of the request table; requests beyond it queue on the host.
        seed: of requests that bring none.
        load: "auto" or "dummy" (random weights).
        engine: "graph" replays captured CUDA graphs, two steps ahead of the host; "eager" launches
            every kernel from Python; "auto" is graph on a GPU where every part can be captured.
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
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        max_model_len: int | None = None,
        num_slots: int | None = None,
        seed: int = 0,
        load: str = "auto",
        engine: str = "auto",
    ) -> None:
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        scheduler = RankScheduler() if scheduler is None else scheduler
        if not isinstance(scheduler, Scheduler):
            scheduler = RankScheduler(scheduler)
        kv = PagedKV() if kv is None else kv
        if not isinstance(kv, KVManager):
            kv = PagedKV(reserve_len=kv)
        eviction = lru if eviction is None else eviction
        if not isinstance(eviction, Eviction):
            eviction = ScoreEviction(eviction)

        loaded = load_model(model, dtype=self.dtype, device=self.device, load=load)
        self.model, self.spec = loaded.decoder, loaded.spec
        self.tokenizer = load_tokenizer(loaded.tokenizer_path)
        longest = self.spec.max_model_len
        if max_model_len is not None and not 1 < max_model_len <= longest:
            raise ValueError(
                f"max_model_len must be from 2 to the model's own limit {longest}, "
                f"got {max_model_len}"
            )
        seqs = scheduler.max_num_seqs
        if num_slots is None:
            num_slots = max(seqs, 1024) if self.device.type == "cuda" else seqs
        length = max_model_len or longest
        sizes = Sizes(
            num_slots=num_slots,
            max_num_seqs=seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            max_model_len=length,
            page_size=kv.page_size,
            num_pages=choose_num_pages(kv, self.spec, self.dtype, self.device, length, seqs),
        )
        self.model.allocate(
            sizes.max_num_batched_tokens, sizes.max_num_seqs, sizes.page_size, sizes.num_pages
        )
        attention = TritonAttention() if attention is None else attention
        sampler = StochasticSampler() if sampler is None else sampler
        parts = (scheduler, kv, eviction, attention, sampler)
        graphs = self._use_graphs(engine, all(part.capturable for part in parts))
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
            vocab_size=self.spec.vocab_size,
            eos_ids=loaded.eos_ids,
            seed=seed,
        )
        self._decoders: dict[str, IncrementalDecoder] = {}

    def _use_graphs(self, engine: str, capturable: bool) -> bool:
        if engine not in ("auto", "graph", "eager"):
            raise ValueError(f"engine must be auto, graph or eager, got {engine!r}")
        if engine == "graph" and self.device.type != "cuda":
            raise ValueError(
                "engine=graph needs a GPU; use engine=eager or auto in the interpreter"
            )
        return engine == "graph" or (engine == "auto" and self.device.type == "cuda" and capturable)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt (text, or a list of token ids); outputs in the prompts' order."""
        requests = self._submit_all(prompts, sampling_params)
        for _ in self._run():
            pass
        return [live.output for live in requests]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[RequestOutput]:
        """Yield a request's output, grown in place, whenever a step has added to it or ended it."""
        self._submit_all(prompts, sampling_params)
        return self._run()

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
        conversations: Any = [messages] if isinstance(messages[0], dict) else messages
        prompts = [self.tokenizer.chat_ids(conversation) for conversation in conversations]
        return self.generate(prompts, sampling_params)

    def abort(self, request_id: str) -> None:
        """End a request early; what it has so far stays in its output."""
        self.engine.abort(request_id)
        if not self.engine.is_live(request_id):
            self._decoders.pop(request_id, None)

    def _submit_all(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[LiveRequest]:
        """Queue all prompts or, if one of them is refused, none."""
        several: list[Any] = (
            [prompts] if isinstance(prompts, str) or _is_ids(prompts) else list(prompts)
        )
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
                self.abort(live.output.request_id)
            raise
        return requests

    def submit(
        self, prompt: Prompt, params: SamplingParams, request_id: str | None = None
    ) -> LiveRequest:
        """Queue one request without running it; `engine.step()` or another call's loop will."""
        text = prompt if isinstance(prompt, str) else None
        if not isinstance(prompt, str):
            ids = list(prompt)
        elif self.tokenizer is None:
            raise ValueError("this model has no tokenizer; pass the prompt as token ids")
        elif not prompt:
            raise ValueError("prompt must hold at least one token, got an empty string")
        else:
            ids = self.tokenizer.encode(prompt)
        live = self.engine.submit(ids, params, request_id=request_id, prompt=text)
        if self.tokenizer is not None:
            self._decoders[live.output.request_id] = IncrementalDecoder(self.tokenizer, ids)
        return live

    def _run(self) -> Iterator[RequestOutput]:
        while self.engine.has_unfinished:
            for live in self.engine.step():
                self._detokenize(live)
                yield live.output

    def _detokenize(self, live: LiveRequest) -> None:
        decoder = self._decoders.get(live.output.request_id)
        if decoder is not None:
            completion = live.output.outputs[0]
            completion.text += decoder.add(live.new_tokens)
            if live.output.finished:
                completion.text += decoder.finish()
                del self._decoders[live.output.request_id]
        live.new_tokens.clear()


def _is_ids(prompts: object) -> bool:
    """Whether this is one prompt of token ids rather than several prompts."""
    return isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int)
