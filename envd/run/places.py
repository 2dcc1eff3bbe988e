"""What a process in an environment gets: a program, variables, a scratch directory, a lease."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from envd.errors import EnvironmentNotFoundError
from envd.run import envd_worker
from envd.store import Environment, Store
from envd.store.leases import Lease

# Files and network are as they are for whoever runs envd; what workers may not do is to
# reach into each other: a forked one would have the same memory layout as its siblings.
CONFINEMENT = {"landlock": {"scoped": True}, "limits": {"core": 0}}
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
