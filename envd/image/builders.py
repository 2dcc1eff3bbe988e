"""The programs that make an image of a context: docker, podman, buildah."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from envd.errors import EnvdError
from envd.image.dockerfile import SECRET

# Each with what tells whether it works here: docker is often a client without a daemon. Those
# that make images of OCI's form by default would leave the health check out.
BUILDERS = {
    "docker": ("version",),
    "podman": ("info",),
    "buildah": ("info",),
}
_FORM = ["--format", "docker"]
_LOOK_S, _STDERR = 30, 2


class BuilderMissingError(EnvdError):
    """Nothing here makes images; install what does."""

    code, reason = "FAILED_PRECONDITION", "BUILDER_MISSING"


class ImageFailedError(EnvdError):
    """What makes images ended with a failure; it says why."""

    code, reason = "FAILED_PRECONDITION", "IMAGE_FAILED"


def choose(wanted: str | None) -> str:
    """Return the builder to use: *wanted*, else the first that works here.

    Raises:
        BuilderMissingError: it does not, or none does.
    """
    for name in [wanted] if wanted else BUILDERS:
        if _works(name):
            return name
    what = f"`{wanted}` does not work" if wanted else "none of docker, podman, buildah works"
    message = (
        f"{what} here; install one, or write the Dockerfile with `envctl dockerfile` "
        "and build it elsewhere"
    )
    raise BuilderMissingError(message, builder=wanted)


def build(
    builder: str, context: Path, tag: str, secret: Path | None, more: Sequence[str] = ()
) -> None:
    """Make the image *tag* of *context*; what *builder* says goes to standard error.

    *secret* is the file of variables that the steps read, and *more* goes to the builder as it is.

    Raises:
        ImageFailedError: it says no.
    """
    given = ["--secret", f"id={SECRET},src={secret}"] if secret else []
    form = [] if builder == "docker" else _FORM
    argv = [builder, "build", *form, "-t", tag, *given, *more, str(context)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=_STDERR, check=False)
    if done.returncode:
        message = f"{builder} ended with status {done.returncode}; what it said stands above"
        raise ImageFailedError(message, builder=builder, status=done.returncode)


def _works(builder: str) -> bool:
    program = shutil.which(builder)
    if program is None:
        return False
    try:
        done = subprocess.run(
            [program, *BUILDERS[builder]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=_LOOK_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
