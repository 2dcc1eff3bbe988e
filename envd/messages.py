"""Writes what is in the store, and what is being built, as messages of the API."""

from __future__ import annotations

import json
from collections.abc import Iterable

from envd_client.v1 import envd_pb2 as api
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from envd.builds.elsewhere import UnderWay
from envd.environments.asked import Asked
from envd.environments.verifying import Verified
from envd.errors import BuildCancelledError, EnvdError, EnvironmentNotFoundError
from envd.events import Event, Locked, Note, Progress, Stage
from envd.lock import Artifact, Lock, Package
from envd.model import Model, example
from envd.secrets import redact
from envd.store import Environment, Record, Store
from envd.store.collecting import Collected
from envd.store.failures import Failure


def asked_for(
    store: Store, found: Environment, asked: Asked, noted: Iterable[Note], *, cached: bool
) -> api.Environment:
    """Return the message of a ready environment as the answer to what was *asked*.

    Its first spec may have been another one with the same lock.
    """
    message = listed(store.record(found))
    message.cached = cached
    message.spec_key = asked.spec.key
    message.python.requested = asked.requested_python or ""
    del message.notes[:]
    message.notes.extend(notes(noted))
    if lock := store.specs.lock(asked.spec.key, asked.day):
        message.as_of = lock.as_of
    return message


def resolved(asked: Asked, lock: Lock | None, file: tuple[str, str] = ("", "")) -> api.ResolvedSpec:
    """Return the message of what was *asked*, and of its *lock* where it has one.

    *file* is the lock's name and text, as a file.
    """
    return api.ResolvedSpec(
        spec_key=asked.spec.key,
        environment_id=lock.env_id(asked.spec.python) if lock else "",
        spec_json=asked.spec.canonical(),
        notes=notes((*asked.notes, *(lock.notes if lock else ()))),
        lock_file=file[0],
        lock_text=file[1],
    )


def listed(record: Record) -> api.Environment:
    """Return the message of a published environment, as a list has it."""
    message = api.Environment(
        id=record.id,
        spec_key=record.spec_key,
        state=api.Environment.READY,
        manager=record.manager,
        size_bytes=record.total,
        exclusive_bytes=record.own,
        leases=[api.Lease(pid=one.pid, kind=one.kind) for one in record.holders],
        pinned=record.is_pinned,
        models=record.models,
        use_count=record.uses,
    )
    details = json.loads(record.details)
    message.python.requested, message.python.actual = details["requested"] or "", record.python
    message.as_of = details["as_of"]
    message.notes.extend(api.Note(**one) for one in details["notes"])
    _put(message.build_duration, details["seconds"])
    if record.created:
        _put(message.create_time, record.created)
    _put(message.last_use_time, record.last_used)
    if record.is_going:
        message.state = api.Environment.DELETING
    elif record.broken:
        message.state = api.Environment.ABSENT
        reason = f"{record.broken}; the next use builds it again"
        message.failure.CopyFrom(failure(EnvironmentNotFoundError(reason)))
    return message


def full(store: Store, record: Record) -> api.Environment:
    """Return the message of a published environment, with all that it is made of."""
    message = listed(record)
    message.log_path = str(store.layout.log(record.spec_key))
    if spec := store.specs.spec(record.spec_key):
        message.spec_json = spec.canonical()
    if found := store.read(record.id):
        message.prefix = str(found.prefix)
        message.profile = found.manifest.profile
        message.sandbox = found.manifest.sandbox
        message.packages.extend(map(_package, found.manifest.lock.artifacts))
    return message


def _package(found: Artifact) -> api.Package:
    filename = found.filename if isinstance(found, Package) else found.url.rpartition("/")[2]
    return api.Package(
        name=found.name, version=found.version, sha256=found.sha256, filename=filename
    )


def unready(
    asked: Asked, seconds: float, error: EnvdError | None, env_id: str = ""
) -> api.Environment:
    """Return the message of an environment that is being built, or failed with *error*."""
    message = api.Environment(
        id=env_id,
        spec_key=asked.spec.key,
        state=api.Environment.FAILED if error else api.Environment.BUILDING,
        manager=asked.spec.manager,
        python=api.Python(requested=asked.requested_python or "", actual=asked.spec.python.version),
        notes=notes(asked.notes),
        models=[asked.model.as_posix()],
    )
    _put(message.build_duration, seconds)
    if error:
        message.failure.CopyFrom(failure(error))
        message.log_path = error.metadata.get("log", "")
    return message


def failed(found: Failure) -> api.Environment:
    """Return the message of an environment whose last build failed."""
    try:
        asked = Asked.from_document(found.about["asked"])
    except (ValueError, KeyError, TypeError, AttributeError):
        # Another version of envd has remembered it.
        state = api.Environment.FAILED
        return api.Environment(spec_key=found.spec_key, state=state, failure=failure(found.error))
    return unready(asked, 0.0, found.error)


def elsewhere(store: Store, build: UnderWay) -> api.Environment:
    """Return the message of a build that another process does."""
    message = api.Environment(
        id=build.env_id,
        spec_key=build.spec_key,
        state=api.Environment.BUILDING,
        log_path=str(build.owner.log or ""),
        leases=[api.Lease(pid=build.owner.pid, kind="build")],
    )
    _put(message.build_duration, build.seconds)
    # It is kept as soon as it is locked.
    if spec := store.specs.spec(build.spec_key):
        message.manager, message.python.actual = spec.manager, spec.python.version
    return message


def cancelled(store: Store, build: UnderWay) -> api.Environment:
    """Return the message of a build that another process did until it was cancelled."""
    message = elsewhere(store, build)
    message.state = api.Environment.FAILED
    error = BuildCancelledError("the build was cancelled", spec_key=build.spec_key)
    message.failure.CopyFrom(failure(error))
    return message


def purged(found: Collected) -> api.PurgeEnvironmentsResponse:
    """Return the message of what gc did, or would do."""
    return api.PurgeEnvironmentsResponse(
        verdicts=[
            api.Verdict(
                id=one.id,
                goes=one.goes,
                reason=one.reason,
                exclusive_bytes=one.own,
                shared_bytes=one.shared,
            )
            for one in found.verdicts
        ],
        downloads=api.Downloads(
            bytes=found.downloads,
            freed_bytes=found.downloads_freed,
            in_use=found.is_cache_in_use,
        ),
        freed_bytes=found.freed,
    )


def verified(found: Verified, environment: api.Environment) -> api.VerifyEnvironmentResponse:
    """Return the message of what was found in *environment*."""
    return api.VerifyEnvironmentResponse(
        environment=environment,
        faults=[api.Fault(path=one.path, kind=one.kind, detail=one.detail) for one in found.faults],
        also_affected=found.also_affected,
        repaired=found.is_repaired,
    )


def model(
    found: Model | None,
    *,
    uri: str,
    name: str = "",
    state: str = "UNLOADED",
    environment_id: str = "",
    workers: int = 0,
    noted: Iterable[Note] = (),
    error: EnvdError | None = None,
) -> api.Model:
    """Return the message of a model that has a name or a worker, or is asked about."""
    message = api.Model(
        name=name,
        uri=redact(uri),
        path=str(found.path) if found else "",
        digest=found.digest if found else "",
        environment_id=environment_id,
        state=api.Model.State.Value(state),
        worker_count=workers,
        notes=notes(noted),
    )
    if error:
        message.failure.CopyFrom(failure(error))
    return message


def with_details(message: api.Model, found: Model) -> api.Model:
    """Return *message* with what the model *found* says of itself."""
    text = example.read(found)
    message.details.CopyFrom(
        api.ModelDetails(
            signature_json=json.dumps(found.signature) if found.signature else "",
            input_example=text or "",
            input_example_path=(found.input_example or "") if text else "",
            env_vars=found.env_vars,
            code_path=found.code or "",
            flavors_json=json.dumps(found.flavors),
            mlflow_version=found.mlflow_version or "",
            python_version=found.python_version or "",
            utc_time_created=found.created or "",
            batch=found.batch,
        )
    )
    return message


def _put(target: Duration | Timestamp, seconds: float) -> None:
    target.FromNanoseconds(int(seconds * 1e9))


def failure(error: EnvdError) -> api.Failure:
    """Return the message of a failed build's error."""
    # The name of a file in it may not be UTF-8, which a message has to be.
    text = error.message.encode(errors="replace").decode()
    message = api.Failure(reason=error.reason, message=text)
    setattr(message, "class", error.blame.value)
    _put(message.retry_delay, error.retry_after_s or 0.0)
    return message


def event(number: int, happened: Event) -> api.EnvironmentEvent:
    """Return the message of one event of a build."""
    if isinstance(happened, Stage):
        stage = api.Stage(name=happened.name, message=happened.message)
        return api.EnvironmentEvent(sequence=number, stage=stage)
    if isinstance(happened, Progress):
        progress = api.Progress(
            packages_done=happened.done,
            packages_total=happened.total,
            bytes_written=happened.bytes,
        )
        return api.EnvironmentEvent(sequence=number, progress=progress)
    if isinstance(happened, Locked):
        return api.EnvironmentEvent(sequence=number)
    return api.EnvironmentEvent(sequence=number, log_line=happened.text)


def notes(found: Iterable[Note]) -> list[api.Note]:
    """Return the messages of *found*."""
    return [api.Note(code=one.code, message=one.message, subject=one.subject) for one in found]
