"""What people may call a model on the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Model(click.ParamType):  # type: ignore[type-arg] # click < 8.4 takes none
    """A model, which a shell completes as the directory that it most often is."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Have the shell look for directories."""
        del ctx, param
        return [CompletionItem(incomplete, type="dir")]


MODEL = _Model()
MEANING = "A model: directory, URI or served name."


def option(command: _Command) -> _Command:
    """Add `--model`, which takes one."""
    return click.option("-m", "--model", type=MODEL, required=True, help=MEANING)(command)


def model(name: str) -> str:
    """Return *name* as the API takes it: a path made absolute, a served name or a URI as it is.

    A `/` or a leading `.` makes it a path, and so does a model that lies there; a `:` a URI.
    """
    is_path = "/" in name or name.startswith(".") or is_there(Path(name, "MLmodel"))
    if is_path and not (":" in name and not is_there(Path(name))):
        return str(Path(name).absolute())
    return name


def models(name: str) -> list[str]:
    """Return the models that *name* stands for: itself, or those in the folder it is.

    Links in a folder are followed, and a model has one name however many lead to it. What
    cannot be looked into is among them, to be told of like a model that cannot be read.
    """
    folder = Path(name)
    if not is_folder(folder) or is_there(folder / "MLmodel"):
        return [model(name)]
    return [str(one.absolute()) for one in sorted(_below(folder))]


def is_there(path: Path) -> bool:
    """Whether something is at *path*, as far as one may look."""
    # `Path.exists` raises where one may not, and of names that no file can have.
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: Path) -> bool:
    """Whether *path* is a directory, likewise."""
    return os.path.isdir(path)  # noqa: PTH112


def _below(folder: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    home, ahead = folder.resolve(), [folder]
    while ahead:
        # By its links only what has no other name.
        ahead, links = [], ahead
        for link in sorted(links):
            # One that leads up, in however many steps, leads to everything there is.
            if link is folder or not home.is_relative_to(link.resolve()):
                yield from _in_tree(link, seen, ahead)


def _in_tree(top: Path, seen: set[tuple[int, int]], links: list[Path]) -> Iterator[Path]:
    """Yield the models below *top*, and leave the links to folders to *links*."""
    unreadable: list[OSError] = []
    for name, folders, files in os.walk(top, onerror=unreadable.append):
        path = Path(name)
        status = path.stat()
        identity = (status.st_dev, status.st_ino)
        is_model = "MLmodel" in files
        if is_model or identity in seen:
            # What lies in a model is a part of it.
            folders.clear()
        if is_model and identity not in seen:
            yield path
        seen.add(identity)
        # What is below so long a path that it cannot be asked for is no link either.
        links += [path / one for one in folders if os.path.islink(f"{name}/{one}")]  # noqa: PTH114
    yield from (Path(error.filename) for error in unreadable)


def shown(model: str) -> str:
    """Return the name *model* as it may be printed, whatever bytes its path has."""
    return os.fsencode(model).decode(errors="replace")
