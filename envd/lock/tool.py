"""A program that envd runs for its work: how long it may, and who is kept out meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Self

from envd.child import Limits
from envd.config import Settings
from envd.errors import BuildTimedOutError
from envd.held import Held


@dataclass(frozen=True, slots=True)
class Tool:
    """A program as one root uses it.

    It inherits the file that is held while it works, so that whoever comes next waits
    until the last child of a killed envd is gone, or ends it. Without limits, each time it
    runs has those of the settings.
    """

    settings: Settings
    held: Held | None = None
    limits: Limits | None = None

    def within(self, held: Held, limits: Limits | None = None) -> Self:
        """Return the same for work that *held* keeps others from, and that *limits* end."""
        return replace(self, held=held, limits=limits or self.limits)

    def limited(self) -> Limits:
        """Return the limits of what begins now."""
        build = self.settings.build
        return self.limits or Limits(time.monotonic() + build.timeout, build.silence)

    def check_time(self) -> None:
        """See that there is time left.

        Raises:
            BuildTimedOutError: there is none.
        """
        if time.monotonic() >= self.limited().deadline:
            raise self._late()

    def _late(self) -> BuildTimedOutError:
        seconds = self.settings.build.timeout
        return BuildTimedOutError(f"the build was stopped after {seconds:.0f} s (`build.timeout`)")
