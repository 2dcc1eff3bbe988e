"""Finds out what a recorded model needs, by loading it as it will be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from envd import infer
from envd.errors import EnvdError, ImportFailedError
from envd.infer import Inferred, Local
from envd.infer.observing import Observer
from envd.mend.failures import Failure
from envd.record import code, followed, requirements
from envd.record.arguments import Arguments
from envd.record.environment import Environment, version_of
from envd.record.requirements import Asked
from envd.spec.dependencies import MLFLOWS

# The first that loads a model from a script.
_OLDEST_OF_SCRIPTS = "2.12.2"
_MOST_SHOWN = 10


def environment(
    given: Arguments, observer: Callable[[], Observer], note: Callable[[str], None]
) -> Environment:
    """Return what the model is to ask for, and tell *note* what is worth knowing.

    Raises:
        ImportFailedError: code that it loads is not in it.
        EnvdError: it does not load or answer.
    """
    if not given.check:
        return _with_mlflow(given, given.whole or Environment(_least() + given.extra), note)
    inferred = _inferred(observer(), given.on_step)
    _must_be_whole(inferred.modules)
    for one in inferred.notes:
        note(one.message)
    asked = given.whole or Environment(Asked(inferred.requirements) + given.extra)
    named = {requirements.name_of(one) for one in asked.asked.lines}
    _must_be_had([one for one in inferred.local if infer.key_of(one.name) not in named])
    for line in inferred.lines:
        if not named & {line.key, *line.held_by}:
            note(f"the model needs {line.text}, which it does not ask for ({line.why})")
    return _with_mlflow(given, asked, note)


def _least() -> Asked:
    version = version_of("cloudpickle")
    return Asked((f"cloudpickle=={version}",) if version else ())


def _inferred(observer: Observer, on_step: Callable[[str], None]) -> Inferred:
    """Return what is inferred; say of a missing module where it lies here."""
    try:
        return infer.infer(observer, on_step)
    except EnvdError as error:
        module = Failure.of(error).missing
        found = followed.found(module, code.roots())
        if not found:
            raise
        message = (
            f"the module `{module}` ({found}) is not in the model: give it in `code_paths`, or "
            "`infer_code_paths=True`"
        )
        raise ImportFailedError(message, module=module, path=found) from error


def _must_be_whole(modules: Sequence[tuple[str, str]]) -> None:
    if modules:
        shown = ", ".join(f"`{name}` ({file})" for name, file in modules[:_MOST_SHOWN])
        message = (
            f"the model loads code that is neither in it nor installed: {shown}; give it in "
            "`code_paths`, or `infer_code_paths=True`"
        )
        raise ImportFailedError(message, module=modules[0][0])


def _must_be_had(local: Sequence[Local]) -> None:
    if local:
        shown = ", ".join(f"{one.name} ({one.path})" for one in local)
        message = (
            f"the model loads what is worked on here and no index has: {shown}; put its code into "
            "the model (`infer_code_paths=True`), or name it among the requirements"
        )
        raise ImportFailedError(message, module=next(iter(local[0].modules), local[0].name))


def _with_mlflow(given: Arguments, found: Environment, note: Callable[[str], None]) -> Environment:
    """Add the MLflow that is here, as MLflow does: its own servers run in the environment."""
    if {requirements.name_of(one) for one in found.asked.lines} & set(MLFLOWS):
        return found
    installed = next((one for one in MLFLOWS if version_of(one)), "")
    if not installed and not given.python_model.is_mlflow:
        note("MLflow is not here and not asked for: envd serves the model, MLflow's servers do not")
        return found
    line = f"{installed}=={version_of(installed)}" if installed else f"mlflow>={_OLDEST_OF_SCRIPTS}"
    asked = Asked(tuple(_first(line, found.asked.lines)), found.asked.constraints)
    return Environment(asked, found.conda)


def _first(line: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield *lines* with *line* before all that are no options."""
    yield from (one for one in lines if one.startswith("-"))
    yield line
    yield from (one for one in lines if not one.startswith("-"))
