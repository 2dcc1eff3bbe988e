"""Who may call what: every RPC has a role, and what has none is denied."""

from __future__ import annotations

import enum
import functools
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc

from envd.errors import PermissionDeniedError
from envd.serve import status
from envd.serve.context import Context


class Role(enum.Enum):
    """What a caller may do."""

    PREDICT = "predict"
    BUILD = "build"
    ADMIN = "admin"


ROLES = {
    "/envd.v1.Environments/BuildEnvironment": Role.BUILD,
    "/envd.v1.Environments/CancelBuild": Role.BUILD,
    "/envd.v1.Environments/DeleteEnvironment": Role.ADMIN,
    "/envd.v1.Environments/GetEnvironment": Role.PREDICT,
    "/envd.v1.Environments/ListEnvironments": Role.PREDICT,
    "/envd.v1.Environments/PinEnvironment": Role.ADMIN,
    "/envd.v1.Environments/PurgeEnvironments": Role.ADMIN,
    "/envd.v1.Environments/ResolveSpec": Role.PREDICT,
    "/envd.v1.Environments/UnpinEnvironment": Role.ADMIN,
    "/envd.v1.Environments/VerifyEnvironment": Role.ADMIN,
    "/envd.v1.Environments/WatchEnvironment": Role.PREDICT,
    "/envd.v1.Predictions/GetModel": Role.PREDICT,
    "/envd.v1.Predictions/ListModels": Role.PREDICT,
    # Any model but those of the settings is an admin's (`envd.serve.model_handlers`).
    "/envd.v1.Predictions/LoadModel": Role.PREDICT,
    "/envd.v1.Predictions/ListWorkers": Role.PREDICT,
    "/envd.v1.Predictions/Predict": Role.PREDICT,
    "/envd.v1.Predictions/RestartWorker": Role.ADMIN,
    "/envd.v1.Predictions/UnloadModel": Role.PREDICT,
    "/grpc.health.v1.Health/Check": Role.PREDICT,
    "/grpc.health.v1.Health/List": Role.PREDICT,
    "/grpc.health.v1.Health/Watch": Role.PREDICT,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.ADMIN,
}


class Roles(grpc.aio.ServerInterceptor):
    """Lets through what the roles of one socket may call."""

    def __init__(self, allowed: Collection[Role]) -> None:
        """Allow these roles."""
        self._allowed = allowed

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Answer PERMISSION_DENIED to what is not allowed here."""
        if ROLES.get(details.method) in self._allowed:
            return await continuation(details)
        return grpc.unary_unary_rpc_method_handler(functools.partial(_deny, None))


@status.unary
async def _deny(_: Any, request: Any, context: Context) -> None:
    del request, context
    message = "this socket may not do that; ask on the admin socket"
    raise PermissionDeniedError(message)
