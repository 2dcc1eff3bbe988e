"""What a process in an environment gets: a program, variables, a scratch directory, a lease."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from envd.errors import EnvironmentNotFoundError, from_os
from envd.sandbox.tiers import PROGRAM
from envd.scratch import Scratch
from envd.store import Environment, Store
from envd.store.leases import Lease

# At tier 1 nobody may write in /dev/shm: joblib, which is told so, does without.
_ALONE = {"JOBLIB_MULTIPROCESSING": "0"}
# Who a worker is in namespaces of its own may be nobody of the machine's.
_NAMED = {"LOGNAME": "envd"}


def program(environment: Environment) -> list[str]:
    """Return the command that runs `envd_worker` in *environment*."""
    return [str(environment.python), "-I", "-B", PROGRAM]


def variables(environment: Environment, scratch: Path, tier: int = 0) -> dict[str, str]:
    """Return all variables of a process: nothing of the daemon's is among them."""
    return {
        **environment.variables,
        "PATH": f"{environment.prefix / 'bin'}:{os.defpath}",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        # mlflow 3 would tell its makers what is done with it.
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **({1: _ALONE, 2: _NAMED}.get(tier, {})),
    }


def scratch(store: Store) -> Scratch:
    """Return a new directory that a process may write in.

    Raises:
        EnvdError: none can be made.
    """
    try:
        return store.scratch()
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise from_os(error, store.layout.root) from error
        # What is ready serves from a full disk as well.
        return store.scratch_in_memory()


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
