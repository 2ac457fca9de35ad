"""A hypothesis state machine over submit, abort, step and evict, at tiny sizes.

`Steps` is its model: the requests as the host sees them, and `oracle` for what each must get. It
checks after every step that pages are conserved, that each request's tokens are appended once and
in order, and that each ends once; at the end of an example nothing may be left behind.
"""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from paged.beams import BeamSearchParams
from paged.kernels.control.budget import UNLIMITED, PageBudget
from paged.kv.contiguous_max import reserve_len
from paged.schedulers.fcfs import rank as fcfs
from paged.schedulers.priority import rank as priority
from paged.schedulers.sjf import rank as sjf
from paged.state import Sizes
from paged.testing.sides import Knobs
from paged.testing.steps import Steps

STEMS = [[(a * i + i * i) % 64 for i in range(64)] for a in (3, 10)]
TWO_PAGES = PageBudget(pages=2, share=1024, sink_pages=0, recent=0)
HALF = PageBudget(pages=UNLIMITED, share=512, sink_pages=1, recent=5)
LENGTHS = (1, 15, 16, 17, 31, 33, 48)
KNOBS = st.one_of(
    st.builds(
        Knobs,
        chunk=st.sampled_from((3, 20, 64)),
        budget=st.sampled_from((2, 24, 64)),
        watermark=st.sampled_from((0, 0, 2)),
        low_water=st.sampled_from((0, 1, 3)),
        static_batch=st.booleans(),
    ),
    st.builds(Knobs, rank=st.sampled_from((priority, sjf)), preemptive=st.booleans()),
    st.builds(
        Knobs,
        rank=st.sampled_from((fcfs, priority)),
        preemptive=st.booleans(),
        chunk=st.sampled_from((5, 64)),
        page_budget=st.sampled_from((TWO_PAGES, HALF)),
    ),
    st.builds(Knobs, reserve=st.just(reserve_len), prefix_caching=st.booleans()),
)


class Machine(RuleBasedStateMachine):
    by = "references"
    device = "cpu"

    @initialize(
        knobs=KNOBS,
        num_pages=st.sampled_from((5, 6, 9, 20)),
        num_seqs=st.integers(1, 4),
        num_buckets=st.sampled_from((1, 2, 64)),
        num_drafts=st.sampled_from((0, 0, 1, 4)),
        num_host_pages=st.sampled_from((0, 2, 9)),
    )
    def start(self, knobs, num_pages, num_seqs, num_buckets, num_drafts, num_host_pages):
        if knobs.page_budget is not None:
            num_drafts = num_host_pages = 0  # LLM refuses them together
        if knobs.reserve is not None:
            num_host_pages = 0
        sizes = Sizes(
            num_slots=5, max_num_seqs=num_seqs, max_num_batched_tokens=64, max_model_len=80,
            page_size=16, num_pages=num_pages, num_draft_tokens=num_drafts,
            num_host_pages=num_host_pages,
        )  # fmt: skip
        self.steps = Steps(sizes, knobs, by=self.by, device=self.device, num_buckets=num_buckets)
        self.knobs, self.submitted = knobs, []

    @rule(
        stem=st.sampled_from(STEMS),
        length=st.sampled_from(LENGTHS),
        tail=st.lists(st.integers(0, 63), max_size=2),
        tokens=st.integers(1, 12),
        urgency=st.integers(0, 2),
        stop_ids=st.sampled_from(((), (), tuple(range(8)))),
        nan_after=st.sampled_from((None, None, None, 0, 2)),
        copies=st.integers(1, 2),
        n=st.sampled_from((1, 1, 2, 3)),
    )
    def submit(self, stem, length, tail, tokens, urgency, stop_ids, nan_after, copies, n):
        prompt = [*stem[:length], *tail]
        for _ in range(copies):
            self.submitted += self.steps.submit_samples(
                prompt,
                tokens,
                n,
                priority=urgency,
                predicted_len=len(prompt) + tokens,
                stop_ids=stop_ids,
                nan_at=None if nan_after is None else len(prompt) - 1 + nan_after,
            )

    @rule(
        stem=st.sampled_from(STEMS),
        length=st.sampled_from(LENGTHS),
        tokens=st.integers(1, 12),
        width=st.integers(1, 3),
        penalty=st.sampled_from((0.0, 1.0, 2.0)),
        early_stopping=st.booleans(),
        stop_ids=st.sampled_from(((), (1, 2, 3))),
    )
    def submit_beams(self, stem, length, tokens, width, penalty, early_stopping, stop_ids):
        sizes, knobs = self.steps.sizes, self.steps.knobs
        pages = width * -(-(length + tokens) // sizes.page_size)
        fits = width <= min(sizes.max_num_seqs, knobs.budget) and pages <= sizes.num_pages
        if (
            fits and knobs.reserve is None and knobs.page_budget is None
        ):  # else the engine refuses it
            params = BeamSearchParams(
                width, tokens, length_penalty=penalty, early_stopping=early_stopping
            )
            self.submitted += self.steps.submit_beams(stem[:length], params, stop_ids)

    @rule(which=st.integers(0, 1000))
    def abort(self, which):
        if self.submitted:
            self.steps.abort(self.submitted[which % len(self.submitted)])

    @rule(count=st.integers(1, 5), capacity=st.sampled_from((1, 5, 16, 64, 64)))
    def step(self, count, capacity):
        """Steps of a graph that holds `capacity` tokens: the host may have guessed anything."""
        self.steps.knobs = replace(self.knobs, budget=min(self.knobs.budget, capacity))
        for _ in range(count):
            self.steps.step()

    @rule(low_water=st.integers(0, 20))
    def evict(self, low_water):
        self.steps.evict(low_water)

    def teardown(self):
        if not hasattr(self, "steps"):
            return
        self.steps.knobs = self.knobs
        self.steps.finish()
        ended = sorted(request.arrival for request in self.steps.ended)
        assert ended == [request.arrival for request in self.submitted], "each ends exactly once"


@pytest.mark.parametrize(("by", "examples", "rules"), [("references", 30, 25), ("both", 3, 8)])
def test_any_history(device, by, examples, rules):
    machine = type("Machine", (Machine,), {"by": by, "device": device})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=rules,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
