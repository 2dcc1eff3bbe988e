"""What a model's files ask for, before an interpreter is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from envd.errors import ModelInvalidError
from envd.events import Note
from envd.spec import markers
from envd.spec.python import Python
from envd.spec.requirement import Requirement
from envd.spec.requirement_file import Requirements

if TYPE_CHECKING:
    from envd.spec.match_spec import MatchSpec

_MLFLOW = {"mlflow", "mlflow-skinny"}


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
    `manager` is conda, it makes the environment of `packages` from `channels`; `addresses`
    are those of channels that are fetched with a secret.
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
    addresses: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    packages: tuple[MatchSpec, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

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
            what = ", ".join(one.text for one in unmet)
            message = f"`{lock.file}` of the model does not hold what the model asks for: {what}"
            if lock.must_agree or _lacks_mlflow(unmet, packages):
                message += (
                    "; write a new one with `envctl lock --upgrade -m MODEL -o MODEL/pylock.toml`"
                )
                raise ModelInvalidError(message, path=lock.file, requirements=what)
            notes = (*notes, Note("LOCK_DIFFERS", message, lock.file))
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


def _lacks_mlflow(unmet: Iterable[Requirement], packages: Iterable[Requirement]) -> bool:
    """Whether there is no mlflow where one is asked for: nothing can load the model then."""
    wanted, there = ({one.name for one in each} & _MLFLOW for each in (unmet, packages))
    return bool(wanted) and not there
