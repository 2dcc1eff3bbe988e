"""The handlers of envd.v1.Predictions that look after models: load, unload, list, describe."""

from __future__ import annotations

from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services

from envd import messages
from envd.errors import RequestInvalidError
from envd.model import naming
from envd.serve import calls
from envd.serve.context import Context
from envd.serve.loading import Loading
from envd.serve.models import ReadyModels


class ModelHandlers(services.PredictionsServicer):
    """Answers callers as their roles allow."""

    def __init__(self, models: ReadyModels, loading: Loading) -> None:
        """Use *models* to find them and *loading* to have them loaded."""
        self._models = models
        self._loading = loading

    async def LoadModel(  # noqa: N802
        self, request: api.LoadModelRequest, context: Context
    ) -> api.Model:
        """Load one model."""
        del context
        model, is_plain = named(request.model), not request.name
        if naming.is_name(model):
            await self._loading.look_again(model)
        is_admin = calls.current().by.is_admin
        self._loading.check_may(model, is_admin=is_admin, is_plain=is_plain)
        wait = request.wait if request.HasField("wait") else True
        return await self._loading.load(request.model, request.name, wait=wait)

    async def UnloadModel(  # noqa: N802
        self, request: api.UnloadModelRequest, context: Context
    ) -> api.Model:
        """Stop the workers of one model."""
        del context
        is_admin = calls.current().by.is_admin
        self._loading.check_may(named(request.model), is_admin=is_admin)
        return await self._loading.unload(request.model)

    async def ListModels(  # noqa: N802
        self, request: api.ListModelsRequest, context: Context
    ) -> api.ListModelsResponse:
        """List the models that are known."""
        del request, context
        return api.ListModelsResponse(models=self._loading.list())

    async def GetModel(  # noqa: N802
        self, request: api.GetModelRequest, context: Context
    ) -> api.Model:
        """Describe one model."""
        del context
        found = await self._models.read(named(request.model))
        return messages.with_details(self._loading.get(request.model, found), found)


def named(model: str, *terms: object) -> str:
    """Return *model*, which the request under way names, and if so with *terms* of its own.

    Their role says whether callers may name paths and URIs; which ones, `ReadyModels.read` says.

    Raises:
        RequestInvalidError: it names none.
        PermissionDeniedError: the caller may not name it, or none on such terms.
    """
    calls.current().by.check_may_name(model, *terms)
    if not model:
        message = "the request names no model; give its name, its absolute path or its URI"
        raise RequestInvalidError(message)
    return model
