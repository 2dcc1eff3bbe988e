"""What a model asks for, file by file, and where its files do not agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from envd.errors import EnvdError
from envd.mend import rewriting
from envd.mend.lists import Listing, Lists
from envd.model import Model, mlmodel
from envd.spec import requirement
from envd.spec.place import Place
from envd.spec.requirement_text import Line


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A distribution that two files ask for differently; `second` is empty where one does not."""

    name: str
    files: tuple[str, str]
    first: str
    second: str

    @property
    def message(self) -> str:
        """The same as a sentence."""
        one, other = (f"by `{text}`" if text else "not" for text in (self.first, self.second))
        here, there = self.files
        return f"`{self.name}` is asked for {one} in `{here}` and {other} in `{there}`"


@dataclass(frozen=True, slots=True)
class Shown:
    """The lists of a model, and where what each manager would install differs."""

    model: Path
    lists: tuple[Listing, ...]
    disagreements: tuple[Disagreement, ...]


def show(path: Path) -> Shown:
    """Return what the model at *path* asks for.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelInvalidError: a file of it cannot be read.
    """
    rewriting.finish(path)
    model = mlmodel.read(path)
    lists = Lists(model)
    return Shown(path, lists.all(), tuple(_disagreements(model, lists)))


def _disagreements(model: Model, lists: Lists) -> list[Disagreement]:
    """Compare what MLflow reads for a virtualenv with what it reads for a conda environment."""
    conda = [one for one in lists.roots if one.file == model.conda_file]
    others = [one for one in lists.roots if one.file != model.conda_file]
    if not conda or not others:
        return []
    first, second = (_asked(lists, one[0]) for one in (others, conda))
    names = (lists.end_of(others[0]).file, conda[0].file)
    return [
        Disagreement(name, names, _text(first, name), _text(second, name))
        for name in dict.fromkeys([*first, *second])
        if _meaning(first, name) != _meaning(second, name)
    ]


def _asked(lists: Lists, root: Listing) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for spot in lists.reached(root):
        if spot.line.name:
            found.setdefault(spot.line.name, []).append(spot.line)
    return found


def _text(asked: dict[str, list[Line]], name: str) -> str:
    return ", ".join(one.text for one in asked.get(name, []))


def _meaning(asked: dict[str, list[Line]], name: str) -> set[str]:
    return {_canonical(one.text) for one in asked.get(name, [])}


def _canonical(text: str) -> str:
    try:
        return requirement.parse(Place(Path("/"), "", 0), text).text
    except EnvdError:
        return text
