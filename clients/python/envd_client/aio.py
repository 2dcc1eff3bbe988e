"""Asks envd from an event loop."""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from envd_client import connection, requests, streams
from envd_client.answer import answer
from envd_client.attempts import limit_s
from envd_client.errors import PermissionDeniedError, from_rpc_error
from envd_client.streams import AsyncStream
from envd_client.v1 import envd_pb2
from envd_client.v1.envd_pb2_grpc import EnvironmentsStub, PredictionsStub

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from envd_client.answer import Answer
    from envd_client.v1.envd_pb2_grpc import EnvironmentsAsyncStub, PredictionsAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncClient:
    """A client of one daemon, for the tasks of one event loop: see `Client`."""

    def __init__(
        self,
        target: str | os.PathLike[str] | None = None,
        *,
        admin_target: str | os.PathLike[str] | None = None,
        timeout_s: float | None = connection.DEFAULT_TIMEOUT_S,
        max_message_bytes: int = connection.DEFAULT_MAX_MESSAGE_BYTES,
        retries: int = 0,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        """Settle where to connect, as `Client` does; no loop need run yet."""
        self._connection = connection.connection(
            target,
            admin_target=admin_target,
            timeout_s=timeout_s,
            max_message_bytes=max_message_bytes,
            retries=retries,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            token=token,
            token_file=token_file,
        )
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls under way are cancelled."""
        for channel in self._channels:
            await channel.close()

    async def predict(
        self,
        model: str | os.PathLike[str],
        data: object,
        *,
        content_type: str | None = None,
        params: Mapping[str, object] | None = None,
        model_config: Mapping[str, object] | None = None,
        wait: bool = True,
        pip_requirements_override: Sequence[str] = (),
        env_manager: str = "",
        in_parts: bool = False,
        timeout_s: float | None = None,
    ) -> Answer:
        """Return what *model* says about *data*: see `Client.predict`."""
        request, payload = requests.apart(
            model,
            data,
            content_type=content_type,
            params=params,
            model_config=model_config,
            wait=wait,
            override=pip_requirements_override,
            env_manager=env_manager,
        )
        if in_parts or not streams.fits(request, payload, self._connection.max_message_bytes):
            items = streams.Items()
            parts = self._parts(request, payload, streams.PREDICT, timeout_s)
            found = [item async for part in parts if (item := items.add(part)) is not None]
            return items.answered(b"".join(found))
        request.payload = payload
        return answer(await self._ask(self._predictions.Predict, request, timeout_s))

    def predict_stream(
        self,
        model: str | os.PathLike[str],
        data: object,
        *,
        content_type: str | None = None,
        params: Mapping[str, object] | None = None,
        model_config: Mapping[str, object] | None = None,
        wait: bool = True,
        pip_requirements_override: Sequence[str] = (),
        env_manager: str = "",
        timeout_s: float | None = None,
    ) -> AsyncStream:
        """Return what *model* says about *data*, item by item: see `Client.predict_stream`."""
        request, payload = requests.apart(
            model,
            data,
            content_type=content_type,
            params=params,
            model_config=model_config,
            wait=wait,
            override=pip_requirements_override,
            env_manager=env_manager,
        )
        return AsyncStream(self._parts(request, payload, streams.PREDICT_STREAM, timeout_s))

    async def resolve(
        self,
        model: str | os.PathLike[str],
        *,
        pip_requirements_override: Sequence[str] = (),
        lock: bool = False,
        upgrade: bool = False,
        env_manager: str = "",
        platforms: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> envd_pb2.ResolvedSpec:
        """Return what *model* asks for, locked if *lock*, without building it.

        With *upgrade* a lock that lies in the model is passed over. *platforms* are locked
        as well, where the environment is a conda one (`osx-arm64`).
        """
        request = requests.resolve(
            model,
            pip_requirements_override,
            lock=lock,
            upgrade=upgrade,
            env_manager=env_manager,
            platforms=platforms,
        )
        return await self._ask(self._environments.ResolveSpec, request, timeout_s)

    async def build(
        self,
        model: str | os.PathLike[str],
        *,
        pip_requirements_override: Sequence[str] = (),
        upgrade: bool = False,
        retry: bool = False,
        env_manager: str = "",
    ) -> envd_pb2.Environment:
        """Start building the environment of *model*: see `Client.build`."""
        request = requests.build(
            model,
            pip_requirements_override,
            upgrade=upgrade,
            retry=retry,
            env_manager=env_manager,
        )
        return await self._ask(self._environments.BuildEnvironment, request)

    async def cancel(self, build_id: str) -> envd_pb2.Environment:
        """End a build, for everybody who waits for it: see `Client.cancel`."""
        return await self._ask(self._environments.CancelBuild, requests.cancel(build_id))

    async def watch(
        self, environment_id: str, after_sequence: int = 0, *, timeout_s: float | None = None
    ) -> AsyncIterator[envd_pb2.EnvironmentEvent]:
        """Yield what happens to an environment: see `Client.watch`."""
        request = requests.watch(environment_id, after_sequence)
        call = self._environments.WatchEnvironment(
            request, timeout=limit_s(timeout_s), metadata=self._metadata
        )
        try:
            async for event in call:
                yield event
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def get(self, environment_id: str, *, full: bool = False) -> envd_pb2.Environment:
        """Return one environment: see `Client.get`."""
        return await self._ask(
            self._environments.GetEnvironment, requests.get(environment_id, full=full)
        )

    async def list(self, *, show_all: bool = False) -> AsyncIterator[envd_pb2.Environment]:
        """Yield the published environments, by id; builds and failures too if *show_all*."""
        request: envd_pb2.ListEnvironmentsRequest | None = requests.first_page(show_all=show_all)
        while request is not None:
            page = await self._ask(self._environments.ListEnvironments, request)
            for environment in page.environments:
                yield environment
            request = requests.page_after(page, show_all=show_all)

    async def delete(
        self, environment_id: str, *, force: bool = False, timeout_s: float | None = None
    ) -> envd_pb2.Environment:
        """Remove one environment and return what it was: see `Client.delete`."""
        request = requests.delete(environment_id, force=force)
        return await self._ask(self._admin.DeleteEnvironment, request, timeout_s)

    async def pin(self, environment_id: str) -> envd_pb2.Environment:
        """Keep an environment from gc: see `Client.pin`."""
        return await self._ask(self._admin.PinEnvironment, requests.pin(environment_id))

    async def unpin(self, environment_id: str) -> envd_pb2.Environment:
        """Let gc have an environment again: see `Client.unpin`."""
        return await self._ask(self._admin.UnpinEnvironment, requests.unpin(environment_id))

    async def purge(
        self,
        *,
        force: bool = False,
        max_age_s: float | None = None,
        unused_for_s: float | None = None,
        max_size_bytes: int | None = None,
        min_free: str | None = None,
        keep: int | None = None,
        timeout_s: float | None = None,
    ) -> envd_pb2.PurgeEnvironmentsResponse:
        """Remove what is not worth its place if *force*: see `Client.purge`."""
        request = requests.purge(
            force=force,
            max_age_s=max_age_s,
            unused_for_s=unused_for_s,
            max_size_bytes=max_size_bytes,
            min_free=min_free,
            keep=keep,
        )
        return await self._ask(self._admin.PurgeEnvironments, request, timeout_s)

    async def verify(
        self, environment_id: str, *, repair: bool = False, timeout_s: float | None = None
    ) -> envd_pb2.VerifyEnvironmentResponse:
        """Say what is not as it was published: see `Client.verify`."""
        request = requests.verify(environment_id, repair=repair)
        return await self._ask(self._admin.VerifyEnvironment, request, timeout_s)

    async def load_model(
        self,
        model: str | os.PathLike[str],
        *,
        name: str = "",
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> envd_pb2.Model:
        """Load *model*: see `Client.load_model`."""
        request = requests.load_model(model, name, wait=wait)
        try:
            return await self._ask(self._predictions.LoadModel, request, timeout_s)
        except PermissionDeniedError:
            if self._connection.admin_target == self._connection.target:
                raise
            return await self._ask(self._model_admin.LoadModel, request, timeout_s)

    async def unload_model(self, model: str | os.PathLike[str]) -> envd_pb2.Model:
        """Stop the workers of *model*: see `Client.unload_model`."""
        request = requests.unload_model(model)
        try:
            return await self._ask(self._predictions.UnloadModel, request)
        except PermissionDeniedError:
            if self._connection.admin_target == self._connection.target:
                raise
            return await self._ask(self._model_admin.UnloadModel, request)

    async def list_models(self) -> Sequence[envd_pb2.Model]:
        """Return the models that have a name, were loaded, or have a worker."""
        request = envd_pb2.ListModelsRequest()
        return list((await self._ask(self._predictions.ListModels, request)).models)

    async def list_workers(self) -> Sequence[envd_pb2.Worker]:
        """Return the processes that have a model loaded, the one used last first."""
        request = envd_pb2.ListWorkersRequest()
        return list((await self._ask(self._predictions.ListWorkers, request)).workers)

    async def restart_worker(self, pid: int) -> envd_pb2.Worker:
        """Start a worker in the place of the one of that *pid*; return what that was.

        It ends when it has answered what it was asked. Over the admin socket.

        Raises:
            WorkerNotFoundError: no worker has that pid.
        """
        request = envd_pb2.RestartWorkerRequest(pid=pid)
        return await self._ask(self._model_admin.RestartWorker, request)

    async def get_model(self, model: str | os.PathLike[str]) -> envd_pb2.Model:
        """Return what *model* says of itself, under `details`: its signature, its example."""
        return await self._ask(self._predictions.GetModel, requests.get_model(model))

    async def _parts(
        self,
        request: envd_pb2.PredictRequest,
        payload: bytes,
        function: envd_pb2.PredictStreamRequest.Function.ValueType,
        timeout_s: float | None,
    ) -> AsyncGenerator[envd_pb2.PredictStreamResponse, None]:
        """Yield what comes; the call is made again only as long as nothing has."""
        attempts, has_begun = self._connection.attempts(timeout_s), False
        largest = self._connection.max_message_bytes
        while True:
            call = self._predictions.PredictStream(
                streams.messages(request, payload, function, largest),
                timeout=attempts.left_s(),
                metadata=self._metadata,
            )
            try:
                async for response in call:
                    has_begun = True
                    yield response
            except grpc.RpcError as error:
                if has_begun:
                    raise from_rpc_error(error) from error
                pause_s = attempts.pause_s(error)
            else:
                return
            finally:
                call.cancel()
            await asyncio.sleep(pause_s)

    async def _ask(
        self,
        rpc: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None = None,
    ) -> _Response:
        attempts = self._connection.attempts(timeout_s)
        while True:
            try:
                return await rpc(request, timeout=attempts.left_s(), metadata=self._metadata)
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
            await asyncio.sleep(pause_s)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        return self._connection.credentials.metadata()

    @cached_property
    def _predictions(self) -> PredictionsAsyncStub:
        return PredictionsStub(self._channel)

    @cached_property
    def _environments(self) -> EnvironmentsAsyncStub:
        return EnvironmentsStub(self._channel)

    @cached_property
    def _admin(self) -> EnvironmentsAsyncStub:
        return EnvironmentsStub(self._admin_channel)

    @cached_property
    def _model_admin(self) -> PredictionsAsyncStub:
        return PredictionsStub(self._admin_channel)

    @cached_property
    def _admin_channel(self) -> grpc.aio.Channel:
        return self._open(self._connection.admin_target)

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return self._open(self._connection.target)

    def _open(self, target: str) -> grpc.aio.Channel:
        channel = self._connection.aio_channel(target)
        self._channels.append(channel)
        return channel
