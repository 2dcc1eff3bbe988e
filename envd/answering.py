"""What the programs have in common that `envd.lock.rattler` runs.

They start in a tenth of a second, half of which is importing rattler: this imports little.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from envd.errors import OUT_OF, EnvdError, InternalError, from_os


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
    except EnvdError as error:
        found = {"error": error.document()}
    except OSError as error:
        found = {"error": from_os(error, Path.cwd()).document()}
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        found = {"error": InternalError(f"rattler failed: {error!r}").document()}
    with os.fdopen(answered, "w") as file:
        json.dump(found, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def machine_fault(text: str) -> EnvdError | None:
    """Return what *text*, which rattler said of a failure, means if the machine is at fault."""
    for number in map(int, re.findall(r"\(os error (\d+)\)", text)):
        if number in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, *OUT_OF}:
            # It runs in the root.
            return from_os(OSError(number, os.strerror(number)), Path.cwd())
    return None
