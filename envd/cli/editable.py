"""Which models may be edited: those on this machine; to the others the way is shown.

The others may be read as they were downloaded.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envd.cli import names

if TYPE_CHECKING:
    from envd.config import Settings

_OF_A_SERVER = ("runs:", "models:", "mlflow-artifacts:")


def local(name: str, asked: Sequence[str], settings: Settings) -> list[str]:
    """Return the directories that *name* stands for: a model, a folder of them, a served name.

    Raises:
        RequestInvalidError: it lies elsewhere; what is *asked* for is in the way that is shown.
        ModelNotFoundError: there is nothing there.
    """
    from envd.errors import RequestInvalidError  # noqa: PLC0415

    uri = _uri(name, settings)
    if uri.startswith(_OF_A_SERVER):
        raise RequestInvalidError(_recipe(uri, asked), model=uri)
    if not uri.startswith(("/", "file:")):
        message = f"`{name}` is not on this machine; download it, edit it there, and upload it"
        raise RequestInvalidError(message, model=name)
    return _here(name, uri, settings)


def readable(name: str, settings: Settings) -> dict[str, str]:
    """Return the directories that *name* stands for, each by what it is called.

    As `local` does, but what lies elsewhere is downloaded, as for a prediction, unless it is here.

    Raises:
        EnvdError: it cannot be had.
    """
    from envd.model import location  # noqa: PLC0415
    from envd.secrets import redact  # noqa: PLC0415
    from envd.store import Store  # noqa: PLC0415

    uri = _uri(name, settings)
    if location.local(uri):
        return {one: one for one in _here(name, uri, settings)}
    store = Store(settings.root)
    store.check()
    store.check_format()
    return {redact(uri): str(location.locate(uri, settings))}


def _here(name: str, uri: str, settings: Settings) -> list[str]:
    from envd.model import location  # noqa: PLC0415

    found = location.known(uri, settings)
    models = names.models(str(found)) if found else []
    if not models:
        message = f"there is no model in {name}"
        raise click.UsageError(message)
    return models


def _uri(name: str, settings: Settings) -> str:
    from envd.model import naming  # noqa: PLC0415

    return naming.uri_of(_called(name, settings), settings.served)


def _called(name: str, settings: Settings) -> str:
    """Return what the API calls *name*, and a folder that nobody serves by that name its path."""
    given = names.model(name)
    if names.is_folder(Path(name)) and given not in {one.name for one in settings.served}:
        return str(Path(name).absolute())
    return given


def _recipe(uri: str, asked: Sequence[str]) -> str:
    from envd.secrets import redact  # noqa: PLC0415

    shown = redact(uri)
    likely = shown.partition(":")[2].strip("/").partition("/")[0].partition("@")[0]
    name = likely if shown.startswith("models:") and likely.isidentifier() else "NAME"
    # MLflow lays what is a part of something into a folder of its own name.
    last = "" if shown.startswith("models:") else shown.rstrip("/").rpartition("/")[2]
    folder = f"edited/{last}" if last else "edited"
    edit = shlex.join(["envctl", "requirements", asked[0], "-m", f"./{folder}", *asked[1:]])
    return f"""\
`{shown}` lies on a tracking server, where a version that was registered or logged stays as it is: \
others have loaded it by that name. Take a copy, edit that, and register it as a new version:
  mlflow artifacts download -u {shlex.quote(shown)} -d ./edited
  {edit}
  python -c 'import mlflow
with mlflow.start_run() as run:
    mlflow.log_artifacts({json.dumps(folder)}, "model")
mlflow.register_model(f"runs:/{{run.info.run_id}}/model", "{name}")'"""
