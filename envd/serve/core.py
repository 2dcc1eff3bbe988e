"""What answers predictions, whoever asks for them and in whatever protocol, and its life."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health, health_pb2

from envd.access import credentials, exposure
from envd.access.roles import Role
from envd.builds.builds import Builds
from envd.config import Settings
from envd.model import repository
from envd.run import probing
from envd.run.observer import Observer
from envd.run.pool import Pool
from envd.run.processes import Processes
from envd.sandbox.tiers import FULL, Sandbox
from envd.serve import heap, tracing
from envd.serve.audit import Audit
from envd.serve.callers import Caller, Guarded, Opened
from envd.serve.calls import Calls
from envd.serve.in_flight import InFlight
from envd.serve.loading import Loading
from envd.serve.models import ReadyModels
from envd.serve.notify import Notifier
from envd.serve.oip.catalog import Catalog
from envd.serve.predicting import Predicting
from envd.serve.served import Entries
from envd.store import Store

if TYPE_CHECKING:
    from envd.serve.http.server import Http
    from envd.serve.metrics import Metrics

log = logging.getLogger(__name__)
_LAST_ANSWERS_S = 0.3
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Core:
    """The models of some settings, their workers, and HTTP where it is to be served."""

    builds: Builds
    pool: Pool
    models: ReadyModels
    loading: Loading
    predicting: Predicting
    catalog: Catalog
    sandbox: Sandbox

    def __init__(self, settings: Settings, processes: Processes) -> None:
        """Put together what needs no loop; call `start` in the one that is to serve."""
        self.settings = settings
        self.store = Store(settings.root)
        self.health = health.aio.HealthServicer()
        folder = settings.models.repository
        offered = repository.read(Path(folder)) if folder else ()
        self.entries = Entries(settings.served, self.health, offered)
        self.calls = Calls()
        self.calls.watchers.append(Audit())
        self.credentials = credentials.load(settings)
        is_guarded = exposure.is_told_apart(settings.access)
        self.guarded = Guarded(lambda: self.credentials) if is_guarded else None
        # Whoever comes over TCP, to an address of this machine's own, without a credential.
        self.anybody = Opened(Caller(Role.PREDICT, "whoever is on this machine"))
        self.in_flight = InFlight(settings.daemon)
        self.metrics_url = self.http_url = ""
        self._processes = processes
        self.notifier = Notifier()
        self._tracing = tracing.start()
        self._metrics: Metrics | None = None
        self._http: Http | None = None
        self._stop: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        """Make the parts, in the order they need each other, and heed signals from now on."""
        self._stop = [_stop_signal(), self._processes.attach()]
        settings, observer = self.settings, self._observer()
        self.builds = Builds(settings, self._processes, observer)
        log_path = self.store.layout.logs / "sandbox.log"
        self.sandbox = await probing.tried(settings, self._processes, log_path)
        await self._tell_tier()
        self.pool = Pool(
            *(settings, self.store, self._processes),
            observer=observer,
            sandbox=self.sandbox,
        )
        self.models = ReadyModels(settings, self.store, self.builds, self.entries)
        self.loading = Loading(self.models, self.pool, settings.models)
        self.predicting = Predicting(
            self.models, self.pool, self.in_flight, settings.daemon.max_pause
        )
        self.catalog = Catalog(self.models, self.loading)
        await self.builds.learn()

    async def _tell_tier(self) -> None:
        """Have health answer for `sandbox/1` and `sandbox/2`: in force are all up to the tier."""
        for tier in range(1, FULL + 1):
            status = _SERVING if tier <= self.sandbox.tier else _NOT_SERVING
            await self.health.set(f"sandbox/{tier}", status)

    async def change(self, settings: Settings) -> None:
        """Go on by *settings*: what differs in them is one of `envd.serve.reloading.LIVE`.

        Raises:
            SettingsInvalidError: a model of theirs has the name of one of the folder's, or a file
                of credentials cannot be used; nothing has changed.
        """
        known = credentials.load(settings)
        gone, new = await self.entries.configure(settings.served)
        self.settings = settings
        if known.client_ca != self.credentials.client_ca:
            log.warning("the daemon takes the CAs of `access.client_ca` when it is restarted")
        # TLS of HTTP cannot take a CA away: gRPC does not, either.
        self.credentials = replace(known, client_ca=self.credentials.client_ca)
        self.in_flight.heed(settings.daemon)
        self.pool.heed(settings)
        self.models.heed(settings)
        if self._http:
            self._http.heed(settings)
        for entry in gone:
            await self.loading.leave(entry)
        self.loading.begin(new)

    async def serve_http(self) -> None:
        """Serve HTTP, if that is wanted: it costs memory and time to import."""
        if not self.settings.http.listen:
            return
        from envd.serve.http.bodies import Bodies  # noqa: PLC0415
        from envd.serve.http.edge import Edge  # noqa: PLC0415
        from envd.serve.http.routes import routes  # noqa: PLC0415
        from envd.serve.http.server import Http  # noqa: PLC0415
        from envd.serve.http.visitors import Visitors  # noqa: PLC0415

        bodies = Bodies(self.settings, self.in_flight)
        visitors = Visitors(self.settings, self.guarded, self.anybody)
        edge = Edge(self.settings, self.calls, bodies, visitors)
        served = routes(edge, self.entries, self.catalog, self.predicting, self._metrics)
        self._http = Http(edge, served)
        self.http_url = await self._http.start()

    async def before_stopped(self, beginning: Coroutine[Any, Any, object]) -> bool:
        """See *beginning* through, and return True; False where a signal came first."""
        begun: asyncio.Future[Any] = asyncio.ensure_future(beginning)
        await asyncio.wait([begun, *self._stop], return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            begun.result()
            return True
        begun.cancel()
        await asyncio.wait([begun])
        return False

    async def until_stopped(self, *beside: Coroutine[Any, Any, object]) -> bool:
        """Serve, with what is done *beside*, until a signal comes, and then drain and stop.

        Return whether all went well.
        """
        telling = self.notifier.run(self._processes.answers, self._doing)
        going_on = asyncio.gather(self.pool.run(), telling, heap.give_back(), *beside)
        # What was imported stays: looking through all of it takes 20 ms, in which nobody is served.
        gc.freeze()
        self.notifier.status(self._doing())
        self.notifier.ready()
        await asyncio.wait(self._stop, return_when=asyncio.FIRST_COMPLETED)
        is_well = not self._stop[1].done()
        if not is_well:
            log.error("the spawner is gone, and all processes with it; stopping")
        try:
            await self._drain()
        finally:
            going_on.cancel()
            # However it has ended: it is no reason to leave workers.
            await asyncio.gather(going_on, return_exceptions=True)
            await self.close()
        return is_well

    async def close(self) -> None:
        """Stop the workers."""
        await self.pool.close()
        if self._tracing:
            self._tracing.close()

    async def _drain(self) -> None:
        """Take no new requests and let those under way end."""
        self.notifier.stopping()
        self.notifier.status("draining")
        log.info("stopping; waiting for the requests under way")
        await self.health.enter_graceful_shutdown()
        if self._http:
            self._http.drain()
        self.builds.leave_all()
        await self.calls.drain(self.settings.daemon.drain)
        # The last answers may still be on their way out.
        await asyncio.sleep(_LAST_ANSWERS_S)
        if self._http:
            await self._http.close()

    def _doing(self) -> str:
        """Say in a sentence what the daemon does."""
        if self.calls.draining.is_set():
            return f"draining; {self.calls.count} requests under way"
        workers = {key[0]: len(queue.crew.workers) for key, queue in self.pool.loaded()}
        models = sum(map(bool, workers.values()))
        return f"serving {models} models with {sum(workers.values())} workers"

    def _observer(self) -> Observer:
        """Return who hears what happens: nobody, unless there are to be metrics."""
        if self._tracing:
            self.calls.watchers.append(self._tracing)
        address = self.settings.daemon.metrics
        if not address and not self.settings.http.listen:
            return Observer()
        from envd.serve.metrics import Metrics  # noqa: PLC0415

        self._metrics = metrics = Metrics(self.calls, self.in_flight)
        if address:
            self.metrics_url = metrics.serve(address, self.settings.http.hosts)
        self.calls.watchers.append(metrics)
        return metrics


def _stop_signal() -> asyncio.Future[None]:
    """Return a future that the first SIGTERM or SIGINT ends; the second ends the process."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if stopping.done():
            os._exit(1)
        stopping.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping
