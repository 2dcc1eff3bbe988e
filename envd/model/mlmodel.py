"""Reads an `MLmodel` file, as MLflow 1.8 to 3.x wrote it, into a Model.

The keys are those `mlflow/pyfunc/__init__.py` uses when it loads a model; keys that are
not known are left alone, as MLflow does.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envd.errors import ModelInvalidError, ModelNotFoundError
from envd.model import documents, files
from envd.model import look as looking
from envd.model.documents import Document
from envd.model.look import Look
from envd.model.texts import shown
from envd.settings.values import is_variable

_METADATA = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "constraints.txt")
_MAX_FILES = 100_000
_MAX_CODE_BYTES = 64 << 20
_LEFT_OUT = {"__pycache__"}
_LONG_LOOK_S, _LONGEST_S, _MANY = 0.02, 5.0, 1000
_MAX_VARIABLES = 100
_TRUE = ("true", "True")
_BOOLEANS = (*_TRUE, "false", "False")


@dataclass(frozen=True, slots=True)
class Model:
    """A model directory whose `MLmodel` has been read and checked.

    `code`, `conda_file` and `virtualenv_file` are relative to `path` and lie inside it.
    `directory` is the device and the inode of that, and `digest` changes when anything a worker
    loads changes. `env_vars` are the variables it
    reads, and `batch` whether its answer to a row depends on that row alone, as far as the
    model says; `is_streamable`, whether it has a `predict_stream`. `input_example` is relative
    to `path`, and was not looked for.
    """

    path: Path
    directory: tuple[int, int]
    digest: str
    loader_module: str
    data: str | None
    code: str | None
    conda_file: str | None
    virtualenv_file: str | None
    python_version: str | None
    mlflow_version: str | None
    created: str | None
    signature: Document
    env_vars: tuple[str, ...]
    batch: bool
    is_streamable: bool
    input_example: str | None
    flavors: dict[str, Document]


def read(path: Path) -> Model:
    """Read the model directory *path*.

    Raises:
        ModelNotFoundError: there is no such directory, or no `MLmodel` in it.
        ModelInvalidError: its path or its `MLmodel` cannot be used; the message says why.
    """
    check_path(path)
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        message = f"the model `{path}` {what}; give the directory that holds an `MLmodel` file"
        raise ModelNotFoundError(message, model=path)
    if not files.exists(path, "MLmodel"):
        message = f"no `MLmodel` file in `{path}`; give the directory that holds it"
        raise ModelNotFoundError(message, model=path)
    return _model(path, documents.read(path, "MLmodel"))


def check_path(path: Path) -> None:
    """See that *path* is one that messages, records and workers can name.

    Raises:
        ModelInvalidError: it is not UTF-8.
    """
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        name = os.fsencode(path).decode(errors="replace")
        message = f"the path of the model `{name}` is not UTF-8; rename it"
        raise ModelInvalidError(message, model=name) from error


def _model(path: Path, document: dict[str, Document]) -> Model:
    flavors = _mapping(path, document, "flavors")
    if "python_function" not in flavors:
        found = shown(", ".join(flavors) or "none")
        message = (
            f"the model `{path}` has no `python_function` flavor (it has {found}); "
            "log it with a flavor that MLflow can load as a Python function"
        )
        raise ModelInvalidError(message, model=path)
    flavor = _mapping(path, flavors, "python_function")
    loader = _text(path, flavor, "loader_module")
    if loader is None:
        message = f"`{path / 'MLmodel'}`: `python_function` has no `loader_module`"
        raise ModelInvalidError(message, model=path)
    code = _named_file(path, flavor, "code")
    conda_file, virtualenv_file = _environment_files(path, flavor)
    own, status = _own(path, document), path.stat()
    return Model(
        path=path,
        directory=(status.st_dev, status.st_ino),
        digest=digest(path, code),
        loader_module=loader,
        data=_named_file(path, flavor, "data"),
        code=code,
        conda_file=conda_file,
        virtualenv_file=virtualenv_file,
        python_version=_text(path, flavor, "python_version"),
        mlflow_version=_text(path, document, "mlflow_version"),
        created=_text(path, document, "utc_time_created"),
        signature=document.get("signature"),
        env_vars=_variables(document.get("env_vars"), own.get("env_vars")),
        batch=_is_true(path, own, "batch"),
        is_streamable=flavor.get("streamable") in _TRUE,
        input_example=_input_example(document),
        flavors=flavors,
    )


def _environment_files(path: Path, flavor: dict[str, Document]) -> tuple[str | None, str | None]:
    """Return the conda and the virtualenv file that `env` names, or that lie there unnamed."""
    env = flavor.get("env")
    named: dict[str, Document] = env if isinstance(env, dict) else {"conda": env}
    if isinstance(env, list):
        named = {}
    conda = _text(path, named, "conda") or "conda.yaml"
    virtualenv = _text(path, named, "virtualenv") or "python_env.yaml"
    found = [
        str(files.inside(path, name).relative_to(path.resolve()))
        if files.exists(path, name)
        else None
        for name in (conda, virtualenv)
    ]
    return found[0], found[1]


def _mapping(path: Path, document: dict[str, Document], key: str) -> dict[str, Document]:
    value = document.get(key)
    if not isinstance(value, dict):
        message = f"`{path / 'MLmodel'}`: `{key}` is not a mapping"
        raise ModelInvalidError(message, model=path, key=key)
    return value


def _text(path: Path, document: dict[str, Document], key: str) -> str | None:
    value = document.get(key)
    if value is not None and not isinstance(value, str):
        message = f"`{path / 'MLmodel'}`: `{key}` is not a text"
        raise ModelInvalidError(message, model=path, key=key)
    return value


def _own(path: Path, document: dict[str, Document]) -> dict[str, Document]:
    """Return what the model says to envd: MLflow writes `metadata` as it was given."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or metadata.get("envd") is None:
        return {}
    return _mapping(path, metadata, "envd")


def _variables(*values: Document) -> tuple[str, ...]:
    texts = [item for value in values if isinstance(value, list) for item in value]
    return tuple(dict.fromkeys(str(one) for one in texts if is_variable(str(one))))[:_MAX_VARIABLES]


def _is_true(path: Path, document: dict[str, Document], key: str) -> bool:
    value = document.get(key)
    if value is not None and value not in _BOOLEANS:
        message = f"`{path / 'MLmodel'}`: `{key}` is neither `true` nor `false`"
        raise ModelInvalidError(message, model=path, key=key)
    return value in _TRUE


def _input_example(document: dict[str, Document]) -> str | None:
    """Return the file of the example, in the form a server takes where it has that form."""
    info = document.get("saved_input_example_info")
    named = info if isinstance(info, dict) else {}
    files_named = [named.get(key) for key in ("serving_input_path", "artifact_path")]
    return next((str(one) for one in files_named if isinstance(one, str)), None)


def _named_file(path: Path, flavor: dict[str, Document], key: str) -> str | None:
    name = _text(path, flavor, key)
    if name is not None:
        files.inside(path, name)
    return name


def digest(path: Path, code: str | None) -> str:
    """Hash what a worker loads: metadata and code by content, artifacts by identity.

    Hashing a 10 GB artifact at each change would cost more than it protects from, so an
    artifact is its path, size, modification time and inode.
    """
    hashed = hashlib.sha256()
    left = _MAX_CODE_BYTES
    for name, status in _walk(path):
        is_code = code is not None and (code == "." or name.startswith(f"{code.rstrip('/')}/"))
        hashed.update(f"{name}\0{status.st_size}\0".encode(errors="surrogateescape"))
        content = _content(path / name, status, left) if is_code or name in _METADATA else None
        if content is None:
            hashed.update(f"{status.st_mtime_ns}\0{status.st_ino}\0".encode())
        else:
            left -= len(content)
            hashed.update(hashlib.sha256(content).digest())
    return hashed.hexdigest()


def _content(path: Path, status: os.stat_result, limit: int) -> bytes | None:
    """Return what stands in *path*, None where its identity has to do.

    What is not a small regular file is not source code; a link may lead out of the model.
    """
    limit = min(limit, files.MAX_METADATA_BYTES)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit or path.is_symlink():
        return None
    try:
        with open(path, "rb", opener=files.opener) as file:
            return file.read(limit)
    except OSError as error:
        files.raise_shortage(error)
        return None


def _walk(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every file and link below *path* in order, relative; no link is entered."""
    for name, entry in files.walk(path, path, _MAX_FILES, _LEFT_OUT):
        try:
            status = _status(entry)
        except FileNotFoundError:
            # The model is being changed.
            continue
        yield name, status


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of what a link leads to: caches of artifacts are full of links."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


class Models:
    """The models read so far; each is read again when one of its files has changed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with none."""
        self._clock = clock
        self._seen: dict[Path, _Seen] = {}

    def read(self, path: Path) -> Model:
        """Read the model directory *path*, or remember it.

        Raises:
            ModelNotFoundError: as `read`.
            ModelInvalidError: as `read`.
        """
        seen = self._seen.get(path)
        started = self._clock()
        if seen and started < seen.good_until:
            return seen.model
        look = (seen and seen.look.again()) or looking.look(path, _MAX_FILES, _LEFT_OUT)
        took = self._clock() - started
        model = seen.model if seen and seen.look == look else read(path)
        # Looking at a directory of very many files must not take all the time there is; at few
        # ones it takes long where the machine has much to do, and a change counts all the same.
        is_long = took > _LONG_LOOK_S and len(look.places) > _MANY
        good_until = self._clock() + min(100 * took, _LONGEST_S) if is_long else 0.0
        self._seen[path] = _Seen(look, model, good_until)
        return model

    def unchanged(self, path: Path) -> Model | None:
        """Return the model in *path* if it was read and none of its files has changed."""
        seen = self._seen.get(path)
        if seen and (self._clock() < seen.good_until or seen.look.again()):
            return seen.model
        return None

    def forget(self, path: Path) -> None:
        """Read the model in *path* again when it is next asked for."""
        self._seen.pop(path, None)


@dataclass(frozen=True, slots=True)
class _Seen:
    look: Look
    model: Model
    good_until: float
