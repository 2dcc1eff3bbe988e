"""What people may call a model on the command line."""

from __future__ import annotations

import os
from pathlib import Path


def model(name: str) -> str:
    """Return *name* as the API takes it: a folder that is there, or a path, made absolute.

    A `/` or a leading `.` makes it a path, a `:` a URI.
    """
    is_path = "/" in name or name.startswith(".") or Path(name).is_dir()
    if is_path and not (":" in name and not Path(name).exists()):
        return str(Path(name).absolute())
    return name


def shown(model: str) -> str:
    """Return the name *model* as it may be printed, whatever bytes its path has."""
    return os.fsencode(model).decode(errors="replace")
