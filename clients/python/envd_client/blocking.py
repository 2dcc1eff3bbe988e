"""Asks envd and waits for the answer."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import grpc

from envd_client import connection, requests, streams
from envd_client.answer import answer
from envd_client.attempts import limit_s
from envd_client.errors import PermissionDeniedError, from_rpc_error
from envd_client.streams import Stream
from envd_client.v1 import envd_pb2
from envd_client.v1.envd_pb2_grpc import EnvironmentsStub, PredictionsStub

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from envd_client.answer import Answer

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Client:
    """A client of one daemon, for any number of threads.

    It connects with the first call. Every call raises an EnvdError if it fails.
    """

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
        """Settle where to connect.

        Args:
            target: The path of the daemon's socket or its host:port; `ENVD_SOCKET`, else
                the socket of this user's daemon, if there is none.
            admin_target: The same for what changes or removes environments; `admin.sock`
                beside the target if none, or the target itself where it is host:port.
            timeout_s: The longest a call may take, a build it waits for included; None
                sets no limit, as `math.inf` does for one call. `watch` has a limit of its own.
            max_message_bytes: The largest request or answer.
            retries: How often a call that finds the daemon unavailable is made again,
                after the time the daemon asks for.
            tls_ca: A PEM file of the CAs that the daemon's certificate is of; gRPC's own if
                none. To another machine there is TLS in any case, to this one if a CA is
                given.
            tls_cert: A PEM file with the client's certificate.
            tls_key: Its key.
            token: What `envctl token` printed.
            token_file: A file that holds it, and is read again when it has changed.

        Without a target the files are those of `ENVD_TLS_CA`, `ENVD_TLS_CERT`,
        `ENVD_TLS_KEY` and `ENVD_TOKEN_FILE`.

        Raises:
            SettingsInvalidError: nothing says where the daemon listens, or the credentials do
                not fit together.
        """
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
        self._channels: list[grpc.Channel] = []

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections; calls under way are cancelled."""
        for channel in self._channels:
            channel.close()

    def predict(
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
        """Return what *model*, served by that name, a directory or a URI, says about *data*.

        What makes the environment is *env_manager*: `virtualenv`, `conda` or `auto`; empty
        means as the daemon's settings say. A *model_config* is MLflow's: the model is loaded
        with it, in a worker of its own.

        Data that is larger than a message is sent in parts, and the answer comes so. With
        *in_parts* that is done in any case: the answer may be larger than a message then.

        Raises:
            PayloadInvalidError: the data cannot be sent, or does not fit the model.
            EnvironmentBuildingError: the environment is not ready, with `wait=False`.
        """
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
            found = [item for part in parts if (item := items.add(part)) is not None]
            return items.answered(b"".join(found))
        request.payload = payload
        return answer(self._ask(self._predictions.Predict, request, timeout_s))

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
    ) -> Stream:
        """Return what the `predict_stream` of *model* says about *data*, item by item.

        It is asked when the first item is wanted, and stops when the stream is closed, as
        its `with` does, or the *timeout_s* is over, for all of the items. The arguments are
        those of `predict`, and the items whatever the model yields. Whatever is raised is raised by
        the iteration; items that came before it are good.

        Raises:
            PayloadInvalidError: the data cannot be sent, or does not fit the model.
            StreamUnsupportedError: the model has no `predict_stream`.
        """
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
        return Stream(self._parts(request, payload, streams.PREDICT_STREAM, timeout_s))

    def resolve(
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
        return self._ask(self._environments.ResolveSpec, request, timeout_s)

    def build(
        self,
        model: str | os.PathLike[str],
        *,
        pip_requirements_override: Sequence[str] = (),
        upgrade: bool = False,
        retry: bool = False,
        env_manager: str = "",
    ) -> envd_pb2.Environment:
        """Start building the environment of *model* and return it as it is now.

        With *upgrade* it is locked anew; the old environment serves until the new is ready.
        With *retry* it is tried although it failed a short time ago.
        """
        request = requests.build(
            model,
            pip_requirements_override,
            upgrade=upgrade,
            retry=retry,
            env_manager=env_manager,
        )
        return self._ask(self._environments.BuildEnvironment, request)

    def cancel(self, build_id: str) -> envd_pb2.Environment:
        """End a build, for everybody who waits for it.

        Raises:
            EnvironmentNotFoundError: no build of this id is under way.
        """
        return self._ask(self._environments.CancelBuild, requests.cancel(build_id))

    def watch(
        self, environment_id: str, after_sequence: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[envd_pb2.EnvironmentEvent]:
        """Yield what happens to an environment until it is ready or failed.

        Leaving does not stop the build; come back with the last event's `sequence`.
        """
        request = requests.watch(environment_id, after_sequence)
        call = self._environments.WatchEnvironment(
            request, timeout=limit_s(timeout_s), metadata=self._metadata
        )
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def get(self, environment_id: str, *, full: bool = False) -> envd_pb2.Environment:
        """Return one environment, with its packages, spec and paths if *full*.

        Raises:
            EnvironmentNotFoundError: no environment has this id or prefix of one.
        """
        return self._ask(self._environments.GetEnvironment, requests.get(environment_id, full=full))

    def list(self, *, show_all: bool = False) -> Iterator[envd_pb2.Environment]:
        """Yield the published environments, by id; builds and failures too if *show_all*."""
        request: envd_pb2.ListEnvironmentsRequest | None = requests.first_page(show_all=show_all)
        while request is not None:
            page = self._ask(self._environments.ListEnvironments, request)
            yield from page.environments
            request = requests.page_after(page, show_all=show_all)

    def delete(
        self, environment_id: str, *, force: bool = False, timeout_s: float | None = None
    ) -> envd_pb2.Environment:
        """Remove one environment and return what it was, over the admin socket.

        With *force* be it pinned or in use: it waits for those who use it.

        Raises:
            EnvironmentInUseError: a process holds it.
            EnvironmentPinnedError: it is pinned.
            SettingsInvalidError: nothing says where the admin socket is.
        """
        request = requests.delete(environment_id, force=force)
        return self._ask(self._admin.DeleteEnvironment, request, timeout_s)

    def pin(self, environment_id: str) -> envd_pb2.Environment:
        """Keep an environment from gc, over the admin socket."""
        return self._ask(self._admin.PinEnvironment, requests.pin(environment_id))

    def unpin(self, environment_id: str) -> envd_pb2.Environment:
        """Let gc have an environment again, over the admin socket."""
        return self._ask(self._admin.UnpinEnvironment, requests.unpin(environment_id))

    def purge(
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
        """Remove what is not worth its place if *force*, else say what would be removed.

        Limits that are not given are as the daemon's settings say. *min_free* is bytes or a
        percentage of the disk, as in `10%`. Over the admin socket.
        """
        request = requests.purge(
            force=force,
            max_age_s=max_age_s,
            unused_for_s=unused_for_s,
            max_size_bytes=max_size_bytes,
            min_free=min_free,
            keep=keep,
        )
        return self._ask(self._admin.PurgeEnvironments, request, timeout_s)

    def verify(
        self, environment_id: str, *, repair: bool = False, timeout_s: float | None = None
    ) -> envd_pb2.VerifyEnvironmentResponse:
        """Say what is not as it was published, and build it anew if *repair*.

        Over the admin socket.
        """
        request = requests.verify(environment_id, repair=repair)
        return self._ask(self._admin.VerifyEnvironment, request, timeout_s)

    def load_model(
        self,
        model: str | os.PathLike[str],
        *,
        name: str = "",
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> envd_pb2.Model:
        """Build the environment of *model* and load it; return it as it is then.

        With a *name* it is served by that as long as the daemon runs. Without *wait* it is
        returned at once, and loaded all the same.

        Raises:
            PermissionDeniedError: only an admin may load what the daemon's settings do not
                name, and the admin socket cannot be had.
        """
        request = requests.load_model(model, name, wait=wait)
        try:
            return self._ask(self._predictions.LoadModel, request, timeout_s)
        except PermissionDeniedError:
            if self._connection.admin_target == self._connection.target:
                raise
            return self._ask(self._model_admin.LoadModel, request, timeout_s)

    def unload_model(self, model: str | os.PathLike[str]) -> envd_pb2.Model:
        """Stop the workers of *model*, each when it has answered what it was asked.

        A name that `load_model` gave it is gone; a prediction loads it again.

        Raises:
            ModelNotFoundError: nothing that is called so is loaded.
        """
        request = requests.unload_model(model)
        try:
            return self._ask(self._predictions.UnloadModel, request)
        except PermissionDeniedError:
            if self._connection.admin_target == self._connection.target:
                raise
            return self._ask(self._model_admin.UnloadModel, request)

    def list_models(self) -> Sequence[envd_pb2.Model]:
        """Return the models that have a name, were loaded, or have a worker."""
        request = envd_pb2.ListModelsRequest()
        return list((self._ask(self._predictions.ListModels, request)).models)

    def list_workers(self) -> Sequence[envd_pb2.Worker]:
        """Return the processes that have a model loaded, the one used last first."""
        request = envd_pb2.ListWorkersRequest()
        return list((self._ask(self._predictions.ListWorkers, request)).workers)

    def restart_worker(self, pid: int) -> envd_pb2.Worker:
        """Start a worker in the place of the one of that *pid*; return what that was.

        It ends when it has answered what it was asked. Over the admin socket.

        Raises:
            WorkerNotFoundError: no worker has that pid.
        """
        request = envd_pb2.RestartWorkerRequest(pid=pid)
        return self._ask(self._model_admin.RestartWorker, request)

    def get_model(self, model: str | os.PathLike[str]) -> envd_pb2.Model:
        """Return what *model* says of itself, under `details`: its signature, its example."""
        return self._ask(self._predictions.GetModel, requests.get_model(model))

    def _parts(
        self,
        request: envd_pb2.PredictRequest,
        payload: bytes,
        function: envd_pb2.PredictStreamRequest.Function.ValueType,
        timeout_s: float | None,
    ) -> Generator[envd_pb2.PredictStreamResponse, None, None]:
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
                for response in call:
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
            time.sleep(pause_s)

    def _ask(
        self,
        rpc: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None = None,
    ) -> _Response:
        attempts = self._connection.attempts(timeout_s)
        while True:
            try:
                return rpc(request, timeout=attempts.left_s(), metadata=self._metadata)
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error)
            time.sleep(pause_s)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        return self._connection.credentials.metadata()

    @cached_property
    def _predictions(self) -> PredictionsStub:
        return PredictionsStub(self._channel)

    @cached_property
    def _environments(self) -> EnvironmentsStub:
        return EnvironmentsStub(self._channel)

    @cached_property
    def _admin(self) -> EnvironmentsStub:
        return EnvironmentsStub(self._admin_channel)

    @cached_property
    def _model_admin(self) -> PredictionsStub:
        return PredictionsStub(self._admin_channel)

    @cached_property
    def _admin_channel(self) -> grpc.Channel:
        return self._open(self._connection.admin_target)

    @cached_property
    def _channel(self) -> grpc.Channel:
        return self._open(self._connection.target)

    def _open(self, target: str) -> grpc.Channel:
        channel = self._connection.channel(target)
        # Two threads may open one each: `close` finds both.
        self._channels.append(channel)
        return channel
