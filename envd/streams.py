"""The three streams that every program begins with, whether or not its caller left them open."""

from __future__ import annotations

import os
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def fill() -> None:
    """Open those that the caller closed (`>&-`), to nothing.

    Python has none then, and the next file that is opened, a socket or a lock among them, is
    what a child takes for its output.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, descriptor == number)
            setattr(sys, name, os.fdopen(descriptor, mode))
