"""Puts conda-forge in the place of Anaconda's own channels in the files of models.

In all its versions MLflow names the conda file of a model in `MLmodel`, and copies nothing
of it (`add_to_model` in mlflow/pyfunc/__init__.py); but that takes a mapping as well, and
so does whoever writes a flavor of their own. On Databricks copies of both files lie in
`metadata` (`_copy_model_metadata_for_uc_sharing` in mlflow/models/model.py). All of them
say the same afterwards. Models within a model are its data, and left as they are.
"""

from __future__ import annotations

import codecs
import difflib
import filecmp
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from envd import durable
from envd.errors import ModelInvalidError, ModelNotFoundError
from envd.events import Note
from envd.model import documents, files, mlmodel
from envd.model.documents import Document
from envd.model.texts import shown
from envd.secrets import without_token
from envd.spec import conda_forge_text, conda_yaml
from envd.spec.place import Place

_MLMODELS = ("MLmodel", "metadata/MLmodel")
_CONDA_YAMLS = ("conda.yaml", "metadata/conda.yaml")
# conda takes no others (conda/env/specs/yaml_file.py), and `env` may mean something else.
_SUFFIXES = (".yaml", ".yml")
# What a comparison of lines costs grows with the square of their number.
_MAX_LINES = 2_000
_LONGEST_LINE = 1_000
_Planned: TypeAlias = "tuple[Change, tuple[Note, ...]]"


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
class Migration:
    """What is to change in the files of a model, nothing where it names conda-forge already."""

    model: Path
    changes: tuple[Change, ...] = ()
    notes: tuple[Note, ...] = ()


def plan(model: Path) -> Migration:
    """Return what conda-forge in the place of Anaconda's own channels changes in *model*.

    Raises:
        ModelNotFoundError: there is no such directory, or no `MLmodel` in it.
        ModelInvalidError: its path, its `MLmodel` or an environment cannot be used.
    """
    mlmodel.check_path(model)
    if not files.exists(model, "MLmodel"):
        message = f"there is no `MLmodel` file in `{model}`; give the directory that holds one"
        raise ModelNotFoundError(message, model=model)
    found = [*_of_conda_files(model), *_of_mlmodels(model)]
    notes = dict.fromkeys(note for _, notes in found for note in notes)
    changes = [change for change, _ in found if change.before != change.after]
    return Migration(model, tuple(changes), tuple(notes))


def _of_conda_files(model: Path) -> Iterator[_Planned]:
    for name in _conda_files(model):
        conda_yaml.read(model, name)
        yield _changed(model, name, [()])


def _conda_files(model: Path) -> list[str]:
    """Return MLflow's, and what flavors name that is an environment and called as one."""
    said = [one for _, one in _environments(documents.read(model, "MLmodel"))]
    texts = [one for one in said if isinstance(one, str) and one.endswith(_SUFFIXES)]
    named = [
        one
        for one in texts
        if files.exists(model, one) and _is_environment(documents.read(model, one))
    ]
    there = [one for one in _CONDA_YAMLS if files.exists(model, one)]
    found = dict.fromkeys(files.inside(model, one) for one in (*there, *named))
    return [str(one.relative_to(model.resolve())) for one in found]


def _of_mlmodels(model: Path) -> Iterator[_Planned]:
    for name in (one for one in _MLMODELS if files.exists(model, one)):
        found = _environments(documents.read(model, name))
        yield _changed(model, name, [keys for keys, one in found if _is_environment(one)])


def _environments(document: dict[str, Document]) -> Iterator[tuple[tuple[str, ...], Document]]:
    """Yield what each flavor says of its conda environment, and the keys that lead to it."""
    for name, flavor in _items(document.get("flavors")):
        for key, value in _items(flavor):
            if key not in {"env", "conda_env"}:
                continue
            if isinstance(value, dict) and "conda" in value:
                yield ("flavors", name, key, "conda"), value["conda"]
            else:
                yield ("flavors", name, key), value


def _items(value: Document) -> Iterable[tuple[str, Document]]:
    return value.items() if isinstance(value, dict) else ()


def _is_environment(value: Document) -> bool:
    return isinstance(value, dict) and not {"channels", "dependencies"}.isdisjoint(value)


def _changed(model: Path, name: str, environments: list[tuple[str, ...]]) -> _Planned:
    before = after = files.read_text(model, name)
    notes: list[Note] = []
    for keys in environments:
        after, more = conda_forge_text.rewritten(Place(model, name, 1), after, keys)
        notes += more
    if notes and len(before.splitlines()) > _MAX_LINES:
        message = f"`{model / name}` has over {_MAX_LINES} lines; change it by hand"
        raise ModelInvalidError(message, model=model, path=name)
    return Change(name, before, after, tuple(environments)), tuple(notes)


def carry_out(migration: Migration) -> None:
    """Write the changes, each file at once, with its original beside it as `NAME.orig`.

    An earlier original stays, and this one gets a number. What is left undone if it ends
    halfway the next `plan` finds.

    Raises:
        ModelInvalidError: a file cannot be written, or has changed since it was read.
    """
    try:
        with ExitStack() as unfinished:
            staged = [_staged(unfinished, migration.model, one) for one in migration.changes]
            # Nothing changes before all is written and every original is kept.
            for one in staged:
                _keep(one.original, one.path)
            for one in staged:
                one.changed.replace(one.path)
        for folder in {one.path.parent for one in staged}:
            durable.sync_directory(folder)
    except OSError as error:
        files.raise_shortage(error)
        message = f"the model `{migration.model}` cannot be changed: {error.strerror}"
        raise ModelInvalidError(message, model=migration.model) from error


@dataclass(frozen=True, slots=True)
class _Staged:
    """A file that is to change, and what is written beside it so far."""

    path: Path
    original: Path
    changed: Path


def _staged(unfinished: ExitStack, model: Path, change: Change) -> _Staged:
    path = files.inside(model, change.file)
    durable.remove_unfinished(path.parent)
    with open(path, "rb", opener=files.opener) as file:
        status = os.fstat(file.fileno())
        content = file.read(files.MAX_METADATA_BYTES + 1)
    if content.decode("utf-8-sig", "replace") != change.before:
        message = f"`{path}` has changed since it was read; migrate it again"
        raise ModelInvalidError(message, model=model, path=change.file)
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
