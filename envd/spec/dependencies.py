"""What a model's files ask for, before an interpreter is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from envd.errors import ModelInvalidError
from envd.events import Note
from envd.spec import markers
from envd.spec.python import Python
from envd.spec.requirement import Requirement
from envd.spec.requirement_file import Requirements

if TYPE_CHECKING:
    from envd.spec.conda_package import CondaPackage
    from envd.spec.match_spec import MatchSpec

# The distributions that bring the module `mlflow`, what holds all of it first.
MLFLOWS = ("mlflow", "mlflow-skinny")


class ModelLock(Protocol):
    """A lock that lies in a model, for any number of Pythons."""

    @property
    def file(self) -> str:
        """Its name in the model."""

    @property
    def must_agree(self) -> bool:
        """Whether it is out of date where the model's requirements are not met by it."""

    def select(self, python: Python) -> tuple[Requirement, ...]:
        """Return every package of the lock that belongs on *python*, pinned, with hashes."""


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What a model asks for, before an interpreter is chosen.

    `python` is a version of one to three numbers, or None where the model names none;
    `day` the date it was logged (`2024-02-14`), or None where it is unknown or does not
    matter. `build_constraints`, `only_binary` and `bounds` are what repairs add. `overrides` take
    the place of requirements of the same names. `lock` is the lock that lies in the
    model; `closed` says that the requirements are all there is to install. Where the
    `manager` is conda, it makes the environment of `packages` from `channels`; `locked` are
    the conda packages of the lock that lies in the model, and the values of its `variables`
    may be secrets.
    """

    python: str | None
    build: tuple[Requirement, ...]
    asked: Requirements
    notes: tuple[Note, ...]
    day: str | None = None
    build_constraints: tuple[str, ...] = ()
    only_binary: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    overrides: tuple[Requirement, ...] = ()
    lock: ModelLock | None = None
    closed: bool = False
    manager: str = "virtualenv"
    channels: tuple[str, ...] = ()
    packages: tuple[MatchSpec, ...] = ()
    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    locked: tuple[CondaPackage, ...] = field(default=(), repr=False)

    def on(self, python: Python) -> Dependencies:
        """Return what is left to resolve on *python*: the lock and the overrides applied.

        Raises:
            ModelInvalidError: the lock in the model does not fit its requirements.
        """
        found = self._locked(self.lock, python) if self.lock else self
        return found._overridden(self.overrides) if self.overrides else found  # noqa: SLF001

    def _overridden(self, overrides: tuple[Requirement, ...]) -> Dependencies:
        names = {one.name for one in overrides}
        kept = tuple(one for one in self.asked.requirements if one.name not in names)
        limits = tuple(one for one in self.asked.constraints if one.name not in names)
        return replace(
            self,
            build=tuple(one for one in self.build if one.name not in names),
            asked=replace(self.asked, requirements=(*kept, *overrides), constraints=limits),
            bounds=tuple(one for one in self.bounds if one.partition(">=")[0] not in names),
            overrides=(),
            closed=False,
        )

    def _locked(self, lock: ModelLock, python: Python) -> Dependencies:
        packages = lock.select(python)
        unmet = markers.unmet(self.asked.requirements, packages, python)
        notes = self.notes
        if unmet:
            texts = [one.text for one in unmet]
            if lock.must_agree or _lacks_mlflow(unmet, packages):
                raise not_held(lock.file, texts, new="pylock.toml")
            notes = (*notes, Note("LOCK_DIFFERS", _differs(lock.file, texts), lock.file))
        asked = replace(self.asked, requirements=packages, constraints=())
        return replace(
            self,
            build=(),
            asked=asked,
            notes=notes,
            only_binary=(),
            bounds=(),
            lock=None,
            closed=True,
        )


def not_held(lock: str, unmet: Sequence[str], *, new: str, options: str = "") -> ModelInvalidError:
    """Return the failure that the file *lock* of a model does not hold what is *unmet*.

    The file *new* would take its place, written by `envctl lock` with *options*.
    """
    message = (
        f"{_differs(lock, unmet)}; write a new one with "
        f"`envctl lock --upgrade{options} -m MODEL -o MODEL/{new}`"
    )
    return ModelInvalidError(message, path=lock, requirements=", ".join(unmet))


def _differs(lock: str, unmet: Sequence[str]) -> str:
    what = ", ".join(unmet)
    return f"`{lock}` of the model does not hold what the model asks for: {what}"


def _lacks_mlflow(unmet: Iterable[Requirement], packages: Iterable[Requirement]) -> bool:
    """Whether there is no mlflow where one is asked for: nothing can load the model then."""
    wanted, there = ({one.name for one in each} & {*MLFLOWS} for each in (unmet, packages))
    return bool(wanted) and not there
