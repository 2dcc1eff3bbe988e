"""Writes the requests of the API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from envd_client import inputs
from envd_client.errors import RequestInvalidError
from envd_client.v1 import envd_pb2

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

# What a Duration holds: ten thousand years.
_LONGEST_S = 315_576_000_000


def predict(
    model: str | os.PathLike[str],
    data: object,
    *,
    content_type: str | None,
    params: Mapping[str, object] | None,
    model_config: Mapping[str, object] | None,
    wait: bool,
    override: Sequence[str],
    env_manager: str,
) -> envd_pb2.PredictRequest:
    """Ask *model* about *data*.

    Raises:
        PayloadInvalidError: JSON has no form for the data, the params or the model_config.
        RequestInvalidError: the override is one text.
    """
    request, payload = apart(
        model,
        data,
        content_type=content_type,
        params=params,
        model_config=model_config,
        wait=wait,
        override=override,
        env_manager=env_manager,
    )
    request.payload = payload
    return request


def apart(
    model: str | os.PathLike[str],
    data: object,
    *,
    content_type: str | None,
    params: Mapping[str, object] | None,
    model_config: Mapping[str, object] | None,
    wait: bool,
    override: Sequence[str],
    env_manager: str,
) -> tuple[envd_pb2.PredictRequest, bytes]:
    """Ask *model* about *data*: return all but the payload, and the payload.

    A message may be smaller than that, and every look into one is a copy of it.

    Raises:
        EnvdError: as `predict`.
    """
    payload, payload_type = inputs.encode(data, content_type)
    request = envd_pb2.PredictRequest(
        model=model_name(model),
        content_type=payload_type,
        params_json=inputs.to_json(dict(params), of="params") if params else "",
        model_config_json=(
            inputs.to_json(dict(model_config), of="model_config") if model_config else ""
        ),
        wait=wait,
        pip_requirements_override=_texts(override),
        env_manager=env_manager,
    )
    return request, payload


def resolve(
    model: str | os.PathLike[str],
    override: Sequence[str],
    *,
    lock: bool,
    upgrade: bool,
    env_manager: str,
    platforms: Sequence[str],
) -> envd_pb2.ResolveSpecRequest:
    """Ask what *model* needs, locked if *lock*.

    Raises:
        RequestInvalidError: the override is one text.
    """
    return envd_pb2.ResolveSpecRequest(
        model=model_name(model),
        pip_requirements_override=_texts(override),
        lock=lock,
        upgrade=upgrade,
        env_manager=env_manager,
        platforms=platforms,
    )


def build(
    model: str | os.PathLike[str],
    override: Sequence[str],
    *,
    upgrade: bool,
    retry: bool,
    env_manager: str,
) -> envd_pb2.BuildEnvironmentRequest:
    """Ask for the environment of *model*.

    Raises:
        RequestInvalidError: the override is one text.
    """
    return envd_pb2.BuildEnvironmentRequest(
        model=model_name(model),
        pip_requirements_override=_texts(override),
        upgrade=upgrade,
        retry=retry,
        env_manager=env_manager,
    )


def _texts(override: Sequence[str]) -> list[str]:
    # A text is a sequence of texts as well, of one character each.
    if isinstance(override, str):
        message = "`pip_requirements_override` is a list of requirements, not one text"
        raise RequestInvalidError(message)
    return list(override)


def watch(environment_id: str, after_sequence: int) -> envd_pb2.WatchEnvironmentRequest:
    """Ask for the events of an environment after *after_sequence*."""
    return envd_pb2.WatchEnvironmentRequest(id=environment_id, after_sequence=after_sequence)


def get(environment_id: str, *, full: bool) -> envd_pb2.GetEnvironmentRequest:
    """Ask for one environment, all of it if *full*."""
    view = envd_pb2.FULL if full else envd_pb2.BASIC
    return envd_pb2.GetEnvironmentRequest(id=environment_id, view=view)


def cancel(build_id: str) -> envd_pb2.CancelBuildRequest:
    """Ask to end a build."""
    return envd_pb2.CancelBuildRequest(id=build_id)


def first_page(*, show_all: bool) -> envd_pb2.ListEnvironmentsRequest:
    """Ask for the first page of environments, with builds and failures if *show_all*."""
    return envd_pb2.ListEnvironmentsRequest(show_all=show_all)


def page_after(
    page: envd_pb2.ListEnvironmentsResponse, *, show_all: bool
) -> envd_pb2.ListEnvironmentsRequest | None:
    """Ask for the page after *page*, None if it is the last."""
    if not page.next_page_token:
        return None
    return envd_pb2.ListEnvironmentsRequest(page_token=page.next_page_token, show_all=show_all)


def delete(environment_id: str, *, force: bool) -> envd_pb2.DeleteEnvironmentRequest:
    """Ask to remove one environment, pinned or in use if *force*."""
    return envd_pb2.DeleteEnvironmentRequest(id=environment_id, force=force)


def pin(environment_id: str) -> envd_pb2.PinEnvironmentRequest:
    """Ask to keep one environment."""
    return envd_pb2.PinEnvironmentRequest(id=environment_id)


def unpin(environment_id: str) -> envd_pb2.UnpinEnvironmentRequest:
    """Ask to keep one environment no longer."""
    return envd_pb2.UnpinEnvironmentRequest(id=environment_id)


def purge(
    *,
    force: bool,
    max_age_s: float | None,
    unused_for_s: float | None,
    max_size_bytes: int | None,
    min_free: str | None,
    keep: int | None,
) -> envd_pb2.PurgeEnvironmentsRequest:
    """Ask to remove what is not worth its place, or what would be removed."""
    return envd_pb2.PurgeEnvironmentsRequest(
        force=force,
        max_age=_duration(max_age_s),
        unused_for=_duration(unused_for_s),
        max_size=max_size_bytes,
        min_free=min_free or "",
        keep=keep,
    )


def verify(environment_id: str, *, repair: bool) -> envd_pb2.VerifyEnvironmentRequest:
    """Ask whether an environment is as it was published."""
    return envd_pb2.VerifyEnvironmentRequest(id=environment_id, repair=repair)


def load_model(
    model: str | os.PathLike[str], name: str, *, wait: bool
) -> envd_pb2.LoadModelRequest:
    """Ask to have *model* loaded, and served as *name* if that is not empty."""
    return envd_pb2.LoadModelRequest(model=model_name(model), name=name, wait=wait)


def unload_model(model: str | os.PathLike[str]) -> envd_pb2.UnloadModelRequest:
    """Ask to stop the workers of *model*."""
    return envd_pb2.UnloadModelRequest(model=model_name(model))


def get_model(model: str | os.PathLike[str]) -> envd_pb2.GetModelRequest:
    """Ask what *model* says of itself."""
    return envd_pb2.GetModelRequest(model=model_name(model))


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(int(min(seconds, _LONGEST_S) * 1e9))
    return duration


def model_name(model: str | os.PathLike[str]) -> str:
    """Return *model* as the daemon takes it: a path absolute, anything else as it is.

    A text is a path if it has a `/` or begins with a `.`, and has no `:`.

    Raises:
        RequestInvalidError: it is not UTF-8, as the names of files need not be.
    """
    is_text = isinstance(model, str) and (":" in model or not ("/" in model or model[:1] == "."))
    name = str(model) if is_text else str(Path(model).absolute())
    try:
        name.encode()
    except UnicodeEncodeError as error:
        message = f"the model {name!r} is not called in UTF-8, and cannot be sent; rename it"
        raise RequestInvalidError(message) from error
    return name
