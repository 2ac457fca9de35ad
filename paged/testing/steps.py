"""Whole steps of the control plane without a model, checked as they run.

`Steps` submits, aborts and steps as the engine does, by the kernels, by their references or by both
in lockstep, and after every step checks the invariants of the state, the plan, and that each
request got exactly the tokens of the oracle.
"""

from collections import deque
from collections.abc import Sequence

from paged.beams import BeamGroup, BeamSearchParams
from paged.ledger import REASONS
from paged.mailbox import Report
from paged.state import Sizes
from paged.submission import Submission
from paged.testing.beam_model import beam_oracle, candidates
from paged.testing.hash_model import Tracked, oracle
from paged.testing.invariants import check_plan, check_state, no_leak
from paged.testing.proposals import KnowingProposer, propose_alike
from paged.testing.sides import Knobs, ReferenceSide, Side, assert_same_state
from paged.testing.submissions import submission_of


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
        for side in self.sides:
            side.requests.page_budget = knobs.page_budget
        self.queue: deque[Tracked] = deque()
        self.live: dict[int, Tracked] = {}
        self.ended: list[Tracked] = []
        self.free_slots = list(range(sizes.num_slots))
        self.aborts: list[Tracked] = []
        self.num_steps = self.arrivals = 0
        self.beams = False  # whether any was submitted
        self.header = {"free_pages": sizes.num_pages, "shortfall": 0}
        self.totals: dict[str, int] = {}
        self.proposer = KnowingProposer(self._continuation, num_draft_tokens=sizes.num_draft_tokens)

    def _continuation(self, tokens: Sequence[int], count: int) -> list[int]:
        """What follows the tokens of a live request, if it has not been disturbed."""
        for request in self.live.values():
            if [*request.prompt, *request.tokens] == list(tokens):
                return request.expected[0][len(request.tokens) :][:count]
        return []

    @property
    def state(self) -> Side:
        """The side whose events are followed."""
        return self.sides[0]

    def submit(self, prompt: Sequence[int], max_tokens: int, **columns) -> Tracked:
        """Queue a request; `columns` are fields of `Tracked`."""
        request = Tracked(self.arrivals, list(prompt), len(prompt) + max_tokens, **columns)
        request.expected = oracle(request, self.knobs.page_budget, self.sizes.page_size)
        self.arrivals += 1
        self.queue.append(request)
        return request

    def submit_samples(self, prompt: Sequence[int], max_tokens: int, n: int, **columns):
        """Queue n samples of one prompt; returns them, the parent of the others first."""
        parent = self.submit(prompt, max_tokens, num_forks=n - 1, **columns)
        forks = [
            self.submit(prompt, max_tokens, parent=parent, salt=1299709 * index, **columns)
            for index in range(1, n)
        ]
        for request in forks:
            request.prompt = parent.prompt  # the same object, which travels once
        return [parent, *forks]

    def submit_beams(
        self, prompt: Sequence[int], params: BeamSearchParams, stop_ids: tuple[int, ...] = ()
    ) -> list[Tracked]:
        """Queue a beam search; returns its beams. At its end it must have found the oracle's."""
        beams = self.submit_samples(prompt, params.max_tokens, params.beam_width, stop_ids=stop_ids)
        search = BeamGroup(params)
        for index, request in enumerate(beams):
            request.search, request.index, request.beams = search, index, beams
        self.beams = True
        for side in self.sides:
            side.plan.beams = side.mailbox.beams = True
        return beams

    def abort(self, request: Tracked) -> None:
        """End a request with the next step, or at once if it has no slot yet.

        Of a beam, the whole search.
        """
        for one in request.beams or [request]:
            self._abort(one)

    def _abort(self, request: Tracked) -> None:
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
        self.stage("lookup")
        self.stage("order")
        self.stage("schedule")
        if self.sizes.num_draft_tokens:
            propose_alike(self.proposer, self.sides)
            self.stage("grant_drafts")
        self.stage("prepare")
        if self.sizes.num_host_pages:
            self.stage("swap")
        requests, pool, plan = self.state.requests, self.state.pool, self.state.plan
        check_plan(requests, pool, plan, budget=self.knobs.budget, chunk=self.knobs.chunk)
        nan_at = {s: r.nan_at for s, r in self.live.items() if r.nan_at is not None}
        salt = {slot: request.salt for slot, request in self.live.items()}
        for side in self.sides:
            if side.pool.swaps is not None:
                side.model.swap(side.pool.swaps)
            side.model.step(side.plan, nan_at, salt)
        if self.beams:
            self._choose_beams()
        self.totals["num_copies"] = self.totals.get("num_copies", 0) + int(plan.num_copies)
        if self.sizes.num_draft_tokens:
            self.stage("verify_drafts")
        self.stage("update")
        if self.knobs.prefix_caching:
            self.stage("publish")
        if self.knobs.page_budget is not None:
            self._compress()
        self.stage("release")
        check_state(requests, pool)
        for side in self.sides:
            side.model.poison_free_pages(side.pool)
        self._apply()
        return self.header

    def _compress(self) -> None:
        self.stage("compress_rows")
        self.stage("drop_pages")
        drops = self.state.drops
        dropped = int(drops.counts[: int(drops.num_rows)].sum())
        self.totals["num_dropped"] = self.totals.get("num_dropped", 0) + dropped

    def _choose_beams(self) -> None:
        """Score what each beam of this step may go on with, and choose."""
        for side in self.sides:
            plan = side.plan
            for row, slot in enumerate(plan.sample_slots[: int(plan.num_samples)].tolist()):
                search = self.live[slot].search
                if search is not None:
                    stops = list(self.live[slot].stop_ids)
                    plan.beam_tokens[row], plan.beam_logprobs[row] = candidates(
                        side.model.sums[slot], search.params.beam_width, stops
                    )
        self.stage("beam_select")
        self.stage("beam_repoint")
        for side in self.sides:
            plan = side.plan
            side.model.copy(plan.copy_beam_source, plan.copy_beam_target, plan.num_beam_copies)
        copies = int(self.state.plan.num_beam_copies)
        self.totals["num_beam_copies"] = self.totals.get("num_beam_copies", 0) + copies

    def _post(self) -> int:
        """Write the commands of this step into each side's mailbox."""
        submissions: list[Submission] = []
        room = self.state.mailbox.max_commands - len(self.aborts)
        while self.queue and len(submissions) < room:
            first = self.queue[0]
            if len(self.free_slots) < max(1, len(first.beams) if first.index == 0 else 1):
                break
            request = self.queue.popleft()
            request.slot = self.free_slots.pop(0)
            self.live[request.slot] = request
            submissions.append(submission_of(request, 10 * self.num_steps))
        slots = [request.slot for request in self.aborts]
        self.aborts.clear()
        for side in self.sides:
            count = side.mailbox.post(self.num_steps, 10 * self.num_steps, submissions, slots)
        return count

    def _apply(self) -> None:
        """Follow the events of this step; every token is checked against the oracle."""
        results = [side.mailbox.poll(self.num_steps) for side in self.sides]
        assert all(result is not None for result in results), "a step's events are incomplete"
        assert results[0] is not None
        report = results[0]
        self.header = report.header._asdict()
        for name, value in self.header.items():
            self.totals[name] = self.totals.get(name, 0) + value
        self.num_steps += 1
        for slot, cached in zip(report.admitted_slots, report.cached_tokens):
            self.live[slot].cached.append(cached)
        for slot in report.preempted_slots:
            self.live[slot].num_preemptions += 1
        self._follow_beams(report)
        drawn = (report.token_slots, report.token_ids, report.logprobs)
        for slot, token, logprob in zip(*(column.tolist() for column in drawn)):
            request = self.live[slot]
            if request.search is not None:
                continue
            request.tokens.append(token)
            at, (tokens, _) = len(request.tokens), request.expected
            assert request.tokens[-1:] == tokens[at - 1 : at], (
                f"request {request.arrival} drew {token} as token {at} of {tokens}"
            )
            assert logprob == -0.125 * (token + 1), "a token's logprob is another's"
        for slot, reason in zip(report.end_slots, report.end_reasons):
            request = self.live.pop(slot)
            request.reason = REASONS[reason]
            self.free_slots.append(slot)
            self.ended.append(request)
            self._check_end(request)

    def _follow_beams(self, report: Report) -> None:
        ended = zip(report.sequence_slots, report.sequence_tokens, report.sequence_scores)
        for slot, token, score in ended:
            request = self.live[slot]
            assert request.search is not None, "a sequence of no beam has ended"
            request.search.end(request.index, token, score)
        searches = set()
        slots, tokens = report.token_slots.tolist(), report.token_ids.tolist()
        for slot, source, token in zip(slots, report.token_beams, tokens):
            request = self.live[slot]
            if request.search is not None:
                request.search.append(request.index, source, token)
                searches.add(request.search)
        for search in searches:
            search.settle()

    def _check_search(self, request: Tracked) -> None:
        """When the last beam has ended: the sequences found are the oracle's."""
        search = request.search
        assert search is not None
        reasons = [one.reason for one in self.ended if one.search is search]
        if len(reasons) < search.params.beam_width or set(reasons) & {"abort", "error"}:
            return
        assert len(set(reasons)) == 1, f"beams of one search ended by {reasons}"
        found = [(one.tip.token_ids(), one.cum_logprob) for one in search.best()]
        expected = beam_oracle(request.prompt, search.params, list(request.stop_ids))
        assert found == expected, f"the beams of {request.prompt} found {found}, not {expected}"
        self.totals["searches"] = self.totals.get("searches", 0) + 1

    def _check_end(self, request: Tracked) -> None:
        if request.search is not None:
            self._check_search(request)
            return
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
