"""Every failure of a call: a class per reason, grouped by what the caller can do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpc import StatusCode

from envd_client import details

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc


class EnvdError(Exception):
    """A failed call: a message for people, a reason and metadata for programs.

    `code` is its gRPC status, `reason` stable and in UPPER_SNAKE, and `retry_after_s` how
    long to wait where trying again helps. A reason this version does not know is an
    EnvdError itself.
    """

    code: StatusCode = StatusCode.UNKNOWN
    reason: str = ""

    def __init__(
        self,
        message: str,
        *,
        code: StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Keep what is given; `code` and `reason` are the class's where they are not."""
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.reason = reason or self.reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s


class TryAgainError(EnvdError):
    """Nothing but time has to pass; make the same call later."""

    code = StatusCode.UNAVAILABLE


class ModelError(EnvdError):
    """The model or its dependencies are wrong; mend the model."""

    code = StatusCode.FAILED_PRECONDITION


class RequestError(EnvdError):
    """The call is wrong; make another one."""

    code = StatusCode.INVALID_ARGUMENT


class MachineError(EnvdError):
    """The daemon or its machine is in the way; tell whoever runs it."""

    code = StatusCode.FAILED_PRECONDITION


class DaemonUnreachableError(TryAgainError):
    """No daemon answers at the target; start it or give another target."""

    reason = "DAEMON_UNREACHABLE"


class DeadlineExceededError(TryAgainError):
    """The call ran out of time; give it more or come back: what it began to build goes on."""

    code, reason = StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"


class ModelUnreachableError(TryAgainError):
    """A model registry or store could not be asked; try again."""

    reason = "MODEL_UNREACHABLE"


class ModelMovedError(TryAgainError):
    """A model was replaced while it was read; try again."""

    reason = "MODEL_MOVED"


class EnvironmentBuildingError(TryAgainError):
    """The environment is being built; come back."""

    reason = "ENVIRONMENT_BUILDING"


class EnvironmentInUseError(TryAgainError):
    """A process holds the environment; wait for it or stop it."""

    code, reason = StatusCode.FAILED_PRECONDITION, "ENVIRONMENT_IN_USE"


class BuildCancelledError(TryAgainError):
    """Somebody cancelled the build; ask again if it is still wanted."""

    code, reason = StatusCode.ABORTED, "BUILD_CANCELLED"


class BuildTimedOutError(TryAgainError):
    """The build took too long, or said nothing for too long; try again or allow it more."""

    reason = "BUILD_TIMED_OUT"


class InFlightFullError(TryAgainError):
    """The daemon holds as many bytes of requests as it may; try again."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, "IN_FLIGHT_FULL"


class IndexUnreachableError(TryAgainError):
    """A package index did not answer; try again."""

    reason = "INDEX_UNREACHABLE"


class BuildInterruptedError(TryAgainError):
    """The process that built the environment was killed; try again."""

    reason = "BUILD_INTERRUPTED"


class WorkerDiedError(TryAgainError):
    """The worker died while it had the request; try again."""

    reason = "WORKER_DIED"


class QueueFullError(TryAgainError):
    """Too many requests wait for this model already; try again."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"


class ShuttingDownError(TryAgainError):
    """The daemon is stopping; ask the next one."""

    reason = "SHUTTING_DOWN"


class ModelInvalidError(ModelError):
    """The files of a model are wrong; mend the model."""

    reason = "MODEL_INVALID"


class PolicyDeniedError(ModelError):
    """The settings do not allow what the model asks for; mend the model or the settings."""

    reason = "POLICY_DENIED"


class SolveFailedError(ModelError):
    """No set of packages satisfies the spec; mend the requirements."""

    reason = "SOLVE_FAILED"


class InstallFailedError(ModelError):
    """A locked package could not be installed; read the log."""

    reason = "INSTALL_FAILED"


class ImportFailedError(ModelError):
    """A module is missing in the model's environment; add its distribution."""

    reason = "IMPORT_FAILED"


class StreamUnsupportedError(ModelError):
    """The model has no `predict_stream`; ask for its prediction."""

    reason = "STREAM_UNSUPPORTED"


class ModelRaisedError(ModelError):
    """The model's own code raised; mend the model."""

    code, reason = StatusCode.UNKNOWN, "MODEL_RAISED"


class ModelNotFoundError(RequestError):
    """There is no model there; give another name."""

    code, reason = StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"


class EnvironmentNotFoundError(RequestError):
    """No environment has this id; list them."""

    code, reason = StatusCode.NOT_FOUND, "ENVIRONMENT_NOT_FOUND"


class EnvironmentPinnedError(RequestError):
    """Somebody wants the environment kept; unpin it first."""

    code, reason = StatusCode.FAILED_PRECONDITION, "ENVIRONMENT_PINNED"


class WorkerNotFoundError(RequestError):
    """No worker has this pid; list them."""

    code, reason = StatusCode.NOT_FOUND, "WORKER_NOT_FOUND"


class RequestKillsWorkersError(RequestError):
    """Workers are known to die of this very request; mend the request or the model."""

    code, reason = StatusCode.ABORTED, "REQUEST_KILLS_WORKERS"


class RequestInvalidError(RequestError):
    """The request itself is wrong; mend the request."""

    reason = "REQUEST_INVALID"


class PayloadInvalidError(RequestError):
    """The input does not parse or does not fit the model; mend the input."""

    reason = "PAYLOAD_INVALID"


class PayloadTooLargeError(RequestError):
    """The input or the answer is over the limit; send less."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE"


class PythonUnavailableError(MachineError):
    """The Python the spec asks for cannot be had there; install it."""

    reason = "PYTHON_UNAVAILABLE"


class NotLockedOfflineError(MachineError):
    """The spec is not locked and the network is off there; lock it while there is a network."""

    reason = "NOT_LOCKED_OFFLINE"


class ResolverMissingError(MachineError):
    """MLflow is needed to resolve a model URI; install the daemon's extra."""

    reason = "RESOLVER_MISSING"


class ManagerMissingError(MachineError):
    """What makes conda environments is not installed there; install the daemon's extra."""

    reason = "MANAGER_MISSING"


class CacheFullError(MachineError):
    """The disk is full; free some of it."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, "CACHE_FULL"


class PermissionDeniedError(MachineError):
    """This caller may not do that; ask as somebody who may."""

    code, reason = StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"


class UnauthenticatedError(MachineError):
    """The daemon does not know who asks; give a token or a certificate that it knows."""

    code, reason = StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"


class ConfinementFailedError(MachineError):
    """A worker could not be confined as the settings say; see what the machine lacks."""

    reason = "CONFINEMENT_FAILED"


class LimitReachedError(MachineError):
    """The daemon may not have more files or memory; ask for less, or raise its limit."""

    code, reason = StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED"


class RootUnusableError(MachineError):
    """The root cannot be made or written; give another."""

    reason = "ROOT_UNUSABLE"


class SettingsInvalidError(MachineError):
    """A setting is missing, unknown or has a value that cannot be used; mend it."""

    reason = "SETTINGS_INVALID"


class RootInUseError(MachineError):
    """Another daemon has the root or the socket; use that one or stop it."""

    reason = "ROOT_IN_USE"


class InternalError(MachineError):
    """envd itself is at fault; report it."""

    code, reason = StatusCode.INTERNAL, "INTERNAL"


BY_REASON = {
    cls.reason: cls for group in EnvdError.__subclasses__() for cls in group.__subclasses__()
}

# What gRPC itself says, where no daemon adds a reason.
_BY_CODE: dict[StatusCode, tuple[type[EnvdError], str]] = {
    StatusCode.UNAVAILABLE: (
        DaemonUnreachableError,
        "envd cannot be reached: {}; start it or give another target",
    ),
    StatusCode.UNIMPLEMENTED: (
        DaemonUnreachableError,
        "envd's own services are not served there: {}; give a socket of envd's, or a token",
    ),
    StatusCode.DEADLINE_EXCEEDED: (
        DeadlineExceededError,
        "envd did not answer in time: {}; allow it more or ask again",
    ),
    StatusCode.RESOURCE_EXHAUSTED: (
        PayloadTooLargeError,
        "a message is too large: {}; send less or raise `max_message_bytes`",
    ),
}


def from_rpc_error(error: grpc.RpcError) -> EnvdError:
    """Return the failure that gRPC reports as *error*, from either of its two clients."""
    trailers: Any = error.trailing_metadata() or ()
    said = details.decode(dict(trailers).get(details.TRAILER, b""))
    if said is None:
        return _from_code(error.code(), error.details() or "")
    return BY_REASON.get(said.reason, EnvdError)(
        error.details() or said.reason,
        code=error.code(),
        reason=said.reason,
        metadata=said.metadata,
        retry_after_s=said.retry_after_s,
    )


def _from_code(code: StatusCode, text: str) -> EnvdError:
    cls, message = _BY_CODE.get(code, (BY_REASON.get(code.name, EnvdError), "{}"))
    return cls(message.format(text or code.name), code=code, reason=cls.reason or code.name)
