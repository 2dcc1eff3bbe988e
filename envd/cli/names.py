"""What people may call a model on the command line."""

from __future__ import annotations

import os
from pathlib import Path


def model(name: str) -> str:
    """Return *name* as the API takes it: a path made absolute, a served name or a URI as it is.

    A `/` or a leading `.` makes it a path, and so does a model that lies there; a `:` a URI.
    """
    is_path = "/" in name or name.startswith(".") or (Path(name) / "MLmodel").exists()
    if is_path and not (":" in name and not Path(name).exists()):
        return str(Path(name).absolute())
    return name


def models(name: str) -> list[str]:
    """Return the models that *name* stands for: itself, or those in the folder it is."""
    folder = Path(name)
    if not folder.is_dir() or (folder / "MLmodel").exists():
        return [model(name)]
    found = {path.parent for path in folder.rglob("MLmodel")}
    # What lies in a model is a part of it.
    return [str(one.absolute()) for one in sorted(found) if found.isdisjoint(one.parents)]


def shown(model: str) -> str:
    """Return the name *model* as it may be printed, whatever bytes its path has."""
    return os.fsencode(model).decode(errors="replace")
