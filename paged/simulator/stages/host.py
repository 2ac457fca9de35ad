"""The control plane's stages on the host, for a state on the CPU.

Set as `stages` of a request table and its page pool, it does what the stages of
`paged.kernels.control` are asked to do to them (see `stage.py` there): so schedulers, allocators
and eviction policies run as they are. A stage has the arguments of its launcher; the tables among
them are those that were given to HostStages.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from paged.kernels.control.columns import Now, Page, Row
from paged.kernels.control.evict import evict
from paged.kernels.control.order import order
from paged.kernels.launch import interpreted, is_kernel_function
from paged.simulator.lanes import Lanes, as_int32, lanes, on_lanes
from paged.simulator.stages import pages, publishing, rows, scheduling, swapping
from paged.simulator.stages.views import (
    AT_CACHED,
    AT_HEAD,
    AT_NOW_MS,
    AT_SHORTFALL,
    AT_STEP,
    AT_TAIL,
    IS_FINISHED,
    IS_PREEMPTED,
    IS_RUNNING,
    IS_WAITING,
    numpy_views,
)
from paged.simulator.stages.waiting import WaitingRows
from paged.state import PagePool, RequestTable, StepPlan


class HostStages:
    """Every stage of a step but the model and the draw.

    Args:
        inputs: lay out the model's inputs too, as a step with a model needs them.
    """

    def __init__(
        self, requests: RequestTable, pool: PagePool, plan: StepPlan, *, inputs: bool = False
    ) -> None:
        self.sizes, self.inputs = requests.sizes, inputs
        self.requests, self.pool = numpy_views(requests), numpy_views(pool)
        self.plan = numpy_views(plan)
        self.swaps = None if pool.swaps is None else numpy_views(pool.swaps)
        self.waiting = WaitingRows(self.requests, self.pool, self.sizes)
        self.order_of_rows = scheduling.OrderOfRows(self.requests, self.plan)
        self.needs_triton: set[Any] = set()  # policies that need Triton's interpreter
        self._known_arrays: dict[int, tuple[Any, Any]] = {}
        columns = {n: lanes(getattr(self.requests, n)) for n in Row._fields if n != "running"}
        self._columns = Row(running=None, **columns)
        requests.stages = pool.stages = self

    def ingest(self, _requests: Any, _pool: Any, commands: Any, _num_commands: int) -> None:
        arrays = self._arrays(commands)
        rows.apply_commands(self.requests, self.pool, arrays, self.sizes.page_size)

    def _arrays(self, tensors: Any) -> Any:
        """A named tuple of tensors as numpy arrays; the mailbox passes the same ones every step."""
        known = self._known_arrays.get(id(tensors))
        if known is None:
            arrays = type(tensors)(*(tensor.numpy() for tensor in tensors))
            known = self._known_arrays[id(tensors)] = (tensors, arrays)
        return known[1]

    def lookup(self, *_tables: Any) -> None:
        self.waiting.lookup()

    def order(
        self, requests: Any, pool: Any, plan: Any, rank: Callable | None = None, args: tuple = (),
        preemptive: bool = False,
    ) -> None:  # fmt: skip
        keys = None
        if rank is not None:
            keys = self._lanes_of(rank, self._row(), args, self.sizes.num_slots)
            if keys is None:
                order.__wrapped__(requests, pool, plan, rank, args, preemptive)
                return
        self.order_of_rows.write(keys, preemptive)

    def schedule(self, *_tables: Any, reserve: Callable | None = None, **knobs: Any) -> None:
        function = reserve
        if is_kernel_function(reserve):
            translated = on_lanes(reserve)

            def function(*lengths: np.ndarray) -> np.ndarray:
                with np.errstate(all="ignore"):
                    return as_int32(translated(*map(lanes, lengths)), len(lengths[0]))

        scheduling.schedule_rows(
            self.requests, self.pool, self.plan, self.sizes, reserve=function, **knobs
        )

    def prepare(self, *_tables: Any) -> None:
        num_seqs = int(self.plan.counts[1])
        woken = pages.book_pages(self.requests, self.pool, self.plan, num_seqs)
        if len(woken):
            self.waiting.holders_changed()
        if self.inputs:
            pages.lay_out_inputs(self.requests, self.plan, num_seqs, self.sizes.page_size)

    def swap(self, *_tables: Any) -> None:
        size = self.sizes.page_size
        swapping.swap_rows(self.requests, self.pool, self.plan, self.swaps, size)

    def update(
        self, _requests: Any, _pool: Any, _plan: Any, events: Any, known: bool = False
    ) -> None:
        plan, requests = self.plan, self.requests
        if known:
            slots = plan.sample_slots[: int(plan.counts[2])]
            plan.sampled_tokens[: len(slots)] = requests.token_ids[slots, requests.total_len[slots]]
        words = self._arrays(events).words
        rows.advance_rows(requests, self.pool, plan, words, self.sizes.page_size)

    def publish(self, *_tables: Any) -> None:
        if self.plan.counts[3] == 0:
            return
        entered = publishing.publish_pages(self.requests, self.pool, self.plan, self.sizes)
        if len(entered):
            self.waiting.published(entered)

    def release(self, _requests: Any, _pool: Any, _plan: Any, events: Any) -> None:
        status, counters = self.requests.status, self.pool.counters
        leaving = ((status == IS_FINISHED) | (status == IS_PREEMPTED)).nonzero()[0]
        if len(leaving):
            rested = pages.release_rows(self.requests, self.pool, self.plan, leaving)
            if len(rested):
                self.waiting.holders_changed()
        step, counts = int(counters[AT_STEP]), self.plan.counts.tolist()
        header = (
            counts[7], counts[0], counts[1], int(counters[AT_TAIL] - counters[AT_HEAD]),
            int(counters[AT_CACHED]), int(counters[AT_SHORTFALL]),
            np.count_nonzero(status == IS_RUNNING), np.count_nonzero(status == IS_WAITING),
            counts[4], counts[5], counts[3], *counts[10:14], self.plan.seq_lens.sum(),
        )  # fmt: skip
        words = self._arrays(events).words
        words[step % len(words), : len(header)] = np.array(header) | rows.step_tag(step)
        counters[AT_STEP] += 1

    def evict(
        self, pool: PagePool, low_water: int, score: Callable | None = None, args: tuple = ()
    ) -> None:
        if score is not None and pages.num_to_evict(self.pool, low_water) > 0:
            scores = self._lanes_of(score, self._page(), args, self.sizes.num_pages)
            if scores is None:
                before = self.pool.serial > 0
                evict.__wrapped__(pool, low_water, score, args)
                self.waiting.evicted((before & (self.pool.serial == 0)).nonzero()[0])
                return
            self.pool.score[:] = scores
        evicted = pages.evict_pages(self.pool, low_water)
        if len(evicted):
            self.waiting.evicted(evicted)

    def _row(self) -> Row:
        """The columns never move, so only `running`, which is no column, is made anew."""
        running = (self.requests.status == IS_RUNNING).astype(np.int32)
        return self._columns._replace(running=lanes(running))

    def _page(self) -> Page:
        return Page(*(lanes(getattr(self.pool, name)) for name in Page._fields))

    def _lanes_of(self, function: Any, view: Any, args: tuple, count: int) -> np.ndarray | None:
        """[count] int32 that a policy gives its lanes; None if it has to be interpreted."""
        if function in self.needs_triton:
            return None
        counters = self.pool.counters
        step, now_ms = counters[AT_STEP : AT_NOW_MS + 1].astype(np.int32).view(Lanes)[:, None]
        now = Now(step, now_ms)
        try:
            with np.errstate(all="ignore"):
                return as_int32(on_lanes(function)(view, now, *args), count)
        except Exception as error:  # whatever numpy says of code that is meant for Triton
            if not interpreted():
                raise ValueError(
                    f"{function.fn.__name__} uses what the simulator cannot run on the CPU "
                    f"({error}); set TRITON_INTERPRET=1, and the interpreter runs it"
                ) from error
            self.needs_triton.add(function)
            return None
