"""How many builds of one root work at once, in whatever processes they are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

from envd import held
from envd.store.layout import Layout

_POLL_S = 0.05


@contextlib.contextmanager
def one_of(count: int, layout: Layout, on_wait: Callable[[], None]) -> Iterator[None]:
    """Be one of at most *count* that work; *on_wait* is called once if that takes waiting.

    Take it after the file of what is worked on: whoever works must not wait for another.
    """
    with contextlib.ExitStack() as stack:
        files = [held.open_file(layout.held(f"slot-{number}")) for number in range(count)]
        for descriptor in files:
            stack.callback(os.close, descriptor)
        is_told = False
        while not any(held.try_lock(one, fcntl.LOCK_EX) for one in files):
            if not is_told:
                on_wait()
                is_told = True
            time.sleep(_POLL_S)
        yield
