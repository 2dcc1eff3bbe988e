"""Where the models lie that callers may name by a path or a URI: below the roots of the settings.

A path is followed from its root on by descriptors, one name after the other and no link: so
where it leads is known, and not only where it led when it was looked at.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from envd.errors import EnvdError, ModelMovedError, ModelNotFoundError, PermissionDeniedError
from envd.model import files, location
from envd.secrets import redact

SETTING = "models.roots"
_Result = TypeVar("_Result")
_IS_LINK = {errno.ELOOP, errno.ENOTDIR}
_PARTS, _UNSEEN = re.compile(r"[/\\;?#]"), re.compile(r"[\x00-\x1f\x7f]")
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Longer than the steps in which any kernel counts the time of files; within one of them a
# second change does not show.
_SETTLED_NS = 50_000_000
_PAUSES_S = (0.06,) * 10


@dataclass(frozen=True, slots=True)
class Held:
    """The directory to which a walk without links has led, by its device and its inode.

    `above` are the directories before it, from the root on, with the time of their last change,
    which nobody can set: if another walk finds the same, none of the names on the way has meant
    anything else meanwhile.
    """

    path: Path
    directory: tuple[int, int]
    above: tuple[tuple[int, int, int], ...]

    @property
    def is_settled(self) -> bool:
        """Whether whatever changes from now on shows."""
        now = time.time_ns()
        return all(not 0 <= now - changed <= _SETTLED_NS for _, _, changed in self.above)


class Roots:
    """The roots that settings name; without any, models lie `anywhere` or nowhere."""

    def __init__(self, given: Iterable[str], *, anywhere: bool) -> None:
        """Take directories, and how URIs begin."""
        roots = tuple(given)
        self._are_anywhere = anywhere and not roots
        folders = [str(path) for one in roots if (path := location.local(one))]
        self._folders = [(os.path.normpath(one), os.path.realpath(one)) for one in folders]
        self._uris = [one for one in roots if location.local(one) is None]

    def judge(self, uri: str) -> Path | None:
        """Return the path that is `held` for *uri*, None if it needs no root or is no path.

        Whether the caller may name anything but names, their role has said.

        Raises:
            PermissionDeniedError: callers may not name it, whatever their role.
            RequestInvalidError: as `location.local`.
        """
        if self._are_anywhere:
            return None
        path = location.local(uri)
        if not (self.cover(path) if path else any(_begins(uri, one) for one in self._uris)):
            raise _denied(uri)
        return path

    def cover(self, path: Path) -> bool:
        """Whether *path* lies below a root, as far as it can be told without following it."""
        return self._place(path) is not None

    def held(self, path: Path) -> Held:
        """Return the directory *path*.

        Raises:
            PermissionDeniedError: it lies below no root, or links lead out of them.
            ModelNotFoundError: there is no such directory.
            ModelMovedError: links on the way change all the time.
        """
        place = self._place(path)
        if place is None:
            raise _denied(str(path))
        return self._followed(*place)

    def _place(self, path: Path) -> tuple[str, str] | None:
        """Return the root that *path* lies below, without links, and how it goes on there."""
        plain = os.path.normpath(path)
        for given, real in self._folders:
            for root in (given, real):
                if (rest := _below(plain, root)) is not None:
                    return real, rest
        return None

    def _followed(self, root: str, rest: str) -> Held:
        try:
            return _walk(root, rest)
        except OSError as error:
            if error.errno not in _IS_LINK:
                raise _absent(Path(root, rest), error) from error
        try:
            # There are no links any more in what they lead to.
            real = os.path.realpath(Path(root, rest))
        except OSError as error:
            files.raise_shortage(error)
            raise _moved(Path(root, rest)) from error
        for _, other in self._folders:
            if (below := _below(real, other)) is not None:
                return _again(other, below, Path(root, rest))
        raise _denied(str(Path(root, rest)), "leads by a link to what lies below none")


async def unmoved(find: Callable[[], Held], act: Callable[[Path], Awaitable[_Result]]) -> _Result:
    """Return what *act* does with the path that *find* finds, and that was the same all the time.

    Raises:
        ModelMovedError: it changes all the time.
        EnvdError: as both.
    """
    before = find()
    for pause in _PAUSES_S:
        if before.is_settled:
            try:
                result = await act(before.path)
            except EnvdError:
                # It may tell of what was in its place.
                if find() == before:
                    raise
            else:
                if find() == before:
                    return result
        await asyncio.sleep(pause)
        before = find()
    raise _moved(before.path)


def _walk(root: str, rest: str) -> Held:
    """Go from *root* to *rest* below it.

    Raises:
        OSError: there is none, or a link on the way.
    """
    here = os.open(root, _FOLDER)
    above = []
    try:
        for name in rest.split("/") if rest else ():
            found = os.fstat(here)
            above.append((found.st_dev, found.st_ino, found.st_ctime_ns))
            there = os.open(name, _FOLDER, dir_fd=here)
            os.close(here)
            here = there
        found = os.fstat(here)
    finally:
        os.close(here)
    return Held(Path(root, rest), (found.st_dev, found.st_ino), tuple(above))


def _again(root: str, rest: str, path: Path) -> Held:
    """Go to what links have led to from *path*.

    Raises:
        EnvdError: there is none, or links that were not there a moment ago.
    """
    try:
        return _walk(root, rest)
    except OSError as error:
        if error.errno in _IS_LINK and not Path(root, rest).is_file():
            raise _moved(path) from error
        raise _absent(path, error) from error


def _below(path: str, root: str) -> str | None:
    """Return how *path* goes on after *root*, None if it does not lie there."""
    if path == root:
        return ""
    folder = f"{root.rstrip('/')}/"
    return path[len(folder) :] if path.startswith(folder) else None


def _begins(uri: str, root: str) -> bool:
    """Whether *uri* lies below *root*: `s3://bucket/a` does not cover `s3://bucket/ab`."""
    (scheme, _, rest), (wanted, _, start) = uri.partition(":"), root.partition(":")
    if scheme.lower() != wanted.lower() or not _means_one_place(rest):
        return False
    if start and rest.startswith("//") != start.startswith("//"):
        # `models://profile/name` is of another server than `models:/name`.
        return False
    ends = ("/", "@") if wanted.lower() == "models" else ("/",)
    if not start or start.endswith(ends):
        return rest.startswith(start)
    return rest == start or rest.startswith(tuple(f"{start}{end}" for end in ends))


def _means_one_place(rest: str) -> bool:
    """Whether nobody who reads *rest*, of a URI, makes steps up or aside of it.

    Some decode twice, some drop what cannot be printed, some have parameters behind a `;`.
    """
    decoded = ""
    while decoded != rest:
        decoded, rest = rest, unquote(rest)
    return {".", ".."}.isdisjoint(_PARTS.split(decoded)) and _UNSEEN.search(decoded) is None


def _denied(uri: str, problem: str = "lies below none") -> PermissionDeniedError:
    message = (
        f"`{redact(uri)}` {problem} of the places where models are that callers may name "
        f"(`{SETTING}`); ask for a model by its name, or have its place among them"
    )
    return PermissionDeniedError(message, model=redact(uri), setting=SETTING)


def _absent(path: Path, error: OSError) -> EnvdError:
    files.raise_shortage(error)
    problem = (
        "is not a directory" if error.errno in _IS_LINK else f"cannot be read: {error.strerror}"
    )
    message = f"`{path}` {problem}; give the directory that holds the `MLmodel` file"
    return ModelNotFoundError(message, model=path)


def _moved(path: Path) -> ModelMovedError:
    message = f"what `{path}` leads to was replaced while it was read; ask again"
    return ModelMovedError(message, model=path)
