"""Writes the requests of the API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envd_client import inputs
from envd_client.errors import RequestInvalidError
from envd_client.v1 import envd_pb2

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence


def predict(
    model: str | os.PathLike[str],
    data: object,
    *,
    content_type: str | None,
    params: Mapping[str, object] | None,
    wait: bool,
    override: Sequence[str],
) -> envd_pb2.PredictRequest:
    """Ask *model* about *data*.

    Raises:
        PayloadInvalidError: JSON has no form for the data or the params.
        RequestInvalidError: the override is one text.
    """
    payload, payload_type = inputs.encode(data, content_type)
    return envd_pb2.PredictRequest(
        model=model_name(model),
        payload=payload,
        content_type=payload_type,
        params_json=inputs.to_json(dict(params), of="params") if params else "",
        wait=wait,
        pip_requirements_override=_texts(override),
    )


def resolve(
    model: str | os.PathLike[str], override: Sequence[str], *, lock: bool, upgrade: bool
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
    )


def build(
    model: str | os.PathLike[str], override: Sequence[str], *, upgrade: bool
) -> envd_pb2.BuildEnvironmentRequest:
    """Ask for the environment of *model*.

    Raises:
        RequestInvalidError: the override is one text.
    """
    return envd_pb2.BuildEnvironmentRequest(
        model=model_name(model), pip_requirements_override=_texts(override), upgrade=upgrade
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


def first_page() -> envd_pb2.ListEnvironmentsRequest:
    """Ask for the first page of environments."""
    return envd_pb2.ListEnvironmentsRequest()


def page_after(
    page: envd_pb2.ListEnvironmentsResponse,
) -> envd_pb2.ListEnvironmentsRequest | None:
    """Ask for the page after *page*, None if it is the last."""
    if not page.next_page_token:
        return None
    return envd_pb2.ListEnvironmentsRequest(page_token=page.next_page_token)


def delete(environment_id: str) -> envd_pb2.DeleteEnvironmentRequest:
    """Ask to remove one environment."""
    return envd_pb2.DeleteEnvironmentRequest(id=environment_id)


def model_name(model: str | os.PathLike[str]) -> str:
    """Return *model* as the daemon takes it: a path absolute, anything else as it is.

    A text is a path if it has a `/` or begins with a `.`, and has no `:`.
    """
    if not isinstance(model, str):
        return str(Path(model).absolute())
    is_path = ("/" in model or model.startswith(".")) and ":" not in model
    return str(Path(model).absolute()) if is_path else model
