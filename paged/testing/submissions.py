"""From a request of the tests to a submission."""

from typing import Any

from paged.submission import Submission
from paged.testing.hash_model import Tracked


def submission_of(request: Tracked, arrival_ms: int) -> Submission:
    """What the mailbox takes."""
    beams: dict[str, Any] = {}
    if request.search is not None:
        params = request.search.params
        beams = {"beam_width": params.beam_width, "beam_index": request.index,
                 "early_stopping": params.early_stopping,
                 "length_penalty": params.length_penalty}  # fmt: skip
    return Submission(
        slot=request.slot, prompt=request.prompt, arrival=request.arrival,
        arrival_ms=arrival_ms, max_len=request.max_len, min_len=request.min_len,
        predicted_len=request.predicted_len, deadline_ms=0, priority=request.priority,
        client=0, top_k=0, top_p=1.0, min_p=0.0, temperature=0.5, seed=request.arrival << 33,
        stop_ids=request.stop_ids, num_forks=request.num_forks,
        parent=-1 if request.parent is None else request.parent.slot,
        parent_arrival=(request.parent or request).arrival, **beams,
    )  # fmt: skip
