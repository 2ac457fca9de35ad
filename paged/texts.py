"""The texts of live requests, kept up with their tokens."""

from paged.detokenizer import Detokenizer
from paged.engine import Engine
from paged.live_request import LiveRequest
from paged.tokenizer import Tokenizer


class Texts:
    """Detokenizes outputs as they grow, and ends those that meet a stop string.

    Args:
        tokenizer: None leaves every text empty.
    """

    def __init__(self, tokenizer: Tokenizer | None, engine: Engine) -> None:
        self.tokenizer, self.engine = tokenizer, engine
        self._by_id: dict[str, list[Detokenizer | None]] = {}  # by request, one an output

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, first: LiveRequest) -> None:
        """Follow all outputs of a request, if it asks for text."""
        params = first.params
        if self.tokenizer is None or not params.detokenize:
            return
        self._by_id[first.output.request_id] = [
            Detokenizer(
                self.tokenizer,
                first.output.prompt_token_ids,
                stop=params.stop_strings,
                include_stop=params.include_stop_str_in_output,
                min_tokens=params.min_tokens,
                skip_special_tokens=params.skip_special_tokens,
            )
            for _ in first.group
        ]

    def drop(self, request_id: str) -> None:
        """Forget a request; one that is not followed is a no-op."""
        self._by_id.pop(request_id, None)

    def update(self, live: LiveRequest) -> None:
        """Bring the text up to the tokens; a stop string that is complete ends the output."""
        completion = live.completion
        detokenizers = self._by_id.get(live.output.request_id)
        detokenizer = detokenizers[live.index] if detokenizers is not None else None
        if detokenizers is None or detokenizer is None:
            return
        tokens = live.take_new()
        stopped = completion.finish_reason == "stop"
        if stopped and not live.params.include_stop_str_in_output:
            tokens = tokens[:-1]  # the stop token is no text
        completion.text += detokenizer.add(tokens)[0]
        if live.has_ended:
            completion.text += detokenizer.finish()
        if detokenizer.stop_met is not None:
            self.engine.stop(live, detokenizer.num_tokens, detokenizer.stop_met)
        if live.has_ended or detokenizer.stop_met is not None:
            detokenizers[live.index] = None
