"""What the programs have in common that `envd.lock.rattler` runs.

An environment waits for them to start: what only a failure needs is imported when there is one.
"""

from __future__ import annotations

import json
import os
import sys

# Importing typing takes as long as json.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from envd.errors import EnvdError


def answer(do: Callable[[Any], Any]) -> NoReturn:
    """Read the request, write what *do* makes of it, and end.

    By `os._exit`: rattler crashes in one of ten processes when the interpreter ends
    (PyO3/pyo3-async-runtimes#40).
    """
    asked, answered = map(int, sys.argv[1:3])
    with os.fdopen(asked) as file:
        request = json.load(file)
    try:
        found = {"done": do(request)}
    except Exception as error:  # noqa: BLE001
        found = {"error": _failure(error).document()}
    with os.fdopen(answered, "w") as file:
        json.dump(found, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _failure(error: Exception) -> EnvdError:
    import traceback  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from envd.errors import EnvdError, InternalError, from_os  # noqa: PLC0415

    if isinstance(error, EnvdError):
        return error
    if isinstance(error, OSError):
        # It runs in the root.
        return from_os(error, Path.cwd())
    traceback.print_exception(error)
    return InternalError(f"rattler failed: {error!r}")


def machine_fault(text: str) -> EnvdError | None:
    """Return what *text*, which rattler said of a failure, means if the machine is at fault."""
    import errno  # noqa: PLC0415
    import re  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from envd.errors import OUT_OF, from_os  # noqa: PLC0415

    for number in map(int, re.findall(r"\(os error (\d+)\)", text)):
        if number in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, *OUT_OF}:
            return from_os(OSError(number, os.strerror(number)), Path.cwd())
    return None
