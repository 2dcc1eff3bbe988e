"""Where gRPC is served: the services that are there, and the sockets and the address for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from envd import addresses
from envd.access import openings
from envd.access.credentials import Credentials
from envd.access.roles import Role
from envd.errors import SettingsInvalidError
from envd.run.envd_worker.protocol import PART_BYTES
from envd.serve.callers import Caller, Door, Opened
from envd.serve.core import Core
from envd.serve.environments import Environments
from envd.serve.gate import Gate
from envd.serve.oip import inference_pb2 as oip
from envd.serve.oip import inference_pb2_grpc as oip_services
from envd.serve.oip import service as oip_service
from envd.serve.predictions import Predictions
from envd.serve.upkeep import Upkeep

SERVICES = tuple(
    service.full_name
    for file in (api.DESCRIPTOR, oip.DESCRIPTOR)
    for service in file.services_by_name.values()
)
# Of one connection: TLS takes its time over a network.
_HANDSHAKE_MS, _TLS_HANDSHAKE_MS = 2000, 10_000
# Of one connection, too: what comes beyond waits for its turn in the client.
_STREAMS = 512


class Listeners:
    """The gRPC servers of one daemon, all with the same services."""

    def __init__(self, core: Core, upkeep: Upkeep) -> None:
        """Serve what *core* answers, nowhere yet."""
        self._core = core
        self._environments = Environments(core.store, core.builds, core.models, core.pool, upkeep)
        self._predictions = Predictions(core.models, core.pool, core.loading, core.predicting)
        parts = oip_service.Parts(core.catalog, core.predicting, core.calls)
        self._inference = oip_service.Inference(parts)
        # Whom nobody knows any more, gRPC stops.
        self._servers: list[grpc.aio.Server] = []

    async def on_socket(self, path: Path, role: Role, group: str) -> None:
        """Serve everything at *path*, whose opener has *role*: its owner, and *group* if any.

        Raises:
            SettingsInvalidError: that cannot be.
        """
        openings.check_unheard(path)
        server = self._server(_HANDSHAKE_MS)
        self._add(server, Opened(Caller(role, f"whoever opens {path.name}")))
        try:
            with openings.private():
                server.add_insecure_port(addresses.target(path))
                await server.start()
        except RuntimeError as error:
            message = f"the daemon cannot listen on `{path}`: {error}; give another `--socket`"
            raise SettingsInvalidError(message, socket=path) from error
        openings.let_in(path, group)

    async def on_tcp(self) -> str:
        """Serve at the address of the settings, which is returned with its port.

        Where callers need not say who they are, the Open Inference Protocol and health.

        Raises:
            SettingsInvalidError: that cannot be.
        """
        address, guarded = self._core.settings.daemon.grpc, self._core.guarded
        server = self._server(_TLS_HANDSHAKE_MS)
        if guarded:
            self._add(server, guarded)
        else:
            self._add_inference(Gate(server, self._core.anybody, self._core.calls))
        try:
            if self._core.credentials.cert:
                tls = _tls(lambda: self._core.credentials)
                port = server.add_secure_port(address, tls)
            else:
                port = server.add_insecure_port(address)
        except RuntimeError as error:
            message = f"the daemon cannot listen on `{address}`: {error}; set `daemon.grpc`"
            raise SettingsInvalidError(message, setting="daemon.grpc") from error
        await server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    def _add(self, server: grpc.aio.Server, door: Door) -> None:
        gate: Any = Gate(server, door, self._core.calls)
        services.add_EnvironmentsServicer_to_server(self._environments, gate)
        services.add_PredictionsServicer_to_server(self._predictions, gate)
        self._add_inference(gate)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        # By itself, it would take the gate for a server with threads.
        reflecting = reflection.aio.ReflectionServicer(names)
        adding: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        adding(reflecting, gate)

    def _add_inference(self, gate: Any) -> None:
        oip_services.add_GRPCInferenceServiceServicer_to_server(self._inference, gate)
        health_pb2_grpc.add_HealthServicer_to_server(self._core.health, gate)

    def _server(self, handshake_ms: int) -> grpc.aio.Server:
        limit = self._core.settings.daemon.max_message
        self._servers.append(
            grpc.aio.server(
                options=[
                    ("grpc.max_receive_message_length", limit),
                    ("grpc.max_send_message_length", max(limit, 2 * PART_BYTES)),
                    ("grpc.so_reuseport", 0),
                    ("grpc.server_handshake_timeout_ms", handshake_ms),
                    ("grpc.max_concurrent_streams", _STREAMS),
                ],
            )
        )
        return self._servers[-1]


def _tls(known: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """Return what TLS is served with, by the credentials that are *known* at each connection.

    With CAs of clients, whoever has no certificate of theirs cannot connect: gRPC asks for one
    in no other way.
    """
    served = known()
    needs_one = bool(served.client_ca)

    # None is that nothing has changed, which the stubs do not know.
    def changed() -> Any:
        nonlocal served
        if served is known():
            return None
        served = known()
        return _configuration(served)

    return grpc.dynamic_ssl_server_credentials(_configuration(served), changed, needs_one)


def _configuration(found: Credentials) -> grpc.ServerCertificateConfiguration:
    pair = (found.key, found.cert)
    return grpc.ssl_server_certificate_configuration([pair], found.client_ca or None)
