"""Changes files of a model: all of them or none, with every original kept.

Each file is whole at every moment. The new ones are written first; then `.envd-changes.json`
says which take whose place, and from then on the change is made: what a crash leaves undone of
it, whoever changes or shows the model next does (`finish`).
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import fcntl
import filecmp
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from envd import durable, failpoint
from envd.errors import ModelInvalidError
from envd.model import files
from envd.model.texts import shown
from envd.secrets import without_token
from envd.spec import conda_forge_text

_JOURNAL = ".envd-changes.json"
_LONGEST_LINE = 1_000


class ChangedMeanwhileError(ModelInvalidError):
    """A file of a model is not as it was when it was read; read it again."""


@dataclass(frozen=True, slots=True)
class Change:
    """A file of a model, by its path there, before and after.

    The keys in `environments` lead to its conda environments; none of one are the file itself.
    """

    file: str
    before: str = field(repr=False)
    after: str = field(repr=False)
    environments: tuple[tuple[str, ...], ...] = ()

    def diff(self, model: Path) -> str:
        """Return a unified diff without a newline at its end, to be read and not applied.

        Nothing in it is secret or works on a terminal.
        """
        name = shown(str(model / self.file), _LONGEST_LINE)
        masked = (
            conda_forge_text.masked(one, self.environments) for one in (self.before, self.after)
        )
        before, after = map(_lines, masked)
        return "\n".join(difflib.unified_diff(before, after, name, name, lineterm=""))


def _lines(text: str) -> list[str]:
    return [shown(without_token(one), _LONGEST_LINE) for one in text.splitlines()]


@dataclass(frozen=True, slots=True)
class _Staged:
    """A file that is to change, and what is written beside it so far."""

    path: Path
    original: Path
    changed: Path


def carry_out(model: Path, changes: Iterable[Change]) -> None:
    """Write *changes* of *model*, with each original beside its file as `NAME.orig`.

    An earlier original stays, and this one gets a number.

    Raises:
        ModelInvalidError: a file cannot be written.
        ChangedMeanwhileError: one has changed since it was read; nothing was done.
    """
    with _telling(model), _alone(model), ExitStack() as unfinished:
        staged = [_staged(unfinished, model, one) for one in changes]
        # Nothing changes before all is written and every original is kept.
        for one in staged:
            _keep(one.original, one.path)
        if len(staged) > 1:
            durable.write_json(model / _JOURNAL, {"files": _renames(model, staged)})
            unfinished.pop_all()
        _put_in_place([(one.changed, one.path) for one in staged])
        (model / _JOURNAL).unlink(missing_ok=True)


def finish(model: Path) -> None:
    """Do what an earlier `carry_out` of changes to *model* has left undone, if anything.

    Raises:
        ModelInvalidError: it cannot be done.
    """
    if not files.exists(model, _JOURNAL):
        return
    with _telling(model), _alone(model):
        if not files.exists(model, _JOURNAL):
            # Whoever was at it was not dead.
            return
        try:
            found = json.loads(files.read_text(model, _JOURNAL))["files"]
            pairs = [pair for one in found for pair in _left(model, *one)]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            message = f"`{model / _JOURNAL}` is not what envd wrote; remove it"
            raise ModelInvalidError(message, model=model, path=_JOURNAL) from error
        _put_in_place(pairs)
        (model / _JOURNAL).unlink(missing_ok=True)


def _renames(model: Path, staged: Iterable[_Staged]) -> list[tuple[str, str, str]]:
    home = model.resolve()
    return [
        (one.changed.name, str(one.path.relative_to(home)), _digest(one.path)) for one in staged
    ]


def _left(model: Path, name: str, file: str, digest: str) -> Iterator[tuple[Path, Path]]:
    """Yield what takes the place of *file*, unless that was done or somebody has edited it."""
    if not durable.is_unfinished(name) or "/" in name:
        raise ValueError(name)
    path = files.inside(model, file)
    beside = path.with_name(name)
    if beside.exists() and _digest(path) == digest:
        yield beside, path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _put_in_place(pairs: Iterable[tuple[Path, Path]]) -> None:
    done = set()
    for beside, path in pairs:
        beside.replace(path)
        done.add(path.parent)
        failpoint.reach("change.renamed")
    for folder in done:
        durable.sync_directory(folder)


@contextlib.contextmanager
def _telling(model: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        files.raise_shortage(error)
        message = f"the model `{model}` cannot be changed: {error.strerror}"
        raise ModelInvalidError(message, model=model) from error


@contextlib.contextmanager
def _alone(model: Path) -> Iterator[None]:
    """Let nobody else change *model* meanwhile, who asks here too."""
    descriptor = os.open(model, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _staged(unfinished: ExitStack, model: Path, change: Change) -> _Staged:
    path = files.inside(model, change.file)
    durable.remove_unfinished(path.parent)
    with open(path, "rb", opener=files.opener) as file:
        status = os.fstat(file.fileno())
        content = file.read(files.MAX_METADATA_BYTES + 1)
    if content.decode("utf-8-sig", "replace") != change.before:
        message = f"`{path}` has changed since it was read; try again"
        raise ChangedMeanwhileError(message, model=model, path=change.file)
    mark = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
    original = _written(unfinished, path, content, status)
    os.utime(original, ns=(status.st_atime_ns, status.st_mtime_ns))
    return _Staged(path, original, _written(unfinished, path, mark + change.after.encode(), status))


def _written(unfinished: ExitStack, path: Path, content: bytes, status: os.stat_result) -> Path:
    """Write *content* beside *path* for those who may read that; return where."""
    beside = durable.unfinished(path)
    with beside.open("xb") as file:
        unfinished.callback(beside.unlink, missing_ok=True)
        with suppress(PermissionError):
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return beside


def _keep(original: Path, path: Path) -> None:
    """Give *original* a name beside *path* that is free, unless it has one already."""
    for number in itertools.count():
        kept = path.with_name(f"{path.name}.orig{f'.{number}' if number else ''}")
        if not os.path.lexists(kept):
            original.rename(kept)
            return
        if kept.is_file() and not kept.is_symlink() and filecmp.cmp(kept, original, shallow=False):
            original.unlink()
            return
