"""What environments are just now, as messages: ready, being built, going, or failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envd_client.v1 import envd_pb2 as api

from envd import messages
from envd.builds import elsewhere
from envd.errors import EnvdError, EnvironmentNotFoundError
from envd.store import Store, prefixes

if TYPE_CHECKING:
    from envd.builds.builds import Builds
    from envd.builds.following import Build


class Snapshots:
    """Looks at a store, the builds of a daemon, and those of other processes.

    It reads files, and is for threads that may wait.
    """

    def __init__(self, store: Store, builds: Builds | None = None) -> None:
        """Look at these; without a daemon there are the builds of other processes only."""
        self._store = store
        self._builds = builds

    def any(self, prefix: str, *, full: bool = False) -> api.Environment:
        """Return the environment or build whose id or spec_key begins with *prefix*.

        Raises:
            RequestInvalidError: the prefix is too short or fits several.
            EnvironmentNotFoundError: it fits none.
        """
        prefixes.check(prefix)
        build = self._builds.get(prefix) if self._builds else None
        if build and not build.done.done():
            return self.unready(build)
        if other := elsewhere.find(self._store, prefix):
            return messages.elsewhere(self._store, other)
        try:
            return self.published(prefix, full=full)
        except EnvironmentNotFoundError:
            # What is remembered knows for how long; what is not was of this machine.
            failed = [one for one in self._store.failures.all() if one.spec_key.startswith(prefix)]
            if failed:
                return messages.failed(failed[-1])
            if build is None or not build.done.exception():
                raise
            return self.unready(build)

    def published(self, prefix: str, *, full: bool = False) -> api.Environment:
        """Return the published environment whose id or spec_key begins with *prefix*.

        Raises:
            RequestInvalidError: the prefix is too short or fits several.
            EnvironmentNotFoundError: it fits none.
        """
        record = prefixes.resolve(self._store, prefix)
        return messages.full(self._store, record) if full else messages.listed(record)

    def unready(self, build: Build) -> api.Environment:
        """Return what *build* is to make, or how it failed."""
        failed = build.done.exception() if build.done.done() else None
        error = failed if isinstance(failed, EnvdError) else None
        message = messages.unready(build.asked, build.seconds, error, build.env_id)
        message.log_path = str(self._store.layout.log(build.asked.spec.key))
        return message

    def others(self) -> list[api.Environment]:
        """Return what is being built, by whatever process, what is going, and what has failed."""
        ours = self._builds.all_under_way() if self._builds else []
        keys = {one.asked.spec.key for one in ours}
        theirs = [one for one in elsewhere.under_way(self._store) if one.spec_key not in keys]
        keys |= {one.spec_key for one in theirs}
        failed = [one for one in self._store.failures.all() if one.spec_key not in keys]
        return [
            *map(self.unready, ours),
            *(messages.elsewhere(self._store, one) for one in theirs),
            *map(messages.listed, self._store.deleting()),
            *map(messages.failed, failed),
        ]
