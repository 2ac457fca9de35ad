"""What lets a state on the host have its stages run there, in place of the kernels.

A stage is called with the state that it works on, its request table or its page pool first. Where
that state has `stages` (paged/simulator), the method of the stage's name does the work: schedulers,
allocators and eviction policies call the same functions either way.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast


class Stage(Protocol):
    __wrapped__: Callable[..., None]  # the launch itself, whatever the state has

    def __call__(self, state: Any, *args: Any, **knobs: Any) -> None: ...


def stage(launch: Callable[..., None]) -> Stage:
    """Hand the call to the state's own stages, if it has any."""

    @functools.wraps(launch)
    def run(state: Any, *args: Any, **knobs: Any) -> None:
        if state.stages is None:
            launch(state, *args, **knobs)
        else:
            getattr(state.stages, launch.__name__)(state, *args, **knobs)

    return cast(Stage, run)
