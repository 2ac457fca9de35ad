"""What waits on the host to become a command of a step: outputs without a slot, and aborts."""

from collections import deque
from collections.abc import Callable

from paged.ledger import Ledger
from paged.live_request import LiveRequest
from paged.mailbox import Mailbox
from paged.submission import Submission


class CommandQueue:
    """First in, first out.

    Args:
        shares: outputs of one request share the memory of its prompt; False where every output
            reserves its own stretch of memory.
    """

    def __init__(self, mailbox: Mailbox, ledger: Ledger, *, shares: bool) -> None:
        self.mailbox, self.ledger, self.shares = mailbox, ledger, shares
        self._waiting: deque[LiveRequest] = deque()
        self._aborting: deque[LiveRequest] = deque()

    def add(self, group: list[LiveRequest]) -> None:
        """Queue all outputs of a request."""
        self._waiting.extend(group)

    def abort(self, live: LiveRequest) -> bool:
        """Let go of an output; False if it holds a slot, and so has to be aborted by a command."""
        if live.slot < 0:
            self._waiting.remove(live)
            return True
        self._aborting.append(live)
        return False

    def take_aborts(self) -> list[int]:
        """Slots to abort in the next step, as far as the mailbox allows."""
        slots: list[int] = []
        while self._aborting and len(slots) < self.mailbox.max_commands:
            live = self._aborting.popleft()
            if live.slot >= 0:  # else it has ended by itself
                slots.append(live.slot)
        return slots

    def take_submissions(
        self,
        num_commands: int,
        started: float,
        engine_seed: int,
        may_enter: Callable[[LiveRequest], bool],
    ) -> list[Submission]:
        """Give slots to waiting outputs, as far as slots, the mailbox and `may_enter` allow.

        The step has `num_commands` commands already; `started` and `engine_seed` are what
        `LiveRequest.submission` takes.
        """
        submissions: list[Submission] = []
        num_tokens, room = 0, self.mailbox.max_commands - num_commands
        while self._waiting and len(submissions) < room:
            live = self._waiting[0]
            # The first output waits for the slots of all, which share its prompt while it runs.
            if self.ledger.num_free < (len(live.group) if live.index == 0 else 1):
                break
            if not submissions or submissions[-1].prompt is not live.sent_ids:
                num_tokens += len(live.sent_ids)
            if not self.mailbox.room_for(num_tokens) or not may_enter(live):
                break
            self._waiting.popleft()
            self.ledger.enter(live)
            submissions.append(live.submission(started, engine_seed, shares=self.shares))
        return submissions
