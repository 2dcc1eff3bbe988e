"""Who uses an environment, how often, and when last: what gc goes by."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from envd import durable, failpoint
from envd.store.clock import Clock
from envd.store.layout import Layout

log = logging.getLogger(__name__)
_CREATED = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


class Uses:
    """The uses of the environments below one root.

    The file `used` of an environment has its last use for an mtime and the number of uses
    for a size: recording one is four system calls and never a write. It takes no room, for
    it is one hole.
    """

    def __init__(self, layout: Layout, clock: Clock) -> None:
        """Record them below *layout*, at the moments of *clock*."""
        self._layout = layout
        self._environments = str(layout.environments)
        self._clock = clock

    def begin(self, env_id: str) -> None:
        """Make the file of an environment that is about to be ready: built is as good as used."""
        path = self._layout.used(env_id)
        path.touch()
        moment = self._clock.now()
        os.utime(path, (moment, moment))

    def record(self, env_id: str, times: int = 1) -> None:
        """Remember that *env_id* was used just now, so many *times*."""
        moment = int(self._clock.now() * 1e9)
        try:
            failpoint.reach("lease.used")
            # A Path would take longer than the rest.
            file = os.open(f"{self._environments}/{env_id}/used", _CREATED, 0o600)
            try:
                os.ftruncate(file, os.fstat(file).st_size + times)
                os.utime(file, ns=(moment, moment))
            finally:
                os.close(file)
        except OSError as error:
            # It may have been removed meanwhile; and this must not cost anybody an answer.
            log.info("a use could not be recorded: %s", error)

    def last(self, env_id: str) -> float:
        """Return when *env_id* was last used, or became ready; 0 where it is not here."""
        for path in (self._layout.used(env_id), self._layout.manifest(env_id)):
            with contextlib.suppress(OSError):
                return path.stat().st_mtime
        return 0.0

    def record_model(self, env_id: str, model: Path) -> None:
        """Remember that *env_id* is what *model* asks for."""
        name = hashlib.sha256(os.fsencode(model)).hexdigest()[:16]
        mark = self._layout.used_by(env_id) / name
        if mark.exists():
            return
        try:
            mark.parent.mkdir(exist_ok=True)
            beside = durable.unfinished(mark)
            beside.write_bytes(os.fsencode(model))
            beside.replace(mark)
            # So that whoever lists looks again.
            os.utime(self._layout.environment(env_id))
        except OSError as error:
            log.warning("the model of an environment could not be recorded: %s", error)

    def models(self, env_id: str) -> tuple[str, ...]:
        """Return the models that have used *env_id*, by path, as what can be shown."""
        found = []
        for mark in self._layout.used_by(env_id).glob("[!.]*"):
            # The environment may be removed meanwhile.
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                found.append(mark.read_bytes().decode(errors="replace"))
        return tuple(sorted(found))
