"""Finds the directory of a model: a path, a `file:` URI, or what MLflow makes of any other URI.

    <root>/models/<key>/        key: of the URI and the servers that know what it means
        current.json            names the download in use; replaced, never written into
        <attempt>/              what one download brought, never written into again

One process asks at a time, which holds `lock_of` the directory: gc removes that as a whole.
An attempt that `current.json` does not name is what a killed download left. Of those it
names one is `previous`: a worker may still read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from envd import child, config, durable, held
from envd.errors import (
    CacheFullError,
    ModelNotFoundError,
    ModelUnreachableError,
    RequestInvalidError,
    SettingsInvalidError,
    from_document,
)
from envd.model import naming
from envd.model.fetch import Request
from envd.secrets import redact

log = logging.getLogger(__name__)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LONGEST_NAME = 4096
_OF_A_SERVER = {"models", "runs", "mlflow-artifacts"}

# What MLflow and the clients of the stores take from their environment: how to get out of
# this network, whom to trust there, and who they are. Nothing else of the daemon's is
# theirs to see.
_PASSED = (
    "PATH", "HOME", "LANG", "TMPDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC",
)  # fmt: skip
_PASSED_PREFIXES = ("LC_", "MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "DATABRICKS_")
_SERVERS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


@dataclass(frozen=True, slots=True)
class _Place:
    """A URI, the environment to ask for it in, and the directory of its downloads."""

    uri: str
    env: Mapping[str, str]
    home: Path

    @property
    def shown(self) -> str:
        return redact(self.uri)


@dataclass(frozen=True, slots=True)
class _Download:
    """What `current.json` says."""

    uri: str
    attempt: str
    path: str
    identity: str | None
    previous: str | None
    fetched_at: float
    asked_at: float


def locate(
    name: str,
    settings: config.Settings,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> Path:
    """Return the directory of the model *name*: served, an absolute path or a URI.

    Raises:
        RequestInvalidError: it is no absolute path and no URI that can be read.
        ModelNotFoundError: there is no model there, or none has that name.
        ModelUnreachableError: its server does not answer, and nothing was downloaded before.
        ResolverMissingError: MLflow, or what it needs for this URI, is not installed.
        SettingsInvalidError: no tracking server is set, and the URI needs one.
        CacheFullError: there is no space for it.
    """
    if found := known(name, settings, environ=environ, clock=clock):
        return found
    with _telling_a_full_disk():
        uri = naming.uri_of(name, settings.served)
        return _remote(_place(uri, settings, environ), settings, clock)


def known(
    name: str,
    settings: config.Settings,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> Path | None:
    """Return the directory of the model *name*, or None where a server has to be asked.

    Starts no process and waits for nothing.

    Raises:
        RequestInvalidError: as `locate`.
        ModelNotFoundError: there is no such directory.
        SettingsInvalidError: as `locate`.
    """
    if not name or "\0" in name or len(name) > _LONGEST_NAME:
        message = f"a model's name has 1 to {_LONGEST_NAME} characters and no NUL; give another"
        raise RequestInvalidError(message)
    uri = naming.uri_of(name, settings.served)
    if uri.startswith("/"):
        # As for every request: a Path looks three times as long.
        return Path(uri) if os.path.isdir(uri) else _directory(Path(uri))  # noqa: PTH112
    scheme = _SCHEME.match(uri)
    if scheme is None:
        message = f"`{redact(uri)}` is neither an absolute path nor a URI; give one of them"
        raise RequestInvalidError(message, model=redact(uri))
    if path := local(uri):
        return _directory(path)
    return _fresh(_place(uri, settings, environ), settings.models.refresh, clock())


def local(uri: str) -> Path | None:
    """Return the path that *uri* is or, with `file:`, stands for; None of any other URI.

    Raises:
        RequestInvalidError: it names no directory of this machine.
    """
    if uri.startswith("/"):
        return Path(uri)
    return _path_of(uri) if uri[:5].lower() == "file:" else None


def lock_of(home: Path) -> Path:
    """Return the file that whoever changes the downloads in *home* holds: it lies elsewhere."""
    return home.parents[1] / "held" / f"fetch-{home.name}"


def inherited(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that whoever asks MLflow must have."""
    named = config.passed(_PASSED, environ)
    return named | {key: text for key, text in environ.items() if key.startswith(_PASSED_PREFIXES)}


def _path_of(uri: str) -> Path:
    rest = uri.partition(":")[2]
    if rest.startswith("//"):
        host, _, rest = rest[2:].partition("/")
        rest = f"/{rest}" if host in {"", "localhost"} else ""
    path = unquote(rest)
    if not path.startswith("/") or "\0" in path:
        message = f"`{redact(uri)}` names no directory of this machine; give `file:///` and a path"
        raise RequestInvalidError(message, model=redact(uri))
    return Path(path)


def _directory(path: Path) -> Path:
    problem = "is not a directory"
    try:
        if path.is_dir():
            return path
        path.lstat()
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    message = f"`{path}` {problem}; give the directory that holds the `MLmodel` file"
    raise ModelNotFoundError(message, model=path)


@contextlib.contextmanager
def _telling_a_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        message = f"no space left for a model's files at `{error.filename}`; free some"
        raise CacheFullError(message, path=error.filename) from error


def _place(uri: str, settings: config.Settings, environ: Mapping[str, str]) -> _Place:
    env = inherited(environ)
    given = zip(_SERVERS, (settings.models.tracking_uri, settings.models.registry_uri), strict=True)
    env |= {key: text for key, text in given if text}
    # MLflow reports on its use to its makers, which is not envd's to decide.
    env = {"MLFLOW_DISABLE_TELEMETRY": "true"} | env
    servers = [env.get(key, "") for key in _SERVERS]
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        message = f"`{redact(uri)}` is no URI: {error}; give another"
        raise RequestInvalidError(message, model=redact(uri)) from error
    if parts.scheme in _OF_A_SERVER and not parts.netloc and not any(servers):
        message = (
            f"`{redact(uri)}` is known to a tracking server only, and none is set; "
            "set `models.tracking_uri`"
        )
        raise SettingsInvalidError(message, setting="models.tracking_uri", model=redact(uri))
    key = hashlib.sha256(json.dumps([uri, *servers]).encode()).hexdigest()[:32]
    return _Place(uri, env, settings.root.absolute() / "models" / key)


def _remote(place: _Place, settings: config.Settings, clock: Callable[[], float]) -> Path:
    refresh = settings.models.refresh
    if found := _fresh(place, refresh, clock()):
        return found
    # Else the first download would make it, open to others, and envd would not take it for its own.
    settings.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = held.open_file(lock_of(place.home))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have asked while this one waited, or gc have removed it all.
        place.home.mkdir(parents=True, exist_ok=True)
        return _fresh(place, refresh, clock()) or _ask(place, settings.build.timeout, clock)
    finally:
        os.close(lock)


def _fresh(place: _Place, refresh: float, now: float) -> Path | None:
    kept = _current(place.home)
    # A clock that was set back must not keep an old answer alive until it has caught up.
    if kept and 0 <= now - kept.asked_at < refresh:
        return place.home / kept.attempt / kept.path
    return None


def _ask(place: _Place, timeout_s: float, clock: Callable[[], float]) -> Path:
    old = _current(place.home)
    _sweep(place.home)
    try:
        kept = _fetch(place, old, timeout_s, clock)
        # Also when nobody answered: else every call would wait for a server that is away.
        asked = dataclasses.replace(kept, asked_at=clock())
        durable.write_json(place.home / "current.json", dataclasses.asdict(asked))
    finally:
        _sweep(place.home)
    return place.home / kept.attempt / kept.path


def _fetch(
    place: _Place, old: _Download | None, timeout_s: float, clock: Callable[[], float]
) -> _Download:
    attempt = place.home / secrets.token_hex(8)
    attempt.mkdir()
    try:
        known = old.identity if old else None
        answer = _answer(place, Request(place.uri, str(attempt), known), timeout_s)
    except ModelUnreachableError as error:
        if old is None:
            raise
        about = {"model": place.shown, "fetched_at": old.fetched_at, "error": error.message}
        log.warning("a model could not be asked for again; its last download is used", extra=about)
        return old
    if old and answer.get("unchanged"):
        return old
    if not (attempt / answer["path"] / "MLmodel").is_file():
        message = f"`{place.shown}` has no `MLmodel` file; give the URI of a model"
        raise ModelNotFoundError(message, model=place.shown)
    before = old.attempt if old else None
    now = clock()
    return _Download(
        place.shown, attempt.name, answer["path"], answer["identity"], before, now, now
    )


def _answer(place: _Place, request: Request, timeout_s: float) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    line = ""
    with ours, theirs:
        # Not among the arguments, which every user of the machine can read.
        ours.sendall(json.dumps(dataclasses.asdict(request)).encode() + b"\n")
        argv = [sys.executable, "-I", "-m", "envd.model.fetch", str(theirs.fileno())]
        ended = child.run(
            argv,
            env=place.env,
            cwd=place.home,
            limits=child.Limits(time.monotonic() + timeout_s),
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        # Reset by one that was ended before it had read what it was asked.
        with ours.makefile() as talk, contextlib.suppress(ConnectionResetError):
            line = talk.readline()
    if not line:
        raise _silent(place, ended)
    answer: dict[str, Any] = json.loads(line)
    if "failure" in answer:
        raise from_document(answer["failure"])
    return answer


def _silent(place: _Place, ended: child.Finished) -> ModelUnreachableError:
    secret = (place.uri, *(place.env.get(key, "") for key in _SERVERS))
    line = redact(ended.tail[-1] if ended.tail else "it said nothing", *secret)
    how = "took too long" if ended.ended_by else f"ended with status {ended.status}"
    message = f"asking MLflow for `{place.shown}` {how}: {line}; try again"
    return ModelUnreachableError(message, model=place.shown, status=ended.status, detail=line)


def _current(home: Path) -> _Download | None:
    try:
        kept = _Download(**json.loads((home / "current.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return kept if (home / kept.attempt / kept.path / "MLmodel").is_file() else None


def _sweep(home: Path) -> None:
    kept = _current(home)
    named = {"current.json"} | ({kept.attempt, kept.previous} if kept else set())
    for entry in home.iterdir():
        if entry.name in named:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
