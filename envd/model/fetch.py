"""Asks MLflow what a model URI means and downloads it; runs as a child of `envd.model.location`.

MLflow takes seconds to import, prints what it likes and may hang, so it never runs in the
daemon. The one argument is the descriptor of a socket: a line of JSON comes in, the
fields of `Request`; one goes out, `{"path", "identity"}`, `{"unchanged"}` or `{"failure"}`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from envd.errors import (
    CacheFullError,
    EnvdError,
    ModelNotFoundError,
    ModelUnreachableError,
    RequestInvalidError,
    ResolverMissingError,
)
from envd.secrets import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LONGEST_LINE = 500

# The operator's own values win, for asking and for downloading.
_GIVEN = frozenset(os.environ)

# MLflow gives what its stores say of a missing file or version no code of its own.
_ABSENT = re.compile(
    r"404 Client Error|\(404\) when calling|NoSuch(?:Key|Bucket)"
    r"|No such artifact|^No versions of model"
)
_MALFORMED = re.compile(r"^Not a proper")
_UNKNOWN = re.compile(r"^Could not find a registered artifact repository")
# What MLflow says of a page of the web: of those it knows its own servers' artifacts alone.
_UNPARSED = re.compile(r"^not enough values to unpack")
_ABSENT_CODES = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"}


@dataclass(frozen=True, slots=True)
class Request:
    """What to download, into which directory, and what is there already."""

    uri: str
    destination: str
    identity: str | None


@dataclass(frozen=True, slots=True)
class _Source:
    """A URI that means the same tomorrow, and what tells its content from any other."""

    uri: str
    identity: str | None


def answer(request: Request) -> dict[str, object]:
    """Return the answer to *request*; whatever goes wrong is one, too."""
    try:
        return _download(request)
    except ImportError as error:
        failure: EnvdError = _missing(error, request.uri)
    except Exception as error:  # noqa: BLE001 - MLflow and its stores raise anything
        failure = _failure(error, request.uri)
    return {"failure": failure.document()}


def main() -> None:
    """Answer the one request that comes over the inherited socket."""
    with socket.socket(fileno=int(sys.argv[1])) as parent, parent.makefile("rw") as talk:
        request = Request(**json.loads(talk.readline()))
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        print(json.dumps(answer(request)), file=talk, flush=True)


def _end_with(parent: socket.socket) -> None:
    # Nothing more is ever sent: this returns when the parent is gone, however it went.
    with contextlib.suppress(OSError):
        parent.recv(1)
    os.killpg(os.getpid(), signal.SIGKILL)


def _download(request: Request) -> dict[str, object]:
    import mlflow.artifacts  # noqa: PLC0415

    # MLflow would try a server that is away for four minutes. Its proxy of a bucket
    # sends the first byte of a file only when it has all of it.
    _be_patient(retries=1, timeout_s=5)
    source = _resolve(request.uri)
    identity = source.identity and redact(source.identity)
    if identity is not None and identity == request.identity:
        return {"unchanged": True}
    _be_patient(retries=2, timeout_s=120)
    path = mlflow.artifacts.download_artifacts(
        artifact_uri=source.uri, dst_path=request.destination
    )
    inside = Path(path).relative_to(request.destination)
    return {"path": str(inside), "identity": identity}


def _be_patient(*, retries: int, timeout_s: int) -> None:
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
    }
    os.environ.update({name: text for name, text in wanted.items() if name not in _GIVEN})


def _resolve(uri: str) -> _Source:
    scheme = urlsplit(uri).scheme
    if scheme == "models":
        return _registered(uri)
    if scheme == "runs":
        return _of_run(uri)
    return _Source(uri, None)


def _registered(uri: str) -> _Source:
    from mlflow import MlflowClient, get_registry_uri  # noqa: PLC0415
    from mlflow.store.artifact.models_artifact_repo import (  # noqa: PLC0415
        ModelsArtifactRepository,
    )
    from mlflow.store.artifact.utils.models import get_model_name_and_version  # noqa: PLC0415
    from mlflow.utils.uri import get_databricks_profile_uri_from_artifact_uri  # noqa: PLC0415

    model, path = ModelsArtifactRepository.split_models_uri(uri)  # type: ignore[no-untyped-call]
    profile = get_databricks_profile_uri_from_artifact_uri(model)  # type: ignore[no-untyped-call]
    client = MlflowClient(registry_uri=profile or get_registry_uri())
    found = get_model_name_and_version(client, model)  # type: ignore[no-untyped-call]
    if len(found) == 1:
        return _Source(uri, client.get_logged_model(found[0]).artifact_location)
    name, version = found
    # The version by number: the alias may move between asking and downloading.
    pinned = urlsplit(model)._replace(path=f"/{name}/{version}").geturl()
    source = client.get_model_version(name, version).source
    return _Source(f"{pinned}/{path}".rstrip("/"), f"{name}/{version} {source}")


def _of_run(uri: str) -> _Source:
    from mlflow import MlflowClient  # noqa: PLC0415
    from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository  # noqa: PLC0415

    # MLflow's own download of a `runs:/` URI calls a model that broke off complete, and a
    # server that went away a wrong path: it swallows the errors of both places it looks in.
    run_id, path = RunsArtifactRepository.parse_runs_uri(uri)  # type: ignore[no-untyped-call]
    name, _, rest = (path or "").partition("/")
    for model in _logged_models(MlflowClient(), run_id, name):
        if model.source_run_id == run_id:
            location = model.artifact_location
            whole = f"models:/{model.model_id}"
            return _Source(f"{location}/{rest}" if rest else whole, f"{location} {rest}".rstrip())
    underlying = RunsArtifactRepository.get_underlying_uri(uri)
    return _Source(underlying, underlying)


def _logged_models(client: MlflowClient, run_id: str, name: str) -> Iterator[Any]:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    experiment = client.get_run(run_id).info.experiment_id
    token = None
    # Neither MLflow 2 nor its server has logged models.
    while name and hasattr(client, "search_logged_models"):
        try:
            page = client.search_logged_models(
                [experiment], filter_string=f"name = '{name}'", page_token=token
            )
        except MlflowException as error:
            if error.error_code == "ENDPOINT_NOT_FOUND":
                return
            raise
        yield from page
        token = page.token
        if not token:
            return


def _missing(error: ImportError, uri: str) -> ResolverMissingError:
    shown = redact(uri)
    if error.name == "mlflow":
        message = (
            f"reading `{shown}` needs MLflow, which is not installed beside envd; "
            "`pip install 'envd-daemon[mlflow]'`"
        )
        return ResolverMissingError(message, model=shown)
    line = redact(_last_line(error), uri)
    message = (
        f"MLflow cannot read `{shown}` with what is installed beside envd ({line}); "
        "install what is missing there"
    )
    return ResolverMissingError(message, model=shown, detail=line)


def _failure(error: Exception, uri: str) -> EnvdError:
    shown = redact(uri)
    servers = (os.environ.get(f"MLFLOW_{kind}_URI", "") for kind in ("TRACKING", "REGISTRY"))
    line = redact(_last_line(error), uri, *servers)
    told: dict[str, object] = {"model": shown, "detail": line}
    if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "[Errno 28]" in str(error):
        return CacheFullError(f"no space left to download `{shown}`; free some", **told)
    if _is_unknown(error, uri):
        message = (
            f"`{shown}` is no URI that MLflow's resolver knows; give a directory, "
            "`models:/NAME/VERSION`, `models:/NAME@ALIAS`, `runs:/RUN/PATH`, or the URI of a "
            "model in a store that MLflow reads, such as `s3://BUCKET/PATH`"
        )
        return RequestInvalidError(message, **told)
    if _MALFORMED.search(str(error)):
        return RequestInvalidError(f"MLflow cannot read the URI `{shown}`: {line}", **told)
    if getattr(error, "error_code", "") in _ABSENT_CODES or _ABSENT.search(str(error)):
        message = f"there is no model at `{shown}`: {line}; give one that exists"
        return ModelNotFoundError(message, **told)
    message = f"cannot get the model `{shown}`: {line}; try again when its server answers"
    return ModelUnreachableError(message, **told)


def _is_unknown(error: Exception, uri: str) -> bool:
    is_of_the_web = urlsplit(uri).scheme in {"http", "https"}
    found = _UNKNOWN.search(str(error)) or (is_of_the_web and _UNPARSED.search(str(error)))
    return bool(found)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    return (lines[-1] if lines else type(error).__name__)[-_LONGEST_LINE:]


if __name__ == "__main__":
    main()
