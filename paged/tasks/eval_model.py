"""The engine as a model of lm-evaluation-harness; imported only where lm_eval is installed."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from paged.llm import LLM
from paged.request import RequestOutput, SamplingParams
from paged.tokenizer import Tokenizer

LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
HARNESS_KEYS = {"until", "do_sample", *LENGTH_KEYS}
FIELDS = {field.name for field in fields(SamplingParams)}


@register_model("paged")
class PagedLM(TemplateLM):
    """An engine that answers the harness.

    A log-likelihood is that of forced tokens: the context is prefilled and found in the prefix
    cache as any prompt, and the continuation is given a token a step, with the most probable token
    beside each. All requests of a call are queued at once, so their steps are shared.

    Args:
        llm: the engine; must have a tokenizer.
        max_gen_toks: output tokens where a task does not say how many.
        prefix_token_id: what an empty context is replaced by; None is the tokenizer's BOS or EOS.
        progress: show a progress bar.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        max_gen_toks: int = 256,
        prefix_token_id: int | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if llm.tokenizer is None:
            raise ValueError("eval needs a tokenizer, and this model has none")
        self.llm, self.max_gen_toks, self.progress = llm, max_gen_toks, progress
        self.texts: Tokenizer = llm.tokenizer
        self.tokenizer = llm.tokenizer.hf  # read by TemplateLM
        own = (prefix_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        self._prefix = next((token for token in own if token is not None), None)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        if self._prefix is None:
            raise ValueError("an empty context needs task.prefix_token_id: no BOS or EOS token")
        return self._prefix

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together."""
        return self.llm.engine.sizes.max_model_len

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; by default with the tokenizer's own BOS, unless the text begins with it."""
        if not string:
            return []
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return self.texts.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text. Raises ValueError if the model has no template for it."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                "task.apply_chat_template needs a tokenizer with a chat template, and this model's "
                "has none"
            )
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        scores = self._scores(pairs, "loglikelihood", disable_tqdm)
        for (texts, _, _), score in zip(requests, scores):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,  # and one token in front of it
                context_len=1,
            )
            own = [make_disjoint_window(window) for window in rolling]
            windows += own
            owners += [number] * len(own)
        totals = [0.0] * len(requests)
        scores = self._scores(windows, "loglikelihood_rolling", disable_tqdm)
        for owner, (logprob, _) in zip(owners, scores):
            totals[owner] += logprob
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts, params = [], []
        for request in requests:
            context, given = request.args
            own = generation_params(given, self.max_gen_toks)
            room = self.max_length - (own.max_tokens or 0)
            if room < 1:
                raise ValueError(
                    f"max_gen_toks must leave room for a context in max_model_len "
                    f"({self.max_length}), got {own.max_tokens}"
                )
            ids = self.tok_encode(context) or [self.prefix_token_id]
            prompts.append(ids[-room:])
            params.append(own)
        outputs = self._run(prompts, params, "generate_until", disable_tqdm)
        texts = [output.outputs[0].text for output in outputs]
        for request, text in zip(requests, texts):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _scores(
        self, pairs: Sequence[tuple[list[int], list[int]]], kind: str, disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding draws it) of each continuation after its
        context. Of what is too long, the first tokens of the context are left out."""
        prompts, params, asked = [], [], []
        for place, (context, continuation) in enumerate(pairs):
            if len(continuation) >= self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens leaves no room for a context in "
                    f"max_model_len ({self.max_length})"
                )
            if not continuation:  # its text has become part of the context's last token
                continue
            asked.append(place)
            prompts.append(context[-(self.max_length - len(continuation)) :])
            params.append(
                SamplingParams(
                    max_tokens=len(continuation),
                    forced_token_ids=continuation,
                    temperature=0.0,
                    ignore_eos=True,
                    logprobs=1,
                    detokenize=False,
                )
            )
        scores = [(0.0, True)] * len(pairs)
        for place, output in zip(asked, self._run(prompts, params, kind, disable_tqdm)):
            completion = output.outputs[0]
            # Beside the token itself stands the most probable one, if that is another.
            greedy = all(len(top) == 1 for top in completion.top_logprobs)
            scores[place] = (sum(completion.logprobs), greedy)
        return scores

    def _run(
        self,
        prompts: list[list[int]],
        params: list[SamplingParams],
        kind: str,
        disable_tqdm: bool,
    ) -> list[RequestOutput]:
        """All requests to their end, in order. Raises ValueError if one ends with an error."""
        if not prompts:
            return []
        requests = [self.llm.submit(prompt, own) for prompt, own in zip(prompts, params)]
        grown: Iterable[RequestOutput] = self.llm.stream([])
        hidden = disable_tqdm or not self.progress
        with tqdm(total=len(requests), desc=f"paged: {kind}", disable=hidden) as bar:
            for output in grown:
                bar.update(output.finished)
        outputs = [live.output for live in requests]
        failed = next((one for one in outputs if one.error is not None), None)
        if failed is not None:
            raise ValueError(f"request {failed.request_id} ended with an error: {failed.error}")
        return outputs


def generation_params(given: dict[str, Any], max_gen_toks: int) -> SamplingParams:
    """The harness's generation_kwargs. Without do_sample or a temperature, greedy.

    Raises ValueError for keys that the engine does not know.
    """
    until = given.get("until") or []
    lengths = [given[key] for key in LENGTH_KEYS if given.get(key) is not None]
    known = {key: value for key, value in given.items() if key in FIELDS - HARNESS_KEYS}
    unknown = sorted(set(given) - FIELDS - HARNESS_KEYS)
    if unknown:
        raise ValueError(f"generation_kwargs: no such key {', '.join(unknown)}")
    temperature = known.pop("temperature", None)
    if given.get("do_sample", bool(temperature)):
        known["temperature"] = 1.0 if temperature is None else float(temperature)
    else:
        known["temperature"] = 0.0
    stop = [until] if isinstance(until, str) else list(until)
    stop = [text for text in stop if text]
    return SamplingParams(max_tokens=int((*lengths, max_gen_toks)[0]), stop=stop or None, **known)
