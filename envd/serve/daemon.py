"""The daemon: what answers predictions, and the services of its two sockets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import grpc
from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from envd import addresses
from envd.addresses import Sockets
from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.run.envd_worker.protocol import PART_BYTES
from envd.run.processes import Processes
from envd.serve.core import Core
from envd.serve.environments import Environments
from envd.serve.gate import Gate
from envd.serve.oip import inference_pb2 as oip
from envd.serve.oip import inference_pb2_grpc as oip_services
from envd.serve.oip import service as oip_service
from envd.serve.predictions import Predictions
from envd.serve.reloading import Reloading
from envd.serve.roles import Role
from envd.serve.upkeep import Upkeep
from envd.spec import policy

_SERVICES = tuple(
    service.full_name
    for file in (api.DESCRIPTOR, oip.DESCRIPTOR)
    for service in file.services_by_name.values()
)
_HANDSHAKE_MS = 2000
# Of one connection: what comes beyond waits for its turn in the client.
_STREAMS = 512


class Daemon:
    """One daemon: it owns its root, and says where it listens."""

    def __init__(
        self,
        settings: Settings,
        sockets: Sockets,
        processes: Processes,
        read: Callable[[], Settings],
    ) -> None:
        """Put it together; *read* reads the settings anew. Call `run` in the loop."""
        self.core = Core(settings, processes)
        self._settings = settings
        self._read = read
        self._sockets = sockets
        self.grpc_address = ""
        self._servers: list[grpc.aio.Server] = []

    async def run(self, on_ready: Callable[[], None]) -> bool:
        """Serve until a signal comes; *on_ready* is called when it listens.

        Return whether all went well. Connections stay open: what ends them is that the
        daemon does, and then clients know that they are to ask again.
        """
        core = self.core
        reloading = Reloading(core, self._read)
        await core.start()
        upkeep = Upkeep(self._settings, core.builds)
        self._servers = [
            self._server(self._sockets.predict, {Role.PREDICT, Role.BUILD}, upkeep),
            self._server(self._sockets.admin, set(Role), upkeep),
        ]
        with _private():
            for server in self._servers:
                await server.start()
        if self._settings.daemon.grpc:
            await self._serve_tcp()
        await core.serve_http()
        await core.entries.announce()
        profile = policy.of(self._settings.security).profile
        addresses.announce(
            self._settings.root,
            self._sockets,
            profile,
            http=core.http_url,
            grpc=self.grpc_address,
            sandbox=core.sandbox.document(),
        )
        for name in ("", *_SERVICES):
            await core.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        on_ready()
        return await core.until_stopped(upkeep.run(), core.loading.preload(), reloading.run())

    async def _serve_tcp(self) -> None:
        """Serve the Open Inference Protocol over TCP, and health: names only, never paths."""
        address, core = self._settings.daemon.grpc, self.core
        server = self._bare_server()
        gate: Any = Gate(server, {Role.PREDICT}, core.calls)
        self._add_inference(gate, {Role.PREDICT})
        health_pb2_grpc.add_HealthServicer_to_server(core.health, gate)
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            message = f"the daemon cannot listen on `{address}`: {error}; set `daemon.grpc`"
            raise SettingsInvalidError(message, setting="daemon.grpc") from error
        await server.start()
        self._servers.append(server)
        self.grpc_address = f"{address.rpartition(':')[0]}:{port}"

    def _server(self, path: Path, roles: Collection[Role], upkeep: Upkeep) -> grpc.aio.Server:
        core, server = self.core, self._bare_server()
        gate: Any = Gate(server, roles, core.calls)
        environments = Environments(core.store, core.builds, core.models, core.pool, upkeep)
        services.add_EnvironmentsServicer_to_server(environments, gate)
        predictions = Predictions(core.models, core.pool, core.loading, roles, core.predicting)
        services.add_PredictionsServicer_to_server(predictions, gate)
        self._add_inference(gate, roles)
        health_pb2_grpc.add_HealthServicer_to_server(core.health, gate)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, gate)
        try:
            with _private():
                server.add_insecure_port(addresses.target(path))
        except RuntimeError as error:
            message = f"the daemon cannot listen on `{path}`: {error}; give another `--socket`"
            raise SettingsInvalidError(message, socket=path) from error
        return server

    def _bare_server(self) -> grpc.aio.Server:
        limit = self._settings.daemon.max_message
        return grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", max(limit, 2 * PART_BYTES)),
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.max_concurrent_streams", _STREAMS),
            ],
        )

    def _add_inference(self, gate: Any, roles: Collection[Role]) -> None:
        core = self.core
        parts = oip_service.Parts(core.catalog, core.predicting, core.calls)
        inference = oip_service.Inference(parts, roles)
        oip_services.add_GRPCInferenceServiceServicer_to_server(inference, gate)


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Make sockets that only their owner can open, with no moment when others can."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
