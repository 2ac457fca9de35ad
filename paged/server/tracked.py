"""A live output on the engine's side: what of it has been reported, and what comes next."""

from dataclasses import dataclass

from paged.intake import beam_search_output
from paged.live_request import LiveRequest
from paged.request import Logprob
from paged.server.wire import Progress, Top


@dataclass(slots=True)
class Tracked:
    """An output of a live request, and what of it has been reported."""

    live: LiveRequest
    begun: bool = False  # something has been reported; from then on, what a step brings is new
    num_cached_tokens: int = 0  # at its first admission; later ones are after a preemption
    admitted: float | None = None  # when that was

    @property
    def key(self) -> int:
        return int(self.live.request_id) + self.live.index

    def progress(self, num_new: int, now: float) -> Progress | None:
        """What it has brought: `num_new` tokens at the end of its list, the first time all; and
        its end. None if there is nothing to tell, as while a prompt comes token by token."""
        live = self.live
        completion = live.completion
        if not (completion.token_ids or live.has_ended):
            return None
        is_first, self.begun = not self.begun, True
        if is_first:
            self.num_cached_tokens = live.metrics.num_cached_tokens
        if live.stop_met is not None:
            num_new = 0  # what is drawn now is no output
        first = 0 if is_first else len(completion.token_ids) - num_new
        of_prompt = is_first and live.index == 0
        progress = Progress(
            self.key,
            completion.token_ids[first:],
            completion.logprobs[first:],
            self.num_cached_tokens,
            [_most_probable(top) for top in completion.top_logprobs[first:]]
            if live.params.logprobs
            else None,
            prompt_logprobs=live.output.prompt_logprobs if of_prompt else None,
        )
        if not live.has_ended:
            return progress
        return progress._replace(
            finish_reason=completion.finish_reason,
            error=live.output.error if completion.finish_reason == "error" else None,
            times=self._times(now),
        )

    def searched(self, now: float) -> Progress:
        """The whole of an output of a beam search that has ended: its sequence by rank."""
        live = self.live
        found = beam_search_output(live, None)
        progress = Progress(
            self.key, [], [], live.metrics.num_cached_tokens, times=self._times(now)
        )
        if live.index >= len(found.sequences):
            error = found.error or "the search has ended without this sequence"
            return progress._replace(finish_reason="error", error=error)
        sequence = found.sequences[live.index]
        drawn = sequence.tokens[len(live.prompt_ids) :]
        return progress._replace(token_ids=drawn, finish_reason=sequence.finish_reason)

    def _times(self, now: float) -> tuple[float, float, float]:
        """Seconds from arrival to admission, from there to the first token, and to the end."""
        metrics = self.live.metrics
        admitted = now if self.admitted is None else self.admitted
        first = now if metrics.first_token_time is None else metrics.first_token_time
        arrival = metrics.arrival_time
        return max(0.0, admitted - arrival), max(0.0, first - admitted), max(0.0, now - first)


def _most_probable(top: dict[int, Logprob]) -> Top:
    """A token's report in the order of ranks."""
    ranked = sorted(top.items(), key=lambda item: item[1].rank)
    return [(token, found.logprob) for token, found in ranked]
