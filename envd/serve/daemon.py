"""The life of the daemon: start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from envd import addresses
from envd.addresses import Sockets
from envd.builds import Builds
from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.model import repository
from envd.run.observer import Observer
from envd.run.pool import Pool
from envd.run.processes import Processes
from envd.serve import tracing
from envd.serve.calls import Calls
from envd.serve.environments import Environments
from envd.serve.gate import Gate
from envd.serve.in_flight import InFlight
from envd.serve.loading import Loading
from envd.serve.models import ReadyModels
from envd.serve.oip import inference_pb2 as oip
from envd.serve.oip import inference_pb2_grpc as oip_services
from envd.serve.oip import service as oip_service
from envd.serve.oip.catalog import Catalog
from envd.serve.predicting import Predicting
from envd.serve.predictions import Predictions
from envd.serve.roles import Role
from envd.serve.served import Entries
from envd.serve.upkeep import Upkeep
from envd.spec import policy
from envd.store import Store

if TYPE_CHECKING:
    from envd.serve.http.server import Http
    from envd.serve.metrics import Metrics

log = logging.getLogger(__name__)
_SERVICES = tuple(
    service.full_name
    for file in (api.DESCRIPTOR, oip.DESCRIPTOR)
    for service in file.services_by_name.values()
)
_HANDSHAKE_MS = 2000
# Of one connection: what comes beyond waits for its turn in the client.
_STREAMS = 512
_LAST_ANSWERS_S = 0.3


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the services of every socket answer from."""

    builds: Builds
    models: ReadyModels
    pool: Pool
    loading: Loading
    upkeep: Upkeep
    predicting: Predicting
    catalog: Catalog


class Daemon:
    """One daemon: its parts, made in the order they need each other."""

    def __init__(self, settings: Settings, sockets: Sockets, processes: Processes) -> None:
        """Put the parts together; call `run` in the loop that is to serve."""
        self._settings = settings
        self._sockets = sockets
        self._processes = processes
        self._store = Store(settings.root)
        self._health = health.aio.HealthServicer()
        folder = settings.models.repository
        offered = repository.read(Path(folder)) if folder else ()
        self._entries = Entries(settings.served, self._health, offered)
        self._calls = Calls()
        self._in_flight = InFlight(settings.daemon)
        self._tracing = tracing.start()
        self.metrics_url = self.http_url = ""
        self._metrics: Metrics | None = None
        self._http: Http | None = None
        self._servers: list[grpc.aio.Server] = []

    async def run(self, on_ready: Callable[[], None]) -> bool:
        """Serve until a signal comes; *on_ready* is called when it listens.

        Return whether all went well. Connections stay open: what ends them is that the
        daemon does, and then clients know that they are to ask again.
        """
        stopping = self._stop_signal()
        spawner_gone = self._processes.attach()
        observer = self._observer()
        builds = Builds(self._settings, self._processes, observer)
        pool = Pool(self._settings, self._store, self._processes, observer=observer)
        models = ReadyModels(self._settings, self._store, builds, self._entries)
        loading = Loading(models, pool)
        await builds.learn()
        upkeep = Upkeep(self._settings, builds)
        predicting = Predicting(models, pool, self._in_flight)
        catalog = Catalog(self._settings.models.repository, models, loading, pool)
        parts = _Parts(builds, models, pool, loading, upkeep, predicting, catalog)
        self._servers = [
            self._server(self._sockets.predict, {Role.PREDICT, Role.BUILD}, parts),
            self._server(self._sockets.admin, set(Role), parts),
        ]
        with _private():
            for server in self._servers:
                await server.start()
        if self._settings.http.listen:
            await self._serve_http(predicting)
        await self._entries.announce()
        beside = asyncio.gather(pool.run(), upkeep.run(), loading.preload())
        profile = policy.of(self._settings.security).profile
        addresses.announce(self._settings.root, self._sockets, profile, http=self.http_url)
        await self._tell_health(health_pb2.HealthCheckResponse.SERVING)
        # What was imported stays: looking through all of it takes 20 ms, in which nobody is served.
        gc.freeze()
        on_ready()
        _notify("READY=1")
        await asyncio.wait([stopping, spawner_gone], return_when=asyncio.FIRST_COMPLETED)
        if spawner_gone.done():
            log.error("the spawner is gone, and all processes with it; stopping")
        try:
            await self._drain(builds)
        finally:
            beside.cancel()
            # However it has ended: it is no reason to leave workers.
            await asyncio.gather(beside, return_exceptions=True)
            await pool.close()
            if self._tracing:
                self._tracing.close()
        return not spawner_gone.done()

    def _observer(self) -> Observer:
        """Return who hears what happens: nobody, unless there are to be metrics."""
        if self._tracing:
            self._calls.watchers.append(self._tracing)
        address = self._settings.daemon.metrics
        if not address and not self._settings.http.listen:
            return Observer()
        from envd.serve.metrics import Metrics  # noqa: PLC0415

        self._metrics = metrics = Metrics(self._calls, self._in_flight)
        if address:
            self.metrics_url = metrics.serve(address)
        self._calls.watchers.append(metrics)
        return metrics

    async def _serve_http(self, predicting: Predicting) -> None:
        """Serve HTTP as well, which costs memory and time to import."""
        from envd.serve.http.edge import Edge  # noqa: PLC0415
        from envd.serve.http.routes import routes  # noqa: PLC0415
        from envd.serve.http.server import Http  # noqa: PLC0415

        edge = Edge(self._settings, self._calls, self._in_flight)
        self._http = Http(edge, routes(edge, self._entries, predicting, self._metrics))
        self.http_url = await self._http.start()

    def _server(self, path: Path, roles: Collection[Role], parts: _Parts) -> grpc.aio.Server:
        limit = self._settings.daemon.max_message
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.max_concurrent_streams", _STREAMS),
            ],
        )
        gate: Any = Gate(server, roles, self._calls)
        environments = Environments(
            self._store, parts.builds, parts.models, parts.pool, parts.upkeep
        )
        services.add_EnvironmentsServicer_to_server(environments, gate)
        predictions = Predictions(parts.models, parts.pool, parts.loading, roles, parts.predicting)
        services.add_PredictionsServicer_to_server(predictions, gate)
        asked = oip_service.Parts(parts.catalog, parts.predicting, self._calls)
        inference = oip_service.Inference(asked, roles)
        oip_services.add_GRPCInferenceServiceServicer_to_server(inference, gate)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, gate)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, gate)
        try:
            with _private():
                server.add_insecure_port(addresses.target(path))
        except RuntimeError as error:
            message = f"the daemon cannot listen on `{path}`: {error}; give another `--socket`"
            raise SettingsInvalidError(message, socket=path) from error
        return server

    async def _tell_health(self, state: int) -> None:
        for name in ("", *_SERVICES):
            await self._health.set(name, state)

    async def _drain(self, builds: Builds) -> None:
        """Take no new requests and let those under way end."""
        _notify("STOPPING=1")
        log.info("stopping; waiting for the requests under way")
        await self._health.enter_graceful_shutdown()
        if self._http:
            self._http.drain()
        builds.leave_all()
        await self._calls.drain(self._settings.daemon.drain)
        # The last answers may still be on their way out.
        await asyncio.sleep(_LAST_ANSWERS_S)
        if self._http:
            await self._http.close()

    def _stop_signal(self) -> asyncio.Future[None]:
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


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Make sockets that only their owner can open, with no moment when others can."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _notify(state: str) -> None:
    """Tell systemd, where it asked for it (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
