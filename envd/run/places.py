"""What a process in an environment gets: a program, variables, a scratch directory, a lease."""

from __future__ import annotations

import errno
import functools
import json
import os
from pathlib import Path

from envd.errors import EnvironmentNotFoundError
from envd.run import envd_worker
from envd.run.envd_worker import landlock
from envd.store import Environment, Store
from envd.store.leases import Lease

_PROGRAM = str(Path(envd_worker.__file__).parent)


def program(environment: Environment) -> list[str]:
    """Return the command that runs `envd_worker` in *environment*."""
    return [str(environment.python), "-I", "-B", _PROGRAM]


def variables(environment: Environment, scratch: Path) -> dict[str, str]:
    """Return all variables of a process: nothing of the daemon's is among them."""
    return {
        **environment.variables,
        "PATH": f"{environment.prefix / 'bin'}:{os.defpath}",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        # mlflow 3 would tell its makers what is done with it.
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def scratch(store: Store) -> Path:
    """Return a new directory that a process may write in."""
    try:
        return store.scratch()
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        # What is ready serves from a full disk as well.
        return store.scratch_in_memory()


@functools.cache
def can_keep_apart() -> bool:
    """Whether this kernel can keep workers from reaching into each other."""
    version: int = landlock.abi()
    return version >= landlock.SCOPED_SINCE


def confinement() -> dict[str, object]:
    """Return what every worker is confined by.

    Files and network are as they are for whoever runs envd. What workers may not do is to
    read the memory of each other, which those of one template could: it is laid out alike.
    """
    steps: dict[str, object] = {"limits": {"core": 0}}
    return steps | ({"landlock": {"scoped": True}} if can_keep_apart() else {})


def confined() -> str:
    """Return what a worker is told of that."""
    return json.dumps({"confinement": confinement()})


def lease(store: Store, environment: Environment) -> Lease:
    """Take the lease on *environment*.

    Raises:
        EnvironmentNotFoundError: it has been removed meanwhile.
    """
    leased = store.lease(environment.id)
    if leased is not None and leased[0].prefix == environment.prefix:
        return leased[1]
    if leased is not None:
        leased[1].close()
    message = f"the environment {environment.id} has been removed"
    raise EnvironmentNotFoundError(message, id=environment.id)
