"""How builds have failed, so that none is tried again in vain.

A wrong spec is remembered for an hour, passing trouble for half a minute, doubling to ten;
trouble of this machine is never held against a spec, and neither is what the settings say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envd import durable, failpoint
from envd.errors import Blame, EnvdError, ModelInvalidError, PolicyDeniedError, from_document
from envd.store.clock import Clock
from envd.store.layout import Layout

_SPEC_S = 3600.0
_FIRST_S, _LONGEST_S = 30.0, 600.0
# Their reasons lie in the model's files and in the settings, which are in no key.
_PASSING = (ModelInvalidError, PolicyDeniedError)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed build: of what, how often it failed so, when, and for how long that counts."""

    spec_key: str
    day: str
    error: EnvdError
    count: int
    at: float
    wait_s: float
    about: dict[str, Any]


class Failures:
    """The failures remembered below one root."""

    def __init__(self, layout: Layout, clock: Clock) -> None:
        """Keep them in the `failures` of *layout*, dated by *clock*."""
        self._layout = layout
        self._clock = clock

    def get(self, spec_key: str, day: str | None = None) -> Failure | None:
        """Return how the build of a spec failed, while that still counts.

        Its error says how long to wait in `retry_after_s`.
        """
        return self._current(self._read(self._layout.failure(spec_key, day or "")))

    def all(self) -> list[Failure]:
        """Return every failure that still counts, the latest last."""
        found = [self._current(self._read(path)) for path in self._paths()]
        return sorted((one for one in found if one), key=lambda one: one.at)

    def remember(
        self, spec_key: str, day: str | None, error: EnvdError, about: dict[str, Any]
    ) -> None:
        """Remember that the build of a spec failed with *error*; *about* is kept beside it.

        The error says in `retry_after_s` then how long it counts.
        """
        path = self._layout.failure(spec_key, day or "")
        before = self._read(path)
        count = before.count + 1 if before and before.error.reason == error.reason else 1
        if (wait_s := _wait_s(error, count)) is None:
            return
        error.retry_after_s = wait_s
        failpoint.reach("failure.remember")
        document = {
            "spec_key": spec_key, "day": day or "", "error": error.document(), "count": count,
            "at": self._clock.now(), "wait_s": wait_s, "about": about,
        }  # fmt: skip
        durable.write_checked(path, document)

    def forget(self, spec_key: str, day: str | None = None) -> None:
        """Forget how the build of a spec failed."""
        self._layout.failure(spec_key, day or "").unlink(missing_ok=True)

    def forget_old(self) -> None:
        """Forget what does not count any more and has not been tried again for long."""
        for path in self._paths():
            found = self._read(path)
            if found is None or self._clock.age(found.at) > found.wait_s + _LONGEST_S:
                path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted((self._layout.root / "failures").glob("[!.]*.json"))

    def _current(self, found: Failure | None) -> Failure | None:
        if found is None:
            return None
        left = found.wait_s - self._clock.age(found.at)
        found.error.retry_after_s = round(left, 3)
        return found if left > 0 else None

    def _read(self, path: Path) -> Failure | None:
        try:
            document = durable.read_checked(path)
            error = from_document(document.pop("error"))
            return Failure(error=error, **document)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _wait_s(error: EnvdError, count: int) -> float | None:
    """Return how long *error*, come for the time *count* in a row, is remembered, if at all."""
    if isinstance(error, _PASSING) or error.blame is Blame.LOCAL:
        return None
    if error.blame is Blame.SPEC:
        return _SPEC_S
    return float(min(_FIRST_S * 2 ** min(count - 1, 10), _LONGEST_S))
