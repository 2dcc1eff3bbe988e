"""One build as it goes on: what it may take, whom it tells, and its log."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

from envd import durable
from envd.child import Limits
from envd.config import Settings
from envd.environments.waiting import Waiting, written
from envd.errors import CacheFullError
from envd.events import Event, Line, Note, OnEvent, Stage
from envd.store import Store, slots


class Work:
    """What locks, builds or repairs below one root.

    What `log` is told is written into the log and passed on. Whoever waits writes nothing:
    the log is that of the builder it waits for.
    """

    def __init__(self, settings: Settings, store: Store, spec_key: str, on_event: OnEvent) -> None:
        """Begin with all the time that *settings* allow; the log is that of *spec_key*."""
        self.log_path = store.layout.log(spec_key)
        self.on_event = on_event
        self.waiting = Waiting(on_event)
        self._settings, self._store = settings, store
        self._left_s: float = settings.build.timeout
        self._file: TextIO | None = None
        self._noted: set[Note] = set()

    def begin(self) -> TextIO:
        """Begin the log: what the build before said is nothing to whoever waits."""
        if self._file is None:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            # A new file: who still reads that of the build before sees that it is over.
            beside = durable.unfinished(self.log_path)
            self._file = beside.open("w")
            beside.replace(self.log_path)
        return self._file

    def log(self, event: Event) -> None:
        """Write *event* into the log, and pass it on."""
        if isinstance(event, Stage):
            self._write(written(event))
        elif isinstance(event, Line):
            self._write(event.text)
        self.on_event(event)

    def note(self, notes: Iterable[Note]) -> None:
        """Log those of *notes* that are not in the log yet, a line each."""
        for one in notes:
            if one not in self._noted:
                self._noted.add(one)
                self.log(Line(f"note: {one.message}"))

    @contextlib.contextmanager
    def going_on(self) -> Iterator[Limits]:
        """Work as one of `build.at_once`, within what is left; waiting for that costs nothing.

        Raises:
            CacheFullError: the disk has too little free.
        """
        with slots.one_of(self._settings.build.at_once, self._store.layout, self._queued):
            self._check_disk(0)
            began = time.monotonic()
            try:
                yield Limits(began + self._left_s, self._settings.build.silence, self._check_disk)
            finally:
                self._left_s -= time.monotonic() - began

    def close(self) -> None:
        """Close the logs."""
        self.waiting.close()
        if self._file:
            # What the log has not taken, a full disk will not take now either.
            with contextlib.suppress(OSError):
                self._file.close()

    def _queued(self) -> None:
        count = self._settings.build.at_once
        builds = "the build under way" if count == 1 else f"one of the {count} builds under way"
        self.on_event(Stage("queued", f"waiting for {builds} to end"))

    def _check_disk(self, _: int) -> None:
        root, reserve = self._settings.root, self._settings.build.reserve
        if (free := shutil.disk_usage(root).free) < reserve:
            message = (
                f"the disk of `{root}` has {free / 1e6:.0f} MB free, and a build leaves "
                f"{reserve / 1e6:.0f} MB (`build.reserve`); `envctl gc` frees some"
            )
            raise CacheFullError(message, root=root)

    def _write(self, text: str) -> None:
        file = self.begin()
        file.write(f"{text}\n")
        file.flush()
