"""Puts conda-forge in the place of Anaconda's own channels in the files of models.

In all its versions MLflow names the conda file of a model in `MLmodel`, and copies nothing
of it (`add_to_model` in mlflow/pyfunc/__init__.py); but that takes a mapping as well, and
so does whoever writes a flavor of their own. On Databricks copies of both files lie in
`metadata` (`_copy_model_metadata_for_uc_sharing` in mlflow/models/model.py). All of them
say the same afterwards. Models within a model are its data, and left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from envd.errors import ModelInvalidError, ModelNotFoundError
from envd.events import Note
from envd.mend import rewriting
from envd.mend.rewriting import Change
from envd.model import documents, files, mlmodel
from envd.model.documents import Document
from envd.spec import conda_forge_text, conda_yaml
from envd.spec.place import Place

_MLMODELS = ("MLmodel", "metadata/MLmodel")
_CONDA_YAMLS = ("conda.yaml", "metadata/conda.yaml")
# conda takes no others (conda/env/specs/yaml_file.py), and `env` may mean something else.
_SUFFIXES = (".yaml", ".yml")
# What a comparison of lines costs grows with the square of their number.
_MAX_LINES = 2_000
_Planned: TypeAlias = "tuple[Change, tuple[Note, ...]]"


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
    rewriting.finish(model)
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
    """Write the changes, as `rewriting.carry_out` does.

    Raises:
        ModelInvalidError: a file cannot be written, or has changed since it was read.
    """
    rewriting.carry_out(migration.model, migration.changes)
