"""Answers `envctl record`, in the process that has the model."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from envd.errors import EnvdError, RequestInvalidError
from envd.record import code, example
from envd.record.arguments import asked
from envd.record.recording import must_be_free, record


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Return what was recorded, or why nothing was."""
    try:
        return _recorded(question)
    except EnvdError as error:
        return {"failure": error.document()}


def _recorded(question: dict[str, Any]) -> dict[str, Any]:
    given = dict(question["arguments"])
    if given["input_example"] is not None:
        given["input_example"] = _example(given["input_example"])
    # A script may train for hours, only to hear of one of these.
    must_be_free(Path(question["output"]))
    asked(*(given[name] for name in ("pip_requirements", "extra_pip_requirements", "conda_env")))
    text = question["model"]
    model = text if question["is_script"] else _object(text, given)
    found = record(question["output"], python_model=model, on_step=_say, **given)
    return {
        "path": str(found.path),
        "requirements": list(found.requirements),
        "constraints": list(found.constraints),
        "code": list(found.code),
        "notes": list(found.notes),
    }


def _say(step: str) -> None:
    sys.stderr.write(f"{step}\n")
    sys.stderr.flush()


def _example(path: str) -> Any:
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        message = f"the example `{path}` cannot be read: {error}"
        raise RequestInvalidError(message, path=path) from error
    return example.of_request(document)


def _object(text: str, given: dict[str, Any]) -> Any:
    """Return what `SCRIPT.py:NAME` or `MODULE:NAME` is; of a class, an instance.

    What a script has that does not go into the model goes into the pickle, as of `__main__`.
    """
    place, colon, name = text.rpartition(":")
    if not colon:
        message = f"`{text}` does not say which object; give SCRIPT.py:NAME or MODULE:NAME"
        raise RequestInvalidError(message, model=text)
    try:
        _say(f"running {place}")
        module = _script(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        found = getattr(module, name)
        found = found() if isinstance(found, type) else found
    except Exception as error:
        message = f"`{text}` cannot be had: {type(error).__name__}: {error}"
        raise RequestInvalidError(message, model=text) from error
    if place.endswith(".py") and not _is_placed(Path(place), given["code_paths"]):
        _take_along(module, may_be_code=given["infer_code_paths"])
    return found


def _is_placed(script: Path, code_paths: Sequence[str]) -> bool:
    return script.resolve() in (one.source.resolve() for one in code.placed(code_paths))


def _script(path: Path) -> ModuleType:
    sys.path[0] = str(path.resolve().parent)
    name = path.stem.replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        message = f"there is no script `{path}`"
        raise FileNotFoundError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _take_along(module: ModuleType, *, may_be_code: bool) -> None:
    """Let what *module* defines go into the pickle: as code it would train at each loading."""
    try:
        import cloudpickle  # noqa: PLC0415
    except ImportError as error:
        if may_be_code:
            return
        message = (
            "what a script defines is taken along by cloudpickle; install it, or give "
            "--infer-code-paths"
        )
        raise RequestInvalidError(message) from error
    cloudpickle.register_pickle_by_value(module)
