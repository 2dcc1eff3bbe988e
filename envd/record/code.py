"""Where code goes in a model, so that it is imported there by the name it has here."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from envd.errors import RequestInvalidError

_LEFT_OUT = {"__pycache__", ".git", ".hg", ".svn", ".ipynb_checkpoints"}
_MOST_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Placed:
    """A file, and its path below `code/`."""

    source: Path
    target: str


def placed(code_paths: Sequence[str | os.PathLike[str]]) -> list[Placed]:
    """Return the files of *code_paths*, each where its module is found by its name.

    MLflow lays a file or folder directly into `code/`, whatever package it is of:
    `src/utils.py` is `utils` there. Here it stays `src.utils`: what it is called where it is
    imported already, else its path from the current folder or from what is on sys.path.

    Raises:
        RequestInvalidError: there is no such file, or none of those has it.
    """
    found: dict[str, Path] = {}
    for given in code_paths:
        for one in _of_path(Path(given)):
            if found.setdefault(one.target, one.source).resolve() != one.source.resolve():
                message = (
                    f"`{found[one.target]}` and `{one.source}` are both `{one.target}` in the "
                    "model; leave one out of `code_paths`"
                )
                raise RequestInvalidError(message, path=one.target)
    return [Placed(source, target) for target, source in found.items()]


def _of_path(given: Path) -> Iterator[Placed]:
    if not given.exists():
        message = f"`{given}` of `code_paths` is not there"
        raise RequestInvalidError(message, path=given)
    target = _loaded_as(given.resolve()) or _below_a_root(given)
    # The packages it is in run before it, here as there.
    folder, above = Path(os.path.abspath(given)).parent, target.parent  # noqa: PTH100
    while above.name:
        if (folder / "__init__.py").is_file():
            yield Placed(folder / "__init__.py", str(above / "__init__.py"))
        folder, above = folder.parent, above.parent
    if given.is_dir():
        for one in _files(given):
            yield Placed(one, str(target / one.relative_to(given)))
    else:
        yield Placed(given, str(target))


def _files(folder: Path) -> Iterator[Path]:
    count = 0
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        for name in sorted(files):
            # An editor's lock is a link to nowhere, and a pipe has no end.
            if not name.endswith((".pyc", ".pyo")) and Path(top, name).is_file():
                count += 1
                yield Path(top, name)
        if count > _MOST_FILES:
            message = (
                f"`{folder}` of `code_paths` holds over {_MOST_FILES} files; name what is needed"
            )
            raise RequestInvalidError(message, path=folder)


def _loaded_as(real: Path) -> Path | None:
    """Return the path of the module that the file or folder *real* is loaded as, if it is."""
    for name, module in list(sys.modules.items()):
        if name != "__main__" and real in places_of(module):
            return Path(*name.split(".")).with_suffix(real.suffix if real.is_file() else "")
    return None


def places_of(module: ModuleType) -> list[Path]:
    """Return the file of *module*, or of a package its folders."""
    try:
        # One that loads lazily is not woken.
        about = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return []
    found = about.get("__path__")
    try:
        folders = [Path(one).resolve() for one in found] if found is not None else []
    except (TypeError, ValueError):
        folders = []
    file = about.get("__file__")
    return folders or ([Path(file).resolve()] if isinstance(file, str) else [])


def _below_a_root(given: Path) -> Path:
    real = given.resolve()
    here, *others = roots()
    # A path from here has its name from here.
    for root in (*others, here) if given.is_absolute() else (here, *others):
        if real != root and real.is_relative_to(root):
            # A link has the name it is given.
            plain = Path(os.path.abspath(given))  # noqa: PTH100
            return plain.relative_to(root) if plain.is_relative_to(root) else real.relative_to(root)
    if given.is_absolute() and real not in (here, *others):
        return Path(given.name)
    message = (
        f"`{given}` of `code_paths` lies below neither the current folder nor a folder on "
        "sys.path, so it has no name that the model could import it by; run in its parent folder, "
        "or put that on sys.path"
    )
    if real in (here, *others):
        message = (
            f"`{given}` of `code_paths` is a folder that modules are found in, and no module; "
            "name what is in it"
        )
    raise RequestInvalidError(message, path=given)


def roots() -> list[Path]:
    """Return the folders in which the code of whoever records is found, the current one first."""
    installed = {Path(one).resolve() for one in _installed()}
    here = Path.cwd().resolve()
    others = (Path(one).resolve() for one in sys.path if one)
    found = [one for one in others if one.is_dir() and not _is_installed(one, installed)]
    # Of two that have a file, its name is by the nearer one.
    nearest_first = sorted(dict.fromkeys(found), key=lambda one: -len(one.parts))
    return [here, *(one for one in nearest_first if one != here)]


def _installed() -> list[str]:
    paths = [sysconfig.get_path(one) for one in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*paths, *site.getsitepackages(), site.getusersitepackages()]


def _is_installed(folder: Path, installed: set[Path]) -> bool:
    return is_package_folder(folder) or any(folder.is_relative_to(one) for one in installed)


def is_package_folder(path: Path) -> bool:
    """Whether *path* is, or lies in, a folder that installers put packages into."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
