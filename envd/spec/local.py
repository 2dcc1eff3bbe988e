"""Packages that lie in a model: wheels, source archives and source trees, known by content."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from envd.model import files
from envd.model.texts import shown
from envd.spec.place import Place

_MAX_BYTES = 256 << 20
_MAX_FILES = 10_000
_CHUNK = 1 << 20
_LEFT_OUT = {".git", "__pycache__"}
_PACKAGES = (".whl", ".tar.gz", ".zip")


@dataclass(slots=True)
class Budget:
    """What reading the packages of one model may still cost; no package is read twice."""

    bytes_left: int = _MAX_BYTES
    files_left: int = _MAX_FILES
    known: dict[Path, str] = field(default_factory=dict)

    def spend(self, place: Place, name: str, size: int) -> None:
        """Count a file of *size* bytes that is about to be read.

        Raises:
            ModelInvalidError: it is one too many.
        """
        self.bytes_left -= size
        self.files_left -= 1
        if self.bytes_left < 0 or self.files_left < 0:
            limits = f"{_MAX_BYTES >> 20} MiB or {_MAX_FILES} files"
            why = f"with `{shown(name)}` the packages of the model's own are over {limits}"
            raise place.invalid(why)


def package(place: Place, text: str, budget: Budget) -> tuple[str, str]:
    """Return the canonical path (`./...`) of a package in the model and its SHA-256.

    Raises:
        ModelInvalidError: it is not there, not in the model, or too large.
    """
    name = _inside(place, text)
    path = files.inside(place.model, name)
    if path not in budget.known:
        is_tree = path.is_dir()
        if is_tree and name.lower().endswith(".whl"):
            why = f"`{shown(text)}` is a directory called like a wheel"
            raise place.invalid(why)
        budget.known[path] = _tree(place, path, budget) if is_tree else _file(place, path, budget)
    return f"./{name}", budget.known[path]


def directory_of_packages(place: Place, text: str, budget: Budget) -> tuple[str, str]:
    """Return the canonical path of a directory of packages, and the hash of what it offers.

    Raises:
        ModelInvalidError: it is not one, not in the model, or too large.
    """
    name = _inside(place, text)
    path = files.inside(place.model, name)
    if not path.is_dir():
        why = f"`{shown(text)}` is not a directory of the model"
        raise place.invalid(why)
    # As a source tree it has another hash than as an offer of packages.
    offer = path / "*"
    if offer not in budget.known:
        budget.known[offer] = _packages(place, name, budget)
    return f"./{name}", budget.known[offer]


def _packages(place: Place, name: str, budget: Budget) -> str:
    path = files.inside(place.model, name)
    hashed = hashlib.sha256()
    for file in _names_of_packages(place, path):
        inside = files.inside(place.model, f"{name}/{file}")
        line = f"{file}\0{_file(place, inside, budget)}\0"
        hashed.update(line.encode(errors="surrogateescape"))
    return hashed.hexdigest()


def _names_of_packages(place: Place, path: Path) -> list[str]:
    try:
        return sorted(one.name for one in path.iterdir() if one.name.endswith(_PACKAGES))
    except OSError as error:
        raise _unreadable(place, path, error) from error


def copy_packages(place: Place, path: str, sha256: str, target: Path) -> None:
    """Copy the packages in the directory *path* of the model into the directory *target*.

    Raises:
        ModelInvalidError: they are not what they were when the model was read.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in _names_of_packages(place, files.inside(place.model, path)):
        inside = files.inside(place.model, f"{path}/{file}")
        shutil.copyfile(inside, target / file, follow_symlinks=False)
    if _packages(Place(target, place.file, 1), ".", Budget()) != sha256:
        raise _changed(place, path)


def copy(place: Place, path: str, sha256: str, target: Path) -> Path:
    """Copy the package *path* of the model into the directory *target*.

    Raises:
        ModelInvalidError: it is not what it was when the model was read.
    """
    source = files.inside(place.model, path)
    copied = target / (posixpath.basename(path) or "tree")
    if source.is_dir():
        for name in _walk(place, source):
            (copied / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copied / name, follow_symlinks=False)
        digest = _tree(place, copied, Budget())
    else:
        shutil.copyfile(source, copied, follow_symlinks=False)
        digest = _file(place, copied, Budget())
    if digest != sha256:
        raise _changed(place, path)
    return copied


def _changed(place: Place, path: str) -> Exception:
    return place.invalid(f"`{path}` has changed since the model was read; ask again")


def _inside(place: Place, text: str) -> str:
    if text.startswith("/"):
        why = (
            f"`{shown(text)}` is outside the model; a package of the model is named relative to it"
        )
        raise place.invalid(why)
    name = posixpath.normpath(text)
    files.inside(place.model, name)
    return name


def _file(place: Place, path: Path, budget: Budget) -> str:
    hashed = hashlib.sha256()
    try:
        with open(path, "rb", opener=files.opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                why = f"`{shown(path.name)}` is not a regular file"
                raise place.invalid(why)
            budget.spend(place, path.name, status.st_size)
            while chunk := file.read(_CHUNK):
                hashed.update(chunk)
    except OSError as error:
        raise _unreadable(place, path, error) from error
    return hashed.hexdigest()


def _unreadable(place: Place, path: Path, error: OSError) -> Exception:
    """Return what *error*, met while reading *path*, says of the model; raise it if nothing."""
    files.raise_shortage(error)
    return place.invalid(f"`{shown(path.name)}` cannot be read: {error.strerror}")


def _tree(place: Place, path: Path, budget: Budget) -> str:
    hashed = hashlib.sha256()
    for name in _walk(place, path):
        line = f"{name}\0{_file(place, path / name, budget)}\0"
        hashed.update(line.encode(errors="surrogateescape"))
    return hashed.hexdigest()


def _walk(place: Place, path: Path) -> Iterator[str]:
    """Yield every file below *path* in order, relative."""
    for name, entry in files.walk(place.model, path, _MAX_FILES, _LEFT_OUT):
        if not entry.is_file(follow_symlinks=False):
            why = f"`{shown(name)}` in it is not a regular file"
            raise place.invalid(why)
        yield name
