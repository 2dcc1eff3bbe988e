"""Reads a repository folder: models as Triton has them, `NAME/VERSION/MLmodel`.

A model that lies in NAME itself has the version 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.model import files
from envd.settings.served import Served, refused_name
from envd.settings.values import ModelUri

SETTING = "models.repository"
_VERSION = re.compile(r"[0-9]{1,18}", re.ASCII)
# Entries, of the folder and the folders in it: more than anybody serves from one machine.
_MOST = 20_000


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
        found = list(_Reading(folder).offered())
    except (OSError, RuntimeError) as error:
        files.raise_shortage(error)
        message = f"the repository folder `{folder}` cannot be read: {error}; see `{SETTING}`"
        raise SettingsInvalidError(message, setting=SETTING) from error
    return sorted(found, key=lambda one: (one.name, int(one.version), one.version))


def with_newest(settings: Settings) -> Settings:
    """Return *settings* in which the newest versions in their folder are served as well.

    Raises:
        SettingsInvalidError: as `read`; or one has the name of a model that is served.
    """
    if not settings.models.repository:
        return settings
    offered = read(Path(settings.models.repository))
    newest = {one.name: Served(one.name, ModelUri(str(one.path))) for one in offered}
    check_free(newest, (one.name for one in settings.served))
    return dataclasses.replace(settings, served=(*settings.served, *newest.values()))


def check_free(names: Iterable[str], taken: Iterable[str]) -> None:
    """See that no model in the folder has a name that is *taken*.

    Raises:
        SettingsInvalidError: one has.
    """
    if both := set(names) & set(taken):
        name = min(both)
        message = (
            f"the repository folder has a model `{name}`, and so have the settings or "
            "whoever gave one that name; rename one"
        )
        raise SettingsInvalidError(message, setting=SETTING, name=name)


class _Reading:
    """One look at a folder, which ends when it has seen too much."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = folder.resolve(strict=True)
        self._left = _MOST

    def offered(self) -> Iterator[Offered]:
        for name, path in self._folders(self._home):
            if refused_name(name):
                continue
            if _has_model(path):
                yield Offered(name, "1", path)
                continue
            for version, below in self._folders(path):
                if _VERSION.fullmatch(version) and _has_model(below):
                    yield Offered(name, version, below)

    def _folders(self, folder: Path) -> list[tuple[str, Path]]:
        """Return the directories in *folder* by name, where links within its home lead to them.

        Raises:
            SettingsInvalidError: with it, too much has been seen.
        """
        try:
            with os.scandir(folder) as entries:
                found = list(itertools.islice(entries, self._left + 1))
        except OSError as error:
            files.raise_shortage(error)
            if folder == self._home:
                raise
            # It keeps nobody from the others.
            return []
        self._left -= len(found)
        if self._left < 0:
            message = f"the repository folder `{self._folder}` holds over {_MOST} models or files"
            raise SettingsInvalidError(message, setting=SETTING)
        return [(one.name, path) for one in found if (path := self._directory(one))]

    def _directory(self, entry: os.DirEntry[str]) -> Path | None:
        """Return the directory that *entry* is or leads to, if that lies in its home."""
        try:
            path = Path(entry.path).resolve(strict=True)
            return path if entry.is_dir() and path.is_relative_to(self._home) else None
        except (OSError, RuntimeError) as error:
            # A link that leads nowhere, or to itself.
            files.raise_shortage(error)
            return None


def _has_model(path: Path) -> bool:
    return (path / "MLmodel").is_file()
