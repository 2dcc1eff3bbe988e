"""Every failure a caller can meet: one class per action the caller can take.

A class names its gRPC status (`code`, a name: only the edges know gRPC), its stable
`reason`, and `blame`, which says what has to change before the same call can work:
the spec, nothing but time, or this machine.
"""

from __future__ import annotations

import enum
import errno
from pathlib import Path
from typing import ClassVar, Self


class Blame(enum.Enum):
    """What has to change before a failed build can work."""

    SPEC = "spec"
    TRANSIENT = "transient"
    LOCAL = "local"


class EnvdError(Exception):
    """A failure with a message for people and metadata for programs.

    The message says what failed, on what, and what to do. Every variable of it is in
    `metadata` too, as text.
    """

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    blame: ClassVar[Blame] = Blame.LOCAL
    retry_after_s: float | None = None

    def __init__(self, message: str, **metadata: object) -> None:
        """Keep *message* and the *metadata* that is not None."""
        self.message = _encodable(message)
        super().__init__(self.message)
        given = {key: value for key, value in metadata.items() if value is not None}
        self.metadata = {key: _encodable(str(value)) for key, value in given.items()}

    def anew(self) -> Self:
        """Return the same error as nobody has raised it yet.

        One that was raised has all that those who raised it had. What waits for it has it as
        well: nobody would find such rubbish for a long time.
        """
        found = type(self)(self.message, **self.metadata)
        found.retry_after_s = self.retry_after_s
        return found

    def document(self) -> dict[str, object]:
        """Return what `from_document` needs to raise the same error elsewhere."""
        return {
            "reason": self.reason,
            "message": self.message,
            "metadata": self.metadata,
            "retry_after_s": self.retry_after_s,
        }


def _encodable(text: str) -> str:
    # What a model raises may hold half of a character: no answer can, nor a log or a terminal.
    return text.encode(errors="backslashreplace").decode()


class ModelNotFoundError(EnvdError):
    """There is no model there; give another name."""

    code, reason, blame = "NOT_FOUND", "MODEL_NOT_FOUND", Blame.SPEC


class ModelInvalidError(EnvdError):
    """The files of a model are wrong; mend the model."""

    code, reason, blame = "FAILED_PRECONDITION", "MODEL_INVALID", Blame.SPEC


class PolicyDeniedError(EnvdError):
    """The settings do not allow what the model asks for; mend the model or the settings."""

    code, reason, blame = "FAILED_PRECONDITION", "POLICY_DENIED", Blame.SPEC


class ModelMovedError(EnvdError):
    """A model was replaced while it was read; try again."""

    code, reason, blame = "UNAVAILABLE", "MODEL_MOVED", Blame.TRANSIENT
    retry_after_s = 1.0


class ModelUnreachableError(EnvdError):
    """A model registry or store could not be asked; try again."""

    code, reason, blame = "UNAVAILABLE", "MODEL_UNREACHABLE", Blame.TRANSIENT
    retry_after_s = 5.0


class ResolverMissingError(EnvdError):
    """MLflow is needed to resolve a model URI; install the extra."""

    code, reason = "FAILED_PRECONDITION", "RESOLVER_MISSING"


class ManagerMissingError(EnvdError):
    """What makes conda environments is not installed with envd; add it."""

    code, reason = "FAILED_PRECONDITION", "MANAGER_MISSING"


class EnvironmentNotFoundError(EnvdError):
    """No environment has this id; list them."""

    code, reason = "NOT_FOUND", "ENVIRONMENT_NOT_FOUND"


class EnvironmentInUseError(EnvdError):
    """A process holds the environment; wait for it or stop it."""

    code, reason = "FAILED_PRECONDITION", "ENVIRONMENT_IN_USE"


class EnvironmentPinnedError(EnvdError):
    """Somebody wants the environment kept; unpin it first."""

    code, reason = "FAILED_PRECONDITION", "ENVIRONMENT_PINNED"


class EnvironmentBuildingError(EnvdError):
    """The environment is being built; come back."""

    code, reason, blame = "UNAVAILABLE", "ENVIRONMENT_BUILDING", Blame.TRANSIENT
    retry_after_s = 2.0


class RequestInvalidError(EnvdError):
    """The request itself is wrong; mend the request."""

    code, reason = "INVALID_ARGUMENT", "REQUEST_INVALID"


class PayloadInvalidError(EnvdError):
    """The input does not parse or does not fit the model; mend the input."""

    code, reason = "INVALID_ARGUMENT", "PAYLOAD_INVALID"


class PayloadTooLargeError(EnvdError):
    """The input or the answer is over the limit; send less."""

    code, reason = "RESOURCE_EXHAUSTED", "PAYLOAD_TOO_LARGE"


class StreamUnsupportedError(EnvdError):
    """The model cannot answer item by item; ask for its prediction."""

    code, reason, blame = "FAILED_PRECONDITION", "STREAM_UNSUPPORTED", Blame.SPEC


class InFlightFullError(EnvdError):
    """The daemon holds as many bytes of requests as it may; try again."""

    code, reason, blame = "RESOURCE_EXHAUSTED", "IN_FLIGHT_FULL", Blame.TRANSIENT
    retry_after_s = 0.5


class DeadlineExceededError(EnvdError):
    """The time the caller gave is over; give more."""

    code, reason = "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"


class SolveFailedError(EnvdError):
    """No set of packages satisfies the spec; mend the requirements."""

    code, reason, blame = "FAILED_PRECONDITION", "SOLVE_FAILED", Blame.SPEC


class InstallFailedError(EnvdError):
    """A locked package could not be installed; read the log."""

    code, reason, blame = "FAILED_PRECONDITION", "INSTALL_FAILED", Blame.SPEC


class PythonUnavailableError(EnvdError):
    """The Python the spec asks for cannot be had here; install it."""

    code, reason, blame = "FAILED_PRECONDITION", "PYTHON_UNAVAILABLE", Blame.LOCAL


class ImportFailedError(EnvdError):
    """A module is missing in the model's environment; add its distribution."""

    code, reason, blame = "FAILED_PRECONDITION", "IMPORT_FAILED", Blame.SPEC


class IndexUnreachableError(EnvdError):
    """A package index did not answer; try again."""

    code, reason, blame = "UNAVAILABLE", "INDEX_UNREACHABLE", Blame.TRANSIENT
    retry_after_s = 30.0


class NotLockedOfflineError(EnvdError):
    """The spec is not locked and the network is off; lock it while there is a network."""

    code, reason, blame = "FAILED_PRECONDITION", "NOT_LOCKED_OFFLINE", Blame.LOCAL


class BuildInterruptedError(EnvdError):
    """The process that built the environment was killed; try again."""

    code, reason, blame = "UNAVAILABLE", "BUILD_INTERRUPTED", Blame.LOCAL
    retry_after_s = 1.0


class BuildTimedOutError(EnvdError):
    """The build took too long, or did nothing for too long; read the log."""

    code, reason, blame = "UNAVAILABLE", "BUILD_TIMED_OUT", Blame.TRANSIENT
    retry_after_s = 30.0


class BuildCancelledError(EnvdError):
    """Somebody cancelled the build; ask again if it is still wanted."""

    code, reason, blame = "ABORTED", "BUILD_CANCELLED", Blame.LOCAL


class CacheFullError(EnvdError):
    """The disk is full; free some of it."""

    code, reason, blame = "RESOURCE_EXHAUSTED", "CACHE_FULL", Blame.LOCAL


class RootUnusableError(EnvdError):
    """The root cannot be made or written; give another."""

    code, reason, blame = "FAILED_PRECONDITION", "ROOT_UNUSABLE", Blame.LOCAL


class WorkerDiedError(EnvdError):
    """The worker died while it had the request; try again."""

    code, reason, blame = "UNAVAILABLE", "WORKER_DIED", Blame.TRANSIENT
    retry_after_s = 1.0


class WorkerNotFoundError(EnvdError):
    """No worker has this pid; list them."""

    code, reason = "NOT_FOUND", "WORKER_NOT_FOUND"


class RequestKillsWorkersError(EnvdError):
    """Workers are known to die of this very request; mend the request or the model."""

    code, reason, blame = "ABORTED", "REQUEST_KILLS_WORKERS", Blame.SPEC


class ConfinementFailedError(EnvdError):
    """A worker could not be confined as the settings say; see what this machine lacks."""

    code, reason, blame = "FAILED_PRECONDITION", "CONFINEMENT_FAILED", Blame.LOCAL


class QueueFullError(EnvdError):
    """Too many requests wait for this model already; try again."""

    code, reason, blame = "RESOURCE_EXHAUSTED", "QUEUE_FULL", Blame.TRANSIENT
    retry_after_s = 1.0


class ModelRaisedError(EnvdError):
    """The model's own code raised; mend the model."""

    code, reason = "UNKNOWN", "MODEL_RAISED"


class PermissionDeniedError(EnvdError):
    """This caller may not do that; ask as somebody who may."""

    code, reason = "PERMISSION_DENIED", "PERMISSION_DENIED"


class UnauthenticatedError(EnvdError):
    """The caller has not said who it is, or is nobody known; send a credential."""

    code, reason = "UNAUTHENTICATED", "UNAUTHENTICATED"


class LimitReachedError(EnvdError):
    """The process may not have more files or memory; raise its limit."""

    code, reason, blame = "RESOURCE_EXHAUSTED", "LIMIT_REACHED", Blame.LOCAL


class ShuttingDownError(EnvdError):
    """The daemon is stopping; ask the next one."""

    code, reason, blame = "UNAVAILABLE", "SHUTTING_DOWN", Blame.TRANSIENT
    retry_after_s = 1.0


class SettingsInvalidError(EnvdError):
    """A setting is unknown or has a value that cannot be used; mend it."""

    code, reason = "FAILED_PRECONDITION", "SETTINGS_INVALID"


class RootInUseError(EnvdError):
    """Another daemon has the root or the socket; use that one or stop it."""

    code, reason = "FAILED_PRECONDITION", "ROOT_IN_USE"


class InternalError(EnvdError):
    """envd itself is at fault; report it."""


_LONGEST_RETRY_S = 86400
_BY_REASON = {cls.reason: cls for cls in EnvdError.__subclasses__()}


def from_document(document: dict[str, object]) -> EnvdError:
    """Return the error that `EnvdError.document` described in another process."""
    metadata = document.get("metadata")
    cls = _BY_REASON.get(str(document.get("reason")), InternalError)
    error = cls(
        str(document.get("message")),
        **(metadata if isinstance(metadata, dict) else {}),
    )
    retry = document.get("retry_after_s")
    if isinstance(retry, int | float) and 0 <= retry <= _LONGEST_RETRY_S:
        error.retry_after_s = float(retry)
    return error


# What a process is refused when it, or the machine, may not have more; EAGAIN is fork's.
OUT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


def from_os(error: OSError, root: Path) -> EnvdError:
    """Return what *error*, met while working in *root*, means for whoever asked."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        message = f"the disk of `{root}` is full; `envctl gc` frees some"
        return CacheFullError(message, root=root)
    if error.errno in OUT_OF:
        return LimitReachedError(f"this process may not have more: {error}; raise its limits")
    message = f"cannot work in `{root}`: {error}; give another with `--root` or ENVD_ROOT"
    return RootUnusableError(message, root=root)
