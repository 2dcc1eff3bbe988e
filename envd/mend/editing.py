"""Edits what a model asks for, in all its files at once: they agree afterwards.

`mlflow models update-pip-requirements` does this to `requirements.txt` and the pip section of
`conda.yaml` (`update_model_requirements` in mlflow/models/model.py): it takes `Scikit_Learn`
and `scikit-learn` for two, fails of `-c`, `-r` and options, which MLflow itself writes, drops
comments, and leaves the files different where it is killed between them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from packaging import requirements, utils

from envd.errors import EnvdError, ModelInvalidError, RequestInvalidError
from envd.events import Note
from envd.mend import rewriting
from envd.mend.lists import Listing, Lists, Spot
from envd.mend.rewriting import Change, ChangedMeanwhileError
from envd.model import Model, files, mlmodel
from envd.spec import conda_yaml, overrides, requirement
from envd.spec.conda_names import pypi_name
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement import Requirement

_WHOLE: tuple[tuple[str, ...], ...] = ((),)
# What counts before the files that are edited, and how it is made anew.
_LOCKS = ("pylock.toml", "uv.lock", "conda-lock.yml")
_SIGNATURES = ("model.sig", "claims.jsonl")
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Replacements:
    """What takes the place of requirements, by normalized names: texts, or None where one is to go.

    With `only_there` nothing is added that no list of the model has.
    """

    texts: Mapping[str, str | None]
    only_there: bool = False


@dataclass(frozen=True, slots=True)
class Editing:
    """What is to change in the files of a model, nothing where it says so already."""

    model: Path
    changes: tuple[Change, ...] = ()
    notes: tuple[Note, ...] = ()


def put(texts: Sequence[str], policy: Policy, *, only_there: bool = False) -> Replacements:
    """Return what puts the requirements *texts* into a model, in the place of those there.

    Raises:
        RequestInvalidError: one is no requirement, or two are of one distribution.
        PolicyDeniedError: *policy* does not allow where one comes from.
    """
    found = overrides.read(Path("/"), texts, policy, "requirement")
    names = [one.name for one in found]
    if twice := next((one for one in names if names.count(one) > 1), None):
        message = f"`{twice}` is given twice; give one requirement for it"
        raise RequestInvalidError(message, requirement=twice)
    stripped = (" ".join(one.split()) for one in texts)
    return Replacements(dict(zip(names, stripped, strict=True)), only_there)


def without(names: Sequence[str]) -> Replacements:
    """Return what takes the requirements of the distributions *names* out of a model.

    Versions that are given with them mean nothing, as to MLflow.

    Raises:
        RequestInvalidError: one is no name.
    """
    place = Place(Path("/"), "", 0)
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[requirement.parse(place, name).name] = None
        except ModelInvalidError as error:
            message = f"`{name}` is not the name of a distribution"
            raise RequestInvalidError(message, requirement=name) from error
    return Replacements(found)


def plan(path: Path, wanted: Replacements) -> Editing:
    """Return what *wanted* changes in the model at *path*.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelInvalidError: a file of it cannot be read or edited.
        RequestInvalidError: it does not ask for what is to change, or wants hashes.
    """
    rewriting.finish(path)
    model = mlmodel.read(path)
    lists = Lists(model)
    if not lists.roots:
        message = (
            f"the model `{path}` has no file of requirements that could be edited; "
            "what it is made with is read from its flavors"
        )
        raise ModelInvalidError(message, model=path)
    edits = _Edits(lists)
    for name, text in wanted.texts.items():
        _must_be_there(path, lists, name, text, wanted)
        edits.put(name, text)
    changes = tuple(edits.changes(path))
    notes = (*edits.notes, *_of_conda(model, wanted)) if changes else ()
    return Editing(path, changes, (*notes, *(_stale(path) if changes else ())))


def edit(path: Path, wanted: Replacements) -> Editing:
    """Change the model at *path*, all its files or none; after whoever else does meanwhile.

    Raises:
        ModelInvalidError: a file cannot be read, edited or written.
        EnvdError: as `plan`.
    """
    for _ in range(_TRIES):
        editing = plan(path, wanted)
        with suppress(ChangedMeanwhileError):
            carry_out(editing)
            return editing
    editing = plan(path, wanted)
    carry_out(editing)
    return editing


def carry_out(editing: Editing) -> None:
    """Write the changes, all of them or none; see `rewriting.carry_out`.

    Raises:
        ModelInvalidError: a file cannot be written, or has changed since it was read.
    """
    rewriting.carry_out(editing.model, editing.changes)


@dataclass(slots=True)
class _Edits:
    """What is to change in each list so far, by the place of a line in it."""

    lists: Lists
    lines: dict[Listing, dict[int, str | None]] = field(default_factory=dict)
    added: dict[Listing, list[str]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def put(self, name: str, text: str | None) -> None:
        """Let every list ask for *name* by *text*, or not at all."""
        for root in self.lists.roots:
            spots = list(self.lists.reached(root))
            there = [one for one in spots if one.line.name == name]
            self._replace(there, text)
            if text is None:
                continue
            _must_have_hash(spots, name, text)
            if not there:
                new = self.added.setdefault(self.lists.end_of(root), [])
                new += [] if text in new else [text]
            self._constrain(root, name, text)

    def _replace(self, there: Iterable[Spot], text: str | None) -> None:
        """Put *text* in the place of the first of the lines, and nothing in that of others."""
        found = list(there)
        # Another list that includes the same file may have been here.
        if any(self._of(one).get(one.place) is not None for one in found):
            text = None
        for spot in found:
            changes = self._of(spot)
            if changes.get(spot.place) is None:
                changes[spot.place] = text
            text = None

    def _constrain(self, root: Listing, name: str, text: str) -> None:
        """Let no constraint contradict *text*."""
        for spot in self.lists.constraints(root):
            if spot.line.name != name or _agree(spot.line.text, text):
                continue
            new = f"{name}{_specifier(text)}"
            self._of(spot)[spot.place] = new
            message = f"`{spot.line.text}` in `{spot.listing.file}` would not allow it: now `{new}`"
            if message not in {one.message for one in self.notes}:
                self.notes.append(Note("CONSTRAINT_CHANGED", message, name))

    def _of(self, spot: Spot) -> dict[int, str | None]:
        return self.lines.setdefault(spot.listing, {})

    def changes(self, model: Path) -> Iterator[Change]:
        """Yield what changes, file by file."""
        for listing in dict.fromkeys([*self.lines, *self.added]):
            said = self.lines.get(listing, {})
            new = {one: text for one, text in said.items() if text != listing.lines[one].text}
            try:
                after = listing.edited(new, self.added.get(listing, []))
            except ValueError as error:
                message = (
                    f"`{model / listing.file}` is laid out so that it cannot be edited; "
                    "change it by hand"
                )
                raise ModelInvalidError(message, model=model, path=listing.file) from error
            if after != listing.text:
                is_conda = listing.key == "pip"
                yield Change(listing.file, listing.text, after, _WHOLE if is_conda else ())


def _must_be_there(
    path: Path, lists: Lists, name: str, text: str | None, wanted: Replacements
) -> None:
    if text is not None and not wanted.only_there:
        return
    names = {spot.line.name for root in lists.roots for spot in lists.reached(root)} - {""}
    if name not in names:
        likely = difflib.get_close_matches(name, names, 1)
        meant = f"; did you mean `{likely[0]}`?" if likely else ""
        message = f"the model `{path}` does not ask for `{name}`{meant}"
        raise RequestInvalidError(message, model=path, requirement=name)


def _must_have_hash(spots: Iterable[Spot], name: str, text: str) -> None:
    """Refuse a requirement without a hash among those that have one: installers do."""
    others = [one for one in spots if one.line.has_hash and one.line.name != name]
    if others and not requirement.without_hashes(text)[1]:
        message = (
            f"`{others[0].listing.file}` gives the hash of each package; give that of "
            f"`{name}` too, as in `{name}==1.0 --hash=sha256:...`"
        )
        raise RequestInvalidError(message, requirement=name)


def _agree(constraint: str, text: str) -> bool:
    """Whether a version may satisfy both, as far as one is a single version."""
    try:
        old, new = (_parsed(one) for one in (constraint, text))
    except EnvdError:
        # It is a URL, or nothing that could be said to contradict.
        return True
    pairs = ((old, new), (new, old))
    return all(not one.pin or other.specifier.contains(one.pin, prereleases=True)
               for one, other in pairs)  # fmt: skip


def _specifier(text: str) -> str:
    bare, _ = requirement.without_hashes(text)
    return str(requirements.Requirement(requirement.modern(bare)).specifier)


def _parsed(text: str) -> Requirement:
    return requirement.parse(Place(Path("/"), "", 0), text)


def _of_conda(model: Model, wanted: Replacements) -> Iterator[Note]:
    """Yield a note for each of what is *wanted* that is a conda package too: those stay."""
    if model.conda_file is None:
        return
    for _, spec in conda_yaml.read(model.path, model.conda_file).packages:
        name = utils.canonicalize_name(pypi_name(spec.name) or spec.name)
        if name in wanted.texts:
            message = (
                f"`{model.conda_file}` asks for `{spec.text}` as a conda package too, "
                "which stays; change it by hand"
            )
            yield Note("CONDA_PACKAGE", message, spec.name)


def _stale(model: Path) -> Iterator[Note]:
    """Yield a note for each file that was made of those that change."""
    for name in (one for one in _LOCKS if files.exists(model, one)):
        message = (
            f"`{name}` in the model was made before this, and counts before it: make it anew "
            "(`envctl lock --upgrade`), or remove it"
        )
        yield Note("LOCK_STALE", message, name)
    for name in (one for one in _SIGNATURES if files.exists(model, one)):
        message = f"the signature `{name}` was made of the files as they were; sign them again"
        yield Note("SIGNATURE_STALE", message, name)
    if files.exists(model, "registered_model_meta"):
        message = (
            "this is a copy of a registered version, which stays as it is; register this as "
            "a new version"
        )
        yield Note("REGISTERED_ELSEWHERE", message)
