"""Writes what is in the store, and what is being built, as messages of the API."""

from __future__ import annotations

from collections.abc import Iterable

from envd_client.v1 import envd_pb2 as api

from envd.asked import Asked
from envd.errors import EnvdError, PythonUnavailableError
from envd.events import Event, Note, Stage
from envd.lock import Lock, pylock
from envd.store import Environment, Holders, Manifest, Store


def asked_for(
    store: Store, found: Environment, asked: Asked, noted: Iterable[Note], *, cached: bool
) -> api.Environment:
    """Return the message of a ready environment as the answer to what was *asked*.

    Its first spec may have been another one with the same lock.
    """
    message = published(store, found, store.holders())
    message.cached = cached
    message.spec_key = asked.spec.key
    message.python.requested = asked.requested_python or ""
    del message.notes[:]
    message.notes.extend(notes(noted))
    if lock := store.specs.lock(asked.spec.key, asked.day):
        message.as_of = lock.as_of
    return message


def resolved(asked: Asked, lock: Lock | None, *, with_lock: bool = False) -> api.ResolvedSpec:
    """Return the message of what was *asked*, and of its *lock* where it has one."""
    return api.ResolvedSpec(
        spec_key=asked.spec.key,
        environment_id=lock.env_id(asked.spec.python) if lock else "",
        spec_json=asked.spec.canonical(),
        notes=notes((*asked.notes, *(lock.notes if lock else ()))),
        lock_toml=pylock.text(lock, asked.spec.python) if lock and with_lock else "",
    )


def published(
    store: Store, found: Environment, holders: Holders, *, full: bool = False
) -> api.Environment:
    """Return the message of a published environment: ready, if its interpreter is there."""
    manifest, sizes = found.manifest, store.sizes(found)
    message = api.Environment(
        id=found.id,
        spec_key=manifest.spec_key,
        state=api.Environment.READY,
        manager=manifest.manager,
        python=api.Python(
            requested=manifest.python_requested or "", actual=manifest.python.version
        ),
        as_of=manifest.lock.as_of,
        notes=notes((*manifest.notes, *manifest.lock.notes)),
        size_bytes=sizes.total,
        exclusive_bytes=sizes.exclusive,
        leases=[api.Lease(pid=one.pid, kind=one.kind) for one in holders.of(found.id)],
        models=store.models(found.id),
    )
    message.build_duration.FromNanoseconds(int(manifest.seconds * 1e9))
    message.create_time.FromNanoseconds(int(manifest.created * 1e9))
    message.last_use_time.FromNanoseconds(int(store.last_used(found) * 1e9))
    if not manifest.base.is_there():
        message.state = api.Environment.FAILED
        message.failure.CopyFrom(failure(_without_base(manifest)))
    if full:
        _add_all(message, store, found)
    return message


def _without_base(manifest: Manifest) -> EnvdError:
    message = (
        f"its interpreter `{manifest.base.path}` is gone or has changed; "
        "the next use builds it again"
    )
    return PythonUnavailableError(message, path=manifest.base.path)


def _add_all(message: api.Environment, store: Store, found: Environment) -> None:
    message.prefix = str(found.prefix)
    message.log_path = str(store.layout.log(found.manifest.spec_key))
    message.packages.extend(
        api.Package(name=one.name, version=one.version, sha256=one.sha256, filename=one.filename)
        for one in found.manifest.lock.packages
    )
    if spec := store.specs.spec(found.manifest.spec_key):
        message.spec_json = spec.canonical()


def unready(asked: Asked, seconds: float, error: EnvdError | None) -> api.Environment:
    """Return the message of an environment that is being built, or failed with *error*."""
    message = api.Environment(
        spec_key=asked.spec.key,
        state=api.Environment.FAILED if error else api.Environment.BUILDING,
        manager=asked.spec.manager,
        python=api.Python(requested=asked.requested_python or "", actual=asked.spec.python.version),
        notes=notes(asked.notes),
    )
    message.build_duration.FromNanoseconds(int(seconds * 1e9))
    if error:
        message.failure.CopyFrom(failure(error))
        message.log_path = error.metadata.get("log", "")
    return message


def failure(error: EnvdError) -> api.Failure:
    """Return the message of a failed build's error."""
    # The name of a file in it may not be UTF-8, which a message has to be.
    text = error.message.encode(errors="replace").decode()
    message = api.Failure(reason=error.reason, message=text)
    setattr(message, "class", error.blame.value)
    message.retry_delay.FromNanoseconds(int((error.retry_after_s or 0.0) * 1e9))
    return message


def event(number: int, happened: Event) -> api.EnvironmentEvent:
    """Return the message of one event of a build."""
    if isinstance(happened, Stage):
        stage = api.Stage(name=happened.name, message=happened.message)
        return api.EnvironmentEvent(sequence=number, stage=stage)
    return api.EnvironmentEvent(sequence=number, log_line=happened.text)


def notes(found: Iterable[Note]) -> list[api.Note]:
    """Return the messages of *found*."""
    return [api.Note(code=one.code, message=one.message, subject=one.subject) for one in found]
