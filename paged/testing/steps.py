"""Whole steps of the control plane without a model, checked as they run.

`Steps` submits, aborts and steps as the engine does, by the kernels, by their references or by both
in lockstep, and after every step checks the invariants of the state, the plan, and that each
request got exactly the tokens of the oracle.
"""

from collections import deque
from collections.abc import Sequence

from paged.kernels.control import columns as col
from paged.mailbox import Submission
from paged.state import Sizes
from paged.testing.hash_model import Tracked, oracle
from paged.testing.invariants import check_plan, check_state, no_leak
from paged.testing.sides import Knobs, ReferenceSide, Side, assert_same_state

REASONS = {
    col.REASON_STOP.value: "stop", col.REASON_LENGTH.value: "length",
    col.REASON_ABORT.value: "abort", col.REASON_ERROR.value: "error",
}  # fmt: skip


class Steps:
    """Runs steps over one or two copies of the state.

    Args:
        by: "kernels", "references", or "both", which compares all state after each stage.
        num_buckets: of the prefix table; few make keys collide.
    """

    def __init__(
        self,
        sizes: Sizes,
        knobs: Knobs,
        *,
        by: str = "both",
        device: str = "cpu",
        num_buckets: int | None = None,
    ) -> None:
        self.sizes, self.knobs = sizes, knobs
        self.sides: list[Side] = []
        if by in ("kernels", "both"):
            self.sides.append(Side(sizes, device, num_buckets))
        if by in ("references", "both"):
            self.sides.append(ReferenceSide(sizes, "cpu", num_buckets))
        self.queue: deque[Tracked] = deque()
        self.live: dict[int, Tracked] = {}
        self.ended: list[Tracked] = []
        self.free_slots = list(range(sizes.num_slots))
        self.aborts: list[Tracked] = []
        self.num_steps = self.arrivals = 0
        self.header = {"free_pages": sizes.num_pages, "shortfall": 0}
        self.totals: dict[str, int] = {}

    @property
    def state(self) -> Side:
        """The side whose events are followed."""
        return self.sides[0]

    def submit(self, prompt: Sequence[int], max_tokens: int, **columns) -> Tracked:
        """Queue a request; `columns` are fields of `Tracked`."""
        request = Tracked(self.arrivals, list(prompt), len(prompt) + max_tokens, **columns)
        request.expected = oracle(request)
        self.arrivals += 1
        self.queue.append(request)
        return request

    def abort(self, request: Tracked) -> None:
        """End a request with the next step, or at once if it has no slot yet."""
        if request in self.queue:
            self.queue.remove(request)
            request.reason = "abort"
            self.ended.append(request)
        elif request.reason is None and request not in self.aborts:
            self.aborts.append(request)

    def stage(self, name: str, *args) -> None:
        for side in self.sides:
            getattr(side, name)(self.knobs, *args)
        if len(self.sides) == 2:
            kernels, references = self.sides
            assert_same_state(kernels, references, stage=name, step=self.num_steps)

    def evict(self, low_water: int) -> None:
        self.stage("evict", low_water)

    def step(self) -> dict[str, int]:
        """One step, as the engine runs it; returns its header."""
        if self.header["free_pages"] < self.knobs.low_water or self.header["shortfall"]:
            self.evict(self.knobs.low_water)
        self.stage("ingest", self._post())
        if self.knobs.prefix_caching:
            self.stage("lookup")
        self.stage("order")
        self.stage("schedule")
        self.stage("prepare")
        requests, pool, plan = self.state.requests, self.state.pool, self.state.plan
        check_plan(requests, pool, plan, budget=self.knobs.budget, chunk=self.knobs.chunk)
        nan_at = {s: r.nan_at for s, r in self.live.items() if r.nan_at is not None}
        for side in self.sides:
            side.model.step(side.plan, nan_at)
        self.stage("update")
        if self.knobs.prefix_caching:
            self.stage("publish")
        self.stage("release")
        check_state(requests, pool)
        for side in self.sides:
            side.model.poison_free_pages(side.pool)
        self._apply()
        return self.header

    def _post(self) -> int:
        """Write the commands of this step into each side's mailbox."""
        submissions: list[Submission] = []
        room = self.state.mailbox.max_commands - len(self.aborts)
        while self.queue and self.free_slots and len(submissions) < room:
            request = self.queue.popleft()
            request.slot = self.free_slots.pop(0)
            self.live[request.slot] = request
            submissions.append(self._submission(request))
        slots = [request.slot for request in self.aborts]
        self.aborts.clear()
        for side in self.sides:
            count = side.mailbox.post(self.num_steps, 10 * self.num_steps, submissions, slots)
        return count

    def _submission(self, request: Tracked) -> Submission:
        return Submission(
            slot=request.slot, prompt=request.prompt, arrival=request.arrival,
            arrival_ms=10 * self.num_steps, max_len=request.max_len, min_len=request.min_len,
            predicted_len=request.predicted_len, deadline_ms=0, priority=request.priority,
            client=0, top_k=0, top_p=1.0, min_p=0.0, temperature=0.5, seed=request.arrival << 33,
            stop_ids=request.stop_ids,
        )  # fmt: skip

    def _apply(self) -> None:
        """Follow the events of this step; every token is checked against the oracle."""
        results = [side.mailbox.poll(self.num_steps) for side in self.sides]
        assert all(result is not None for result in results), "a step's events are incomplete"
        assert results[0] is not None
        self.header, events = results[0]
        for name, value in self.header.items():
            self.totals[name] = self.totals.get(name, 0) + value
        self.num_steps += 1
        for event in events:
            request = self.live[event.slot]
            if event.kind == "admitted":
                request.cached.append(event.value)
            elif event.kind == "preempted":
                request.num_preemptions += 1
            elif event.kind == "token":
                request.tokens.append(event.value)
                at, (tokens, _) = len(request.tokens), request.expected
                assert request.tokens[-1:] == tokens[at - 1 : at], (
                    f"request {request.arrival} drew {event.value} as token {at} of {tokens}"
                )
                assert event.logprob == -0.125 * (event.value + 1), "a token's logprob is another's"
            else:
                request.reason = REASONS[event.value]
                del self.live[event.slot]
                self.free_slots.append(event.slot)
                self.ended.append(request)
                self._check_end(request)

    def _check_end(self, request: Tracked) -> None:
        tokens, reason = request.expected
        who = f"request {request.arrival}"
        if request.reason in ("stop", "length"):
            assert (request.tokens, request.reason) == (tokens, reason), (
                f"{who} ended by {request.reason} with {len(request.tokens)} tokens, "
                f"not by {reason} with {len(tokens)}"
            )
        elif request.reason == "error":
            assert request.nan_at is not None, f"{who} read NaN that is not its own"

    def finish(self, max_steps: int = 500) -> None:
        """Run until every request has ended; nothing may be left behind."""
        for _ in range(max_steps):
            if not self.queue and not self.live:
                no_leak(self.state.requests, self.state.pool)
                return
            self.step()
        raise AssertionError(f"{len(self.live)} requests did not end in {max_steps} steps")
