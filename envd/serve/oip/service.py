"""The handlers of inference.GRPCInferenceService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import envd
from envd.errors import EnvdError, RequestInvalidError
from envd.model import signature
from envd.run.channel import Buffer
from envd.run.envd_worker.protocol import TENSORS
from envd.run.pool import Request
from envd.serve import calls
from envd.serve.calls import Calls
from envd.serve.context import Context
from envd.serve.oip import codec, laden, streaming
from envd.serve.oip import inference_pb2 as oip
from envd.serve.oip import inference_pb2_grpc as services
from envd.serve.oip.catalog import EXTENSIONS, PLATFORM, Catalog, state_of, version_of
from envd.serve.oip.laden import Laden, Streamed
from envd.serve.oip.streaming import Sending
from envd.serve.predicting import Asked, Predicting
from envd.serve.served import Entry, State

# What a request in a stream is to whoever counts.
_INFER = "/inference.GRPCInferenceService/ModelInfer"
# Others would have to wait for the elements of larger tensors.
_LONG_BYTES = 1 << 17
_Result = TypeVar("_Result")
# Triton's parameters of requests and answers in streams.
_WITH_END, _IS_FINAL = "triton_enable_empty_final_response", "triton_final_response"
# And the header with which its clients want the status of an error, and the end of the stream.
_ENDS_ON_ERROR = ("triton_grpc_error", "true")


@dataclass(frozen=True, slots=True)
class Parts:
    """What answers and accounts for requests."""

    catalog: Catalog
    predicting: Predicting
    calls: Calls


class Inference(services.GRPCInferenceServiceServicer):
    """Answers with the models and the workers it is given."""

    def __init__(self, parts: Parts) -> None:
        """Answer from *parts*, as the roles of callers allow."""
        self._catalog = parts.catalog
        self._predicting = parts.predicting
        self._calls = parts.calls

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

    # The stubs know messages only, with their raw contents in them.
    async def ModelInfer(  # type: ignore[override]  # noqa: N802
        self, request: codec.Asked, context: Context
    ) -> Laden[oip.ModelInferResponse]:
        """Ask one model."""
        del context
        return await self._infer(request)

    # And generators only.
    async def ModelStreamInfer(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncIterator[codec.Asked], context: Context
    ) -> None:
        """Ask models, each request in a task of its own; what streams answers as it goes on."""
        metadata, left_s = context.invocation_metadata() or (), context.time_remaining
        ends_on_error = _ENDS_ON_ERROR in metadata
        sending, admit = Sending(context, self._predicting.pause_s), calls.current().admit

        async def answers(request: codec.Asked) -> None:
            async with contextlib.aclosing(self._answers(request)) as found:
                async for one in found:
                    # Both are kept until the caller takes the one.
                    held = laden.held(one) + laden.held(request)
                    with self._predicting.in_flight.hold(held):
                        await sending.send(Streamed(one))

        async def answer(request: codec.Asked) -> None:
            call = self._calls.begin(_INFER, request.message.id, metadata, left_s)
            call.peer = context.peer
            try:
                with self._calls.under_way(call):
                    # Whoever began the stream may have become nobody since.
                    admit(call)
                    await answers(request)
            except EnvdError as error:
                if ends_on_error:
                    raise
                text = f"{error.reason}: {error.message}"
            else:
                return
            # Not while the error is there, which keeps what there is no room for.
            await sending.send(Streamed(_empty(request), text))

        await streaming.each(requests, answer, self._calls.draining)

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
                model_transaction_policy=oip.ModelTransactionPolicy(
                    decoupled=await self._catalog.is_streamable(entry)
                ),
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
        is_admin = calls.current().by.is_admin
        await self._catalog.load(request.model_name, is_admin=is_admin)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        """Stop the workers of one model."""
        del context
        is_admin = calls.current().by.is_admin
        await self._catalog.unload(request.model_name, is_admin=is_admin)
        return oip.RepositoryModelUnloadResponse()

    async def _infer(self, asked: codec.Asked) -> Laden[oip.ModelInferResponse]:
        entry, parsed = await self._parsed(asked)
        answer = await self._predicting.answer(Asked(entry.address), parsed)
        return await self._response(answer.prediction.payload, asked, entry)

    async def _answers(self, asked: codec.Asked) -> AsyncGenerator[Laden[oip.ModelInferResponse]]:
        """Yield what a model answers in a stream: several things, if it is one that streams.

        The last is marked as Triton does that, or nothing behind it is sent if that is wanted.
        """
        request = asked.message
        entry = self._catalog.find(request.model_name, request.model_version)
        if not await self._catalog.is_streamable(entry):
            yield _marked(await self._infer(asked), is_final=True)
            return
        entry, parsed = await self._parsed(asked)
        stream = self._predicting.stream(Asked(entry.address), parsed, "predict_stream")
        async with stream as answering:
            item: list[Buffer] = []
            async for part in answering:
                item.append(part.payload)
                if part.ends:
                    found = await self._response(b"".join(item), asked, entry)
                    item.clear()
                    yield _marked(found, is_final=False)
        if request.parameters[_WITH_END].bool_param:
            yield _marked(_empty(asked, version_of(entry)), is_final=True)

    async def _parsed(self, asked: codec.Asked) -> tuple[Entry, Request]:
        request = asked.message
        entry = self._catalog.find(request.model_name, request.model_version)
        codec.check(asked, self._predicting.in_flight.largest)
        size = max((one.contents.ByteSize() for one in request.inputs), default=0)
        payload = await _done(size, codec.payload, asked)
        return entry, Request(payload, TENSORS, None)

    async def _response(
        self, payload: Buffer, asked: codec.Asked, entry: Entry
    ) -> Laden[oip.ModelInferResponse]:
        size = 0 if asked.raw else len(payload)
        found = await _done(size, codec.response, payload, asked, version_of(entry))
        self._predicting.in_flight.check_answer(payload, lambda: laden.size(found))
        return found


async def _done(size: int, function: Callable[..., _Result], *given: Any) -> _Result:
    """Return what *function* does, in a thread if it has *size* bytes of typed elements to see."""
    if size <= _LONG_BYTES:
        return function(*given)
    return await asyncio.to_thread(function, *given)


def _empty(asked: codec.Asked, version: str = "") -> Laden[oip.ModelInferResponse]:
    """Return an answer to what is *asked* with nothing in it."""
    request = asked.message
    return Laden(
        oip.ModelInferResponse(model_name=request.model_name, model_version=version, id=request.id)
    )


def _marked(
    found: Laden[oip.ModelInferResponse], *, is_final: bool
) -> Laden[oip.ModelInferResponse]:
    """Return *found*, in which it says whether it is the last for its request."""
    found.message.parameters[_IS_FINAL].bool_param = is_final
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
