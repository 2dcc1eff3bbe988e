"""Reads a repository folder: models as Triton has them, `NAME/VERSION/MLmodel`.

A model that lies in NAME itself has the version 1.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envd.errors import SettingsInvalidError
from envd.model import files
from envd.served import refused_name

SETTING = "models.repository"
_VERSION = re.compile(r"[0-9]{1,18}", re.ASCII)
# More than anybody serves from one machine; each is looked at whenever the folder is read.
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Offered:
    """A version of a model in a repository folder."""

    name: str
    version: str
    path: Path


def read(folder: Path) -> list[Offered]:
    """Return what lies in *folder*, by name and in the order of versions.

    Links that lead out of it are left out, and so is what has no usable name.

    Raises:
        SettingsInvalidError: it cannot be read, or holds far too much.
    """
    try:
        home = folder.resolve(strict=True)
        found = list(itertools.islice(_found(home), _MOST + 1))
    except (OSError, RuntimeError) as error:
        files.raise_shortage(error)
        message = f"the repository folder `{folder}` cannot be read: {error}; see `{SETTING}`"
        raise SettingsInvalidError(message, setting=SETTING) from error
    if len(found) > _MOST:
        raise _too_much(folder)
    return sorted(found, key=lambda one: (one.name, int(one.version), one.version))


def _found(home: Path) -> Iterator[Offered]:
    for name, path in _folders(home, home):
        if refused_name(name):
            continue
        if _has_model(path):
            yield Offered(name, "1", path)
            continue
        for version, below in _folders(path, home):
            if _VERSION.fullmatch(version) and _has_model(below):
                yield Offered(name, version, below)


def _folders(folder: Path, home: Path) -> list[tuple[str, Path]]:
    """Return the directories in *folder* by name, where links within *home* lead to them."""
    with os.scandir(folder) as entries:
        names = [one.name for one in itertools.islice(entries, _MOST + 1) if one.is_dir()]
    if len(names) > _MOST:
        raise _too_much(folder)
    paths = [(one, (folder / one).resolve()) for one in names]
    return [(name, path) for name, path in paths if path.is_relative_to(home)]


def _has_model(path: Path) -> bool:
    return (path / "MLmodel").is_file()


def _too_much(folder: Path) -> SettingsInvalidError:
    message = f"the repository folder `{folder}` holds over {_MOST} models or files"
    return SettingsInvalidError(message, setting=SETTING)
