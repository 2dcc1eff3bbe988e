"""The handlers of inference.GRPCInferenceService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

import envd
from envd.errors import EnvdError, RequestInvalidError
from envd.model import signature
from envd.run.envd_worker.protocol import TENSORS
from envd.run.pool import Request
from envd.serve.calls import Calls
from envd.serve.context import Context
from envd.serve.oip import codec, streaming
from envd.serve.oip import inference_pb2 as oip
from envd.serve.oip import inference_pb2_grpc as services
from envd.serve.oip.catalog import EXTENSIONS, PLATFORM, Catalog, state_of, version_of
from envd.serve.predicting import Asked, Predicting
from envd.serve.roles import Role
from envd.serve.served import Entry, State

# What a request in a stream is to whoever counts.
_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Parts:
    """What answers and accounts for requests."""

    catalog: Catalog
    predicting: Predicting
    calls: Calls


class Inference(services.GRPCInferenceServiceServicer):
    """Answers with the models and the workers it is given."""

    def __init__(self, parts: Parts, roles: Collection[Role]) -> None:
        """Answer from *parts* callers that have some *roles*."""
        self._catalog = parts.catalog
        self._predicting = parts.predicting
        self._calls = parts.calls
        self._is_admin = Role.ADMIN in roles

    async def ServerLive(  # noqa: N802
        self, request: oip.ServerLiveRequest, context: Context
    ) -> oip.ServerLiveResponse:
        """Say that the daemon runs."""
        del request, context
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: oip.ServerReadyRequest, context: Context
    ) -> oip.ServerReadyResponse:
        """Say whether nothing is still being loaded that was to be from the start."""
        del request, context
        return oip.ServerReadyResponse(ready=self._catalog.is_ready)

    async def ModelReady(  # noqa: N802
        self, request: oip.ModelReadyRequest, context: Context
    ) -> oip.ModelReadyResponse:
        """Say whether a model was loaded."""
        del context
        entry = self._catalog.find(request.name, request.version)
        return oip.ModelReadyResponse(ready=entry.state is State.READY)

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        """Say what envd is."""
        del request, context
        return oip.ServerMetadataResponse(
            name="envd", version=envd.__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        """Say which tensors a model takes and gives."""
        del context
        entry = self._catalog.find(request.name, request.version)
        said = await self._catalog.signature(entry)
        found = oip.ModelMetadataResponse(
            name=request.name,
            versions=self._catalog.versions(entry),
            platform=PLATFORM,
            inputs=map(_tensor, said.inputs),
            outputs=map(_tensor, said.outputs),
        )
        if said.content_type:
            found.parameters["content_type"].string_param = said.content_type
        return found

    async def ModelInfer(  # noqa: N802
        self, request: oip.ModelInferRequest, context: Context
    ) -> oip.ModelInferResponse:
        """Ask one model."""
        del context
        return await self._infer(request)

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Ask models, each request in a task of its own."""
        metadata, left_s = context.invocation_metadata(), context.time_remaining

        async def answer(request: oip.ModelInferRequest) -> oip.ModelStreamInferResponse:
            call = self._calls.begin(_INFER, request.id, metadata, left_s)
            try:
                with self._calls.under_way(call):
                    answer = await self._infer(request)
                    return oip.ModelStreamInferResponse(infer_response=answer)
            except EnvdError as error:
                named = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
                text = f"{error.reason}: {error.message}"
                return oip.ModelStreamInferResponse(error_message=text, infer_response=named)

        async for one in streaming.answers(request_iterator, answer, self._calls.draining):
            yield one

    async def ModelConfig(  # noqa: N802
        self, request: oip.ModelConfigRequest, context: Context
    ) -> oip.ModelConfigResponse:
        """Say what Triton's clients want to know of a model."""
        del context
        entry = self._catalog.find(request.name, request.version)
        said = await self._catalog.signature(entry)
        return oip.ModelConfigResponse(
            config=oip.ModelConfig(
                name=request.name,
                platform=PLATFORM,
                backend=PLATFORM,
                input=[
                    oip.ModelInput(name=one.name, data_type=_type(one), dims=one.shape)
                    for one in said.inputs
                ],
                output=[
                    oip.ModelOutput(name=one.name, data_type=_type(one), dims=one.shape)
                    for one in said.outputs
                ],
            )
        )

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """List the models that have a name."""
        del context
        found = self._catalog.index(only_ready=request.ready)
        return oip.RepositoryIndexResponse(models=map(_index, found))

    async def RepositoryModelLoad(  # noqa: N802
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        """Load one model."""
        del context
        if request.parameters:
            message = "envd loads models as the settings say; send no parameters"
            raise RequestInvalidError(message, parameters=",".join(sorted(request.parameters)))
        await self._catalog.load(request.model_name, is_admin=self._is_admin)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        """Stop the workers of one model."""
        del context
        await self._catalog.unload(request.model_name, is_admin=self._is_admin)
        return oip.RepositoryModelUnloadResponse()

    async def _infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        entry = self._catalog.find(request.model_name, request.model_version)
        asked = Request(codec.payload(request), TENSORS, None)
        answer = await self._predicting.answer(Asked(entry.address), asked)
        found = codec.response(answer.prediction.payload, request, version_of(entry))
        self._predicting.in_flight.check_answer(found, len(answer.prediction.payload))
        return found


def _tensor(spec: signature.TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    content_type = oip.InferParameter(string_param=spec.content_type)
    return oip.ModelMetadataResponse.TensorMetadata(
        name=spec.name,
        datatype=spec.datatype,
        shape=spec.shape,
        parameters={"content_type": content_type},
    )


def _type(spec: signature.TensorSpec) -> oip.DataType.ValueType:
    return oip.DataType.Value("TYPE_" + spec.datatype.replace("BYTES", "STRING"))


def _index(entry: Entry) -> oip.RepositoryIndexResponse.ModelIndex:
    state, reason = state_of(entry)
    return oip.RepositoryIndexResponse.ModelIndex(
        name=entry.served.name, version=version_of(entry), state=state, reason=reason
    )
