"""Checks whether a model does what it was logged for, in the environment that it asks for.

MLflow leaves that to whoever calls `mlflow.models.predict` (its page on dependencies). Nothing
is installed or run here: who checks brings what builds environments and asks workers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from envd.errors import Blame, EnvdError, ModelNotFoundError, RequestInvalidError
from envd.mend import code, installed
from envd.mend.diagnosis import diagnose
from envd.mend.failures import About, Diagnosis, Failure
from envd.mend.report import Report, State, Step, is_same, said
from envd.mend.subject import Subject
from envd.model import Model
from envd.spec import flavors

_MADE_UP = "an input made up by its signature"
# They may be the input's fault.
_OF_INPUTS = {"INPUT_REFUSED", "MODEL_FAILS"}
# They are installed for building, at versions that nothing else is chosen by.
_BUILD_TOOLS = {"pip", "setuptools", "wheel"}
# What to do where there is no environment.
_BUILDING = {
    "SOLVE_FAILED": "change what it asks for (`envctl requirements`), or what it pins",
    "INSTALL_FAILED": "read the log of the build (`envctl logs`)",
    "PYTHON_UNAVAILABLE": "install that Python, or name another in its `python_env.yaml`",
}
_SHORT = 200
# No model is asked it: a worker refuses it once the model is loaded.
_NOTHING = b""


@dataclass(frozen=True, slots=True)
class Built:
    """A ready environment: the versions by the names of what is installed, and what was asked."""

    id: str
    prefix: Path
    python: str
    versions: dict[str, str]
    asked: tuple[str, ...] = ()


class Trial(Protocol):
    """What builds the environment of the model that is checked, and asks it there."""

    def build(self, override: Sequence[str]) -> Built:
        """Return its environment with *override* in it.

        Raises:
            EnvdError: it cannot be built.
        """

    def ask(self, override: Sequence[str], payload: bytes, content_type: str) -> bytes:
        """Return what it answers there.

        Raises:
            EnvdError: it does not.
        """

    def bringing(self, module: str) -> tuple[str, ...]:
        """Return the distributions that are seen to bring *module* where it is installed here."""

    def offered(self, module: str) -> tuple[str, ...]:
        """Return the distribution that an index has under the name of *module*, if it brings it."""


def unread(name: str, error: EnvdError) -> Report:
    """Return the report on what is called *name* and could not even be read, as *error* says."""
    return Report(name, (), "", (_failed("model", error),))


def _failed(name: str, error: EnvdError) -> Step:
    """Return the step that *error* ended: the model's fault, or nobody can say."""
    is_models = error.blame is Blame.SPEC and not isinstance(error, ModelNotFoundError)
    found = Diagnosis(error.reason, error.message, _BUILDING.get(error.reason, ""))
    state = State.TROUBLE if is_models else State.UNKNOWN
    return Step(name, state, error.message, (found,))


def check(subject: Subject, trial: Trial, override: Sequence[str] = ()) -> Report:
    """Check *subject* with *override* in the place of requirements of its own.

    Raises:
        RequestInvalidError: one of these is no requirement, or it cannot be asked for so.
    """
    return _Check(subject, trial, tuple(override)).report()


class _Check:
    def __init__(self, subject: Subject, trial: Trial, override: tuple[str, ...]) -> None:
        self._subject, self._trial, self._override = subject, trial, override
        self._steps: list[Step] = []
        self._about = about(subject.model)

    def report(self) -> Report:
        """Take one step after the other, as far as one can go."""
        built = self._environment()
        answer = ""
        if built:
            self._about = about(self._subject.model, built.python, built.versions)
            self._read("dependencies", lambda: self._conflicts(built))
            self._read("code", lambda: self._code(built))
            answer = self._predicted()
        return Report(
            self._subject.name,
            self._override,
            built.id if built else "",
            tuple(self._steps),
            answer,
            tuple(sorted(built.versions.items())) if built else (),
        )

    def _environment(self) -> Built | None:
        try:
            built = self._trial.build(self._override)
        except RequestInvalidError:
            raise
        except EnvdError as error:
            self._steps.append(_failed("environment", error))
            return None
        self._add("environment", State.OK, f"Python {built.python}, {len(built.versions)} packages")
        return built

    def _read(self, name: str, look: Callable[[], Sequence[Diagnosis]]) -> None:
        """Take a step that only reads files."""
        try:
            found = tuple(look())
        except (OSError, EnvdError) as error:
            self._add(name, State.UNKNOWN, f"it cannot be read: {error}")
            return
        self._add(name, State.TROUBLE if found else State.OK, said(found), found)

    def _conflicts(self, built: Built) -> list[Diagnosis]:
        there = installed.read(built.prefix)
        return [
            Diagnosis(
                "DEPENDENCY_CONFLICT",
                one.message,
                f"ask for versions of both that fit, as `{one.requirement.partition(';')[0]}`",
                one.distribution.name,
            )
            for one in installed.conflicts(there, built.python, built.asked)
            if one.distribution.name not in _BUILD_TOOLS
        ]

    def _code(self, built: Built) -> list[Diagnosis]:
        found = []
        for one in code.missing(self._subject.model, built.prefix):
            text = f"No module named '{one.module}'"
            module = one.module.partition(".")[0]
            place = f'  File "/{one.file}", line {one.line}, in <module>\n'
            failure = Failure("IMPORT_FAILED", text, "load", module, traceback=place + text)
            found.append(self._diagnosed(failure))
        return found

    def _diagnosed(self, failure: Failure) -> Diagnosis:
        """Return what a failure comes from, with what may bring a module that nobody knows."""
        found = diagnose(failure, self._about)
        is_module = found.code in {"MODULE_MISSING", "CODE_MISSING"} and "." not in found.subject
        if not is_module or found.candidates:
            return found
        likely = self._trial.bringing(found.subject)
        # An index has somebody's `src` and `utils`: it is asked for what may be meant only.
        likely += self._trial.offered(found.subject) if found.imported and not likely else ()
        return dataclasses.replace(found, candidates=likely)

    def _predicted(self) -> str:
        """Have it loaded and asked, and return its answer."""
        subject = self._subject
        payload = None if subject.only_loads else subject.payload
        try:
            given = _NOTHING if payload is None else payload
            answer = self._trial.ask(self._override, given, subject.content_type)
        except EnvdError as error:
            self._refused(error, is_asked=payload is not None)
            return ""
        self._add("load", State.OK)
        text = answer.decode(errors="replace")
        self._add("predict", State.OK, _MADE_UP if self._subject.is_made_up else "")
        self._compare(text)
        return text

    def _refused(self, error: EnvdError, *, is_asked: bool) -> None:
        if error.metadata.get("stage") != "load":
            self._add("load", State.OK)
        elif not _is_models(error):
            self._steps.append(_failed("load", error))
            return
        if error.reason == "PAYLOAD_INVALID" and not is_asked:
            self._skip()
            return
        name = "load" if error.metadata.get("stage") == "load" else "predict"
        if not _is_models(error):
            self._steps.append(_failed(name, error))
            return
        found = (self._diagnosed(Failure.of(error)),)
        if name == "predict" and self._subject.is_made_up and found[0].code in _OF_INPUTS:
            message = f"{_MADE_UP} was not answered ({found[0].message}): give one with -i"
            self._add(name, State.UNKNOWN, message)
            return
        self._add(name, State.TROUBLE, said(found), found)

    def _skip(self) -> None:
        if self._subject.only_loads:
            self._add("predict", State.SKIPPED, "not asked for")
            return
        message = (
            "the model has no input example, and no signature to make one up by, so that it was "
            "only loaded: give an input with -i, or --only-load"
        )
        self._add("predict", State.UNKNOWN, message)

    def _compare(self, text: str) -> None:
        expected = self._subject.answer
        if expected is None:
            self._add("answer", State.SKIPPED, "what it answered when it was logged is not known")
            return
        try:
            found = json.loads(text)
        except ValueError:
            found = text
        if is_same(expected, found):
            self._add("answer", State.OK)
            return
        message = f"it answers {_short(found)}, and was to answer {_short(expected)}"
        advice = "ask for the versions that it was made with"
        found = Diagnosis("ANSWER_DIFFERS", message, advice)
        self._add("answer", State.TROUBLE, said((found,)), (found,))

    def _add(
        self, name: str, state: State, message: str = "", found: tuple[Diagnosis, ...] = ()
    ) -> None:
        self._steps.append(Step(name, state, message, found))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."


def _is_models(error: EnvdError) -> bool:
    """Whether the model is at fault, and not this machine or whoever checks."""
    return error.blame is Blame.SPEC or error.reason in {
        "MODEL_RAISED", "PAYLOAD_INVALID", "WORKER_DIED",
    }  # fmt: skip


def about(
    model: Model, python: str = "", versions: Mapping[str, str] = MappingProxyType({})
) -> About:
    """Return what is known of *model* in an environment with *python* and *versions*."""
    pins = flavors.requirements(model)
    return About(
        installed=versions,
        python=python,
        recorded={one.name: one.pin for one in pins if one.pin},
        logged=model.python_version or "",
        loader=model.loader_module,
        code=model.code or "",
        path=str(model.path),
    )
