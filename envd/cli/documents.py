"""The JSON that envctl prints, made of the API's messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from envd_client.v1 import envd_pb2 as api

from envd.errors import EnvdError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.timestamp_pb2 import Timestamp

    from envd.cli.engine import Document


def built(message: api.Environment) -> Document:
    """Return the document of `envctl build`."""
    return {
        "id": message.id or None,
        "spec_key": message.spec_key or None,
        "state": api.Environment.State.Name(message.state).lower(),
        "cached": message.cached,
        "seconds": round(message.build_duration.ToNanoseconds() / 1e9, 3),
        "manager": message.manager or None,
        "python": {
            "requested": message.python.requested or None,
            "actual": message.python.actual or None,
        },
        "as_of": message.as_of or None,
        "notes": notes(message.notes),
        "failure": _failure(message),
    }


def failed(error: EnvdError) -> Document:
    """Return the document of `envctl build` for a model that could not even be asked for."""
    from envd import messages  # noqa: PLC0415

    state = api.Environment.FAILED
    return built(api.Environment(state=state, failure=messages.failure(error)))


def resolved(message: api.ResolvedSpec) -> Document:
    """Return the document of `envctl explain` for one model."""
    return {
        "spec_key": message.spec_key,
        "env_id": message.environment_id or None,
        "spec": json.loads(message.spec_json),
        "notes": notes(message.notes),
    }


def listed(message: api.Environment) -> Document:
    """Return one element of `envctl list`."""
    return built(message) | {
        "created": _time(message.create_time),
        "last_used": _time(message.last_use_time),
        "uses": message.use_count,
        "bytes": message.size_bytes,
        "bytes_exclusive": message.exclusive_bytes,
        "leases": [{"pid": one.pid, "kind": one.kind} for one in message.leases],
        "pinned": message.pinned,
        "models": list(message.models),
    }


def shown(message: api.Environment) -> Document:
    """Return the document of `envctl show`."""
    return listed(message) | {
        "prefix": message.prefix,
        "log": message.log_path,
        "profile": message.profile or None,
        "sandbox": message.sandbox,
        "spec": json.loads(message.spec_json) if message.spec_json else None,
        "packages": [
            {
                "name": one.name,
                "version": one.version,
                "sha256": one.sha256,
                "filename": one.filename,
            }
            for one in message.packages
        ],
    }


def purged(message: api.PurgeEnvironmentsResponse, *, dry_run: bool) -> Document:
    """Return the document of `envctl gc`."""
    return {
        "dry_run": dry_run,
        "freed_bytes": message.freed_bytes,
        "environments": [
            {
                "id": one.id,
                "verdict": "remove" if one.goes else "keep",
                "reason": one.reason,
                "bytes_exclusive": one.exclusive_bytes,
                "bytes_shared": one.shared_bytes,
            }
            for one in message.verdicts
        ],
        "downloads": {
            "bytes": message.downloads.bytes,
            "freed_bytes": message.downloads.freed_bytes,
            "in_use": message.downloads.in_use,
        },
    }


def verified(message: api.VerifyEnvironmentResponse) -> Document:
    """Return one element of `envctl verify`."""
    return {
        "id": message.environment.id,
        "faults": [
            {"path": one.path, "kind": one.kind, "detail": one.detail} for one in message.faults
        ],
        "also_affected": list(message.also_affected),
        "repaired": message.repaired,
    }


def model(message: api.Model) -> Document:
    """Return one element of `envctl models list`."""
    return {
        "name": message.name or None,
        "uri": message.uri,
        "path": message.path or None,
        "digest": message.digest or None,
        "environment_id": message.environment_id or None,
        "state": api.Model.State.Name(message.state).lower(),
        "ready": message.state == api.Model.READY,
        "workers": message.worker_count,
        "notes": notes(message.notes),
        "failure": _failure(message),
    }


def worker(message: api.Worker) -> Document:
    """Return one element of `envctl workers list`."""
    return {
        "pid": message.pid,
        "model": message.model,
        "environment_id": message.environment_id,
        "state": api.Worker.State.Name(message.state).lower(),
        "origin": api.PredictResponse.WorkerOrigin.Name(message.origin).lower(),
        "reason": message.reason,
        "answers": message.answer_count,
        "under_way": message.under_way_count,
        "waiting": message.waiting_count,
        "memory": message.memory_bytes,
        "sandbox": message.sandbox,
        "started": _time(message.start_time),
        "last_used": _time(message.last_use_time),
    }


def model_shown(message: api.Model) -> Document:
    """Return the document of `envctl models show`."""
    about = message.details
    return model(message) | {
        "signature": _signature(about.signature_json),
        "input_example": about.input_example or None,
        "input_example_path": about.input_example_path or None,
        "env_vars": list(about.env_vars),
        "code_path": about.code_path or None,
        "flavors": json.loads(about.flavors_json),
        "mlflow_version": about.mlflow_version or None,
        "python_version": about.python_version or None,
        "utc_time_created": about.utc_time_created or None,
        "batch": about.batch,
    }


def _signature(text: str) -> Any:
    """Return a signature; MLflow keeps its parts as texts of JSON."""
    found = json.loads(text) if text else None
    if not isinstance(found, dict):
        return found
    return {key: _parsed(value) for key, value in found.items()}


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return value


def notes(found: Iterable[api.Note]) -> list[dict[str, str]]:
    """Return *found* as JSON values."""
    return [{"code": one.code, "message": one.message, "subject": one.subject} for one in found]


def _failure(message: api.Environment | api.Model) -> dict[str, Any] | None:
    if not message.HasField("failure"):
        return None
    failure = message.failure
    return {
        "reason": failure.reason,
        "class": getattr(failure, "class"),
        "retry_after_s": failure.retry_delay.ToNanoseconds() / 1e9,
        "message": failure.message,
    }


def _time(moment: Timestamp) -> str | None:
    return moment.ToJsonString() if moment.seconds else None
