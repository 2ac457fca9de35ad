"""The engine's loop, in a process of its own.

It takes commands between two steps and waits for them only when no request is live. The process
ends when it is told to, or when the HTTP process is gone.
"""

import signal
import time
import traceback
from array import array
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from paged.engine import StepStats
from paged.live_request import LiveRequest
from paged.llm import LLM
from paged.mailbox import Report
from paged.server.inspection import Profile, reset_prefix_cache, snapshot
from paged.server.tracked import Tracked
from paged.server.wire import (
    Abort,
    Call,
    Failed,
    Outbox,
    Progress,
    Ready,
    Reply,
    Steps,
    Stop,
    Submit,
    Tokens,
)  # fmt: skip


def run_engine(build: Callable[[], LLM], connection: Connection, profile_dir: str | None) -> None:
    """The process's main function: build the engine, then serve until told to stop."""
    # Ctrl-C and a service manager's SIGTERM reach every process of the group; the HTTP process
    # decides when the engine goes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    outbox = Outbox(connection, "events")
    try:
        llm = build()
        EngineLoop(llm, connection, outbox, profile_dir).run()
    except ValueError as error:
        outbox.put(Failed(str(error), by_user=True))
    except (EOFError, ConnectionError):
        pass  # the HTTP process is gone
    except Exception:
        outbox.put(Failed(traceback.format_exc(), by_user=False))
        raise
    finally:
        outbox.close()


class EngineLoop:
    """Commands in, steps, events out.

    Args:
        profile_dir: where /debug/profile writes; None refuses it.
    """

    def __init__(
        self, llm: LLM, connection: Connection, outbox: Outbox, profile_dir: str | None
    ) -> None:
        self.engine, self.connection, self.outbox = llm.engine, connection, outbox
        self.profile_dir = profile_dir
        self.tracked: dict[int, Tracked] = {}
        # By slot, the key of an output whose next token is only to be passed on; else -1.
        self._plain_keys = np.full(self.engine.sizes.num_slots, -1)
        self._steps: list[StepStats] = []
        self._profile: Profile | None = None
        self.engine.on_step = self._steps.append
        self.outbox.put(
            Ready(
                sizes=self.engine.sizes,
                limits=self.engine.limits,
                tokenizer=llm.tokenizer,
                grammars=self.engine.constraints.compiler,
            )
        )

    def run(self) -> None:
        while self._take_commands():
            if not self.engine.has_unfinished:
                continue
            self._report(self.engine.step())
            if self._profile is not None and self._profile.step():
                self._end_profile(self._profile)

    def _take_commands(self) -> bool:
        """Carry out every command that has come; without a live request, wait for one."""
        wait = not self.engine.has_unfinished
        while wait or self.connection.poll(0):
            for command in self.connection.recv():
                if isinstance(command, Submit):
                    self._submit(command)
                elif isinstance(command, Abort):
                    for key in command.keys:
                        self._abort(key)
                elif isinstance(command, Call):
                    self._call(command)
                elif isinstance(command, Stop):
                    return False
            wait = False
        return True

    def _submit(self, command: Submit) -> None:
        ids = array("i", command.token_ids).tolist()
        try:
            name, search = str(command.key), command.search
            if search is None:
                live = self.engine.submit(ids, command.params, request_id=name)
            else:
                live = self.engine.submit_beams(ids, search, request_id=name)
        except ValueError as error:  # the HTTP process checks first; the engine has the last word
            for number in range(command.params.n):
                failed = Progress(command.key + number, [], [], 0)
                self.outbox.put(failed._replace(finish_reason="refused", error=str(error)))
            return
        for output in live.group:
            self.tracked[command.key + output.index] = Tracked(output)

    def _abort(self, key: int) -> None:
        """End one output; the others of its request go on."""
        tracked = self.tracked.get(key)
        if tracked is None:
            return
        live = tracked.live
        if live.slot >= 0:
            self._plain_keys[live.slot] = -1
        self.engine.stop(live, len(live.completion.token_ids), "")
        if live.has_ended:  # it was queued: no step will report its end
            del self.tracked[key]

    def _report(self, touched: list[LiveRequest]) -> None:
        """Send what a step has brought."""
        now = time.perf_counter()
        messages: list[object] = []
        if self._steps and self._steps[-1].num_admitted:
            self._note_admissions(now - self._steps[-1].seconds)
        if self.engine.report is not None:
            self._report_tokens(self.engine.report, touched, now, messages)
        if self._steps:
            messages.append(self._take_steps())
        self.outbox.put(*messages)

    def _report_tokens(
        self, report: Report, touched: list[LiveRequest], now: float, messages: list[object]
    ) -> None:
        """What a step has drawn: nearly always a token each, which are passed on as columns."""
        if report.end_slots:
            self._plain_keys[report.end_slots] = -1
        slots, counts = report.token_slots, None
        columns = (report.token_ids, report.logprobs)
        if self.engine.sizes.num_draft_tokens:  # some may have drawn several
            slots, rows, counts = np.unique(slots, return_index=True, return_counts=True)
            columns = (report.token_ids[rows], report.logprobs[rows])
        keys = self._plain_keys[slots]
        plain = keys >= 0 if counts is None else (keys >= 0) & (counts == 1)
        others = np.flatnonzero(~plain).tolist()
        if len(others) < len(slots):
            messages.append(Tokens(*(column[plain].tobytes() for column in (keys, *columns))))
        for row in others:
            self._progress(touched[row], 1 if counts is None else int(counts[row]), now, messages)
        for live in touched[len(slots) :]:
            self._progress(live, 0, now, messages)

    def _progress(
        self, live: LiveRequest, num_new: int, now: float, messages: list[object]
    ) -> None:
        """What an output has brought that is more than a token: `num_new` of them, or its end."""
        tracked = self.tracked.get(int(live.request_id) + live.index)
        if tracked is None:
            return
        if live.beams is not None:
            if live.finished:  # and all of its group, in the same step or before
                beams = map(self._forget, live.group)
                messages += [beam.searched(now) for beam in beams if beam is not None]
            return
        progress = tracked.progress(num_new, now)
        if progress is None:
            return
        messages.append(progress)
        if live.has_ended:
            self._forget(live)
        elif not live.params.logprobs and live.stop_met is None:
            self._plain_keys[live.slot] = tracked.key

    def _forget(self, live: LiveRequest) -> Tracked | None:
        """It has ended; None if it was given up before."""
        return self.tracked.pop(int(live.request_id) + live.index, None)

    def _note_admissions(self, began: float) -> None:
        """A step that began then has admitted requests."""
        for tracked in self.tracked.values():
            live = tracked.live
            if tracked.admitted is None and (live.running or live.completion.token_ids):
                tracked.admitted = began

    def _take_steps(self) -> Steps:
        """The steps since the last call, as one message."""
        steps, last = list(self._steps), self._steps[-1]
        self._steps.clear()
        return Steps(
            num_running=last.num_running,
            num_waiting=max(0, len(self.tracked) - last.num_running),
            free_pages=last.free_pages,
            cached_pages=last.cached_pages,
            num_preempted=sum(stats.num_preempted for stats in steps),
            cached_tokens=sum(stats.cached_tokens for stats in steps),
            num_draft_tokens=sum(stats.num_draft_tokens for stats in steps),
            num_accepted_tokens=sum(stats.num_accepted_tokens for stats in steps),
            num_tokens=[stats.num_tokens for stats in steps if stats.num_tokens],
            seconds=sum(stats.seconds for stats in steps),
        )

    def _call(self, call: Call) -> None:
        try:
            if call.name == "profile":
                self._begin_profile(call)
                return
            value: Any
            if call.name == "state":
                value = snapshot(self.engine, [item.live for item in self.tracked.values()])
            else:
                value = reset_prefix_cache(self.engine)
        except ValueError as error:
            self.outbox.put(Reply(call.number, None, str(error)))
        else:
            self.outbox.put(Reply(call.number, value))

    def _begin_profile(self, call: Call) -> None:
        if self.profile_dir is None:
            raise ValueError("profiling is off; start the server with profile_dir=FOLDER")
        if self._profile is not None:
            raise ValueError("a profile is being taken; wait for it to end")
        self._profile = Profile(call.number, self.profile_dir, **call.arguments)

    def _end_profile(self, profile: Profile) -> None:
        self._profile = None
        self.outbox.put(Reply(profile.number, profile.save()))
