"""The models that have a name or were loaded: where each is, and whether it can answer."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from grpc_health.v1 import health, health_pb2

from envd.errors import EnvdError, RequestInvalidError
from envd.events import Note
from envd.model import Model, naming, repository
from envd.model.repository import Offered
from envd.run.serving import Serving
from envd.secrets import redact
from envd.settings.served import Served
from envd.settings.values import ModelUri

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class State(enum.Enum):
    """Whether a model can answer at once."""

    UNLOADED = "UNLOADED"
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(slots=True, eq=False)
class Entry:
    """One of these models, as far as it is known: the rest is of the last time it was asked.

    Of a repository folder it may be one of several with one name; it has a `version` then,
    and may be called NAME/VERSION. What it was `refused` as, the digest of its model and its
    environment, is not ready whoever is answered by it.
    """

    served: Served
    version: str = ""
    state: State = State.UNLOADED
    failure: EnvdError | None = None
    model: Model | None = None
    serving: Serving | None = None
    environment_id: str = ""
    mlflow_version: str = ""
    notes: tuple[Note, ...] = ()
    refused: tuple[str, str] | None = None

    @property
    def service(self) -> str:
        """What the health service calls it."""
        return f"models/{self.served.name}"

    @property
    def address(self) -> str:
        """What it may be called, and no other."""
        return f"{self.served.name}/{self.version}" if self.version else self.served.name


class Entries:
    """All of them; each `generation` has others, or other names for them."""

    def __init__(
        self,
        configured: Iterable[Served],
        teller: health.aio.HealthServicer,
        offered: Iterable[Offered] = (),
    ) -> None:
        """Know those of the settings, and those *offered* by the repository folder.

        *teller* is told what state those with names are in.

        Raises:
            SettingsInvalidError: one of these and one of those have the same name.
        """
        self._teller = teller
        self._all = [Entry(one) for one in configured]
        self._configured = frozenset(self._all)
        self._offered: frozenset[Entry] = frozenset()
        self.generation = 0
        self._replace_offered(offered)

    def __iter__(self) -> Iterator[Entry]:
        """Yield them by name, those without one last."""
        yield from self._in_order

    def is_configured(self, entry: Entry | None) -> bool:
        """Whether *entry* is a model of the settings, or of the repository folder."""
        return entry in self._configured or entry in self._offered

    def is_in_settings(self, name: str) -> bool:
        """Whether the settings themselves give a model this *name*."""
        return self._by_name.get(name) in self._configured

    def find(self, text: str) -> Entry | None:
        """Return the one called *text*, or the first whose path or URI that is."""
        return self._by_name.get(text) or self._by_uri.get(naming.canonical(text))

    def listed_as(self, text: str) -> Entry | None:
        """Return the first that lists call *text*: its URI without what is secret in it."""
        return next((one for one in self if redact(one.served.uri) == text), None)

    def nameless(self, uri: str) -> list[Entry]:
        """Return those without a name whose path or URI is *uri*."""
        same = (one for one in self if naming.canonical(one.served.uri) == naming.canonical(uri))
        return [one for one in same if not one.served.name]

    def named(self, name: str) -> Entry | None:
        """Return the one that is served by *name*, which is no path and no URI."""
        return self._by_name.get(name)

    def uri_of(self, text: str) -> str:
        """Return the path or the URI that *text* stands for.

        Raises:
            ModelNotFoundError: it is a name, and no model has it.
        """
        if found := self._by_name.get(text):
            return found.served.uri
        return naming.uri_of(text, (one.served for one in self._by_name.values()))

    def check_free(self, name: str) -> None:
        """See that *name* may be given to a model.

        Raises:
            RequestInvalidError: it is the name of a model of the settings.
        """
        if self.is_configured(self._by_name.get(name)):
            message = f"the settings call a model `{name}`, or their folder; give another name"
            raise RequestInvalidError(message, name=name)

    def versions(self, name: str) -> list[Entry]:
        """Return all that are served by *name*, the newest last."""
        return self._versions.get(name, [])

    async def configure(self, configured: Iterable[Served]) -> tuple[list[Entry], list[Entry]]:
        """Have *configured* in the place of what the settings had.

        Return those that are gone and those that are new. One that is as it was stays, and
        what somebody else gave one of their names has it no more.

        Raises:
            SettingsInvalidError: one has the name of one of the repository folder; nothing has
                changed.
        """
        known = {one.served: one for one in self._configured}
        now = [known.pop(one) if one in known else Entry(one) for one in configured]
        names = {one.served.name for one in now}
        repository.check_free((one.served.name for one in self._offered), names)
        rest = [one for one in self._all if one not in self._configured]
        gone = [*known.values(), *(one for one in rest if one.served.name in names)]
        new = [one for one in now if one not in self._configured]
        self._all = [*now, *(one for one in rest if one not in gone)]
        self._configured = frozenset(now)
        self._index()
        for entry in new:
            await self._tell(entry)
        await self._tell_gone(gone)
        return gone, new

    async def adopt(self, offered: Iterable[Offered]) -> list[Entry]:
        """Have those *offered* in the place of those that were; return the ones that are gone.

        Raises:
            SettingsInvalidError: another model has the name of one; nothing has changed.
        """
        before = self._offered
        gone = self._replace_offered(offered)
        for entry in self._offered - before:
            await self._tell(entry)
        await self._tell_gone(gone)
        return gone

    async def _tell_gone(self, gone: Iterable[Entry]) -> None:
        """Tell of each of their names whose it is now, if it is anybody's."""
        for name in {one.served.name for one in gone}:
            if newest := self._by_name.get(name):
                await self._tell(newest)
            else:
                await self._teller.set(f"models/{name}", _UNKNOWN)

    def _replace_offered(self, offered: Iterable[Offered]) -> list[Entry]:
        known = {(one.served, one.version): one for one in self._offered}
        rest = [one for one in self._all if one not in self._offered]
        now = []
        for one in offered:
            key = Served(one.name, ModelUri(str(one.path))), one.version
            now.append(known.pop(key) if key in known else Entry(*key))
        repository.check_free((one.served.name for one in now), (one.served.name for one in rest))
        self._all, self._offered = [*rest, *now], frozenset(now)
        self._index()
        return list(known.values())

    async def put(self, entry: Entry) -> None:
        """Have *entry* among them, in the place of one that has its name.

        Raises:
            RequestInvalidError: it has the name of a model of the settings.
        """
        if entry in self._all:
            return
        self.check_free(entry.served.name)
        before = self._by_name.get(entry.served.name)
        self._all = [one for one in self._all if one is not before] + [entry]
        self._index()
        await self._tell(entry)

    async def drop(self, entry: Entry) -> None:
        """Have *entry* no longer among them, unless it is one of the settings."""
        if self.is_configured(entry) or entry not in self._all:
            return
        self._all.remove(entry)
        self._index()
        if entry.served.name:
            await self._teller.set(entry.service, _UNKNOWN)

    async def announce(self) -> None:
        """Tell the health of all."""
        for entry in self._all:
            await self._tell(entry)

    async def change(self, entry: Entry, state: State, failure: EnvdError | None = None) -> None:
        """Say that *entry* is in *state*, and why if that is FAILED."""
        # As raised, it would keep the request that met it.
        entry.state, entry.failure = state, failure and failure.anew()
        await self._tell(entry)

    async def _tell(self, entry: Entry) -> None:
        # One that was replaced meanwhile has nothing to say of its name.
        if self._by_name.get(entry.served.name) is entry:
            is_ready = entry.state is State.READY
            await self._teller.set(entry.service, _SERVING if is_ready else _NOT_SERVING)

    def _index(self) -> None:
        self.generation += 1
        self._in_order = sorted(
            self._all, key=lambda one: (not one.served.name, one.served.name, one.served.uri)
        )
        self._versions: dict[str, list[Entry]] = {}
        for one in sorted((one for one in self._all if one.served.name), key=_age):
            self._versions.setdefault(one.served.name, []).append(one)
        newest = {name: found[-1] for name, found in self._versions.items()}
        self._by_name = {one.address: one for found in self._versions.values() for one in found}
        self._by_name |= newest
        self._by_uri: dict[str, Entry] = {}
        for entry in sorted(self._all, key=lambda one: not one.served.name):
            self._by_uri.setdefault(naming.canonical(entry.served.uri), entry)


def _age(entry: Entry) -> int:
    return int(entry.version or 1)
