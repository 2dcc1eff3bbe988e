"""Writes a model into a folder, and loads it there once as it will be loaded."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml

from envd import model as models
from envd.config import Settings
from envd.errors import EnvdError, RequestInvalidError
from envd.infer.lines import local_path
from envd.infer.observing import Given, Observer
from envd.record import code, environment, followed, needs, python_model, secrets, signature
from envd.record.arguments import Arguments
from envd.record.code import Placed
from envd.record.environment import version_of
from envd.spec import gather
from envd.spec.dependencies import MLFLOWS


@dataclass(frozen=True, slots=True)
class Recorded:
    """A model that was recorded: where, what it asks for, its code, and what is to be known."""

    path: Path
    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    code: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class Writing:
    """A model that is being written into *folder*."""

    folder: Path
    target: Path
    given: Arguments
    notes: list[str] = field(default_factory=list)
    code: dict[str, Path] = field(default_factory=dict)

    def done(self) -> Recorded:
        """Write all of it."""
        given, model = self.given, self.given.python_model
        self._refuse(self._secrets_of_arguments())
        self._take(given.placed)
        model.write(self.folder)
        artifacts = self._artifacts()
        if not model.is_mlflow:
            self._copy(Placed(python_model.LOADER, python_model.LOADER.name))
        self.document = self._document(artifacts)
        self._refuse(secrets.in_files([(self.folder / model.file, model.file)]))
        self._write_mlmodel()
        if given.is_followed:
            self._follow()
        asked = needs.environment(given, self._observer, self.notes.append)
        environment.write(self.folder, asked)
        self._write_mlmodel()
        self._see_that_it_is_read()
        lines = (self.folder / "requirements.txt").read_text().splitlines()
        return Recorded(
            self.target, tuple(lines), asked.asked.constraints, tuple(sorted(self.code)),
            tuple(self.notes),
        )  # fmt: skip

    def _secrets_of_arguments(self) -> Iterator[secrets.Secret]:
        given, model = self.given, self.given.python_model
        if model.kind == "script":
            yield from secrets.in_files([(model.given, str(model.given))])
        asked = given.whole.asked if given.whole else given.extra
        yield from secrets.in_text("the requirements", "\n".join(asked.lines).encode())
        conda = json.dumps(given.whole.conda, default=str) if given.whole else ""
        yield from secrets.in_text("`conda_env`", conda.encode())
        kept = json.dumps([given.metadata, given.config], default=str)
        yield from secrets.in_text("`metadata` or `model_config`", kept.encode())

    def _refuse(self, found: Iterator[secrets.Secret]) -> None:
        if not self.given.allow_secrets:
            secrets.refuse(found)

    def _take(self, placed: list[Placed]) -> None:
        """Copy what is *placed* into `code/`, once it is known to have no secrets."""
        inside = [one for one in placed if one.source.resolve().is_relative_to(self.folder)]
        placed = [one for one in placed if one not in inside and one.target not in self.code]
        self._refuse(secrets.in_files((one.source, str(one.source)) for one in placed))
        for one in placed:
            self._copy(one)
            self.code[one.target] = one.source

    def _copy(self, one: Placed) -> None:
        target = self.folder / "code" / one.target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(one.source, target)

    def _artifacts(self) -> dict[str, tuple[str, str]]:
        """Copy the artifacts; return by name the path of each here, and where it came from."""
        found: dict[str, tuple[str, str]] = {}
        for name, given in self.given.artifacts.items():
            source = _local(str(given), name)
            target = Path("artifacts") / source.name
            if (self.folder / target).exists():
                target = Path("artifacts") / name / source.name
            (self.folder / target).parent.mkdir(parents=True, exist_ok=True)
            copy: Callable[..., Any] = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, self.folder / target)
            found[name] = (str(target), str(given))
        return found

    def _document(self, artifacts: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
        """Return what the `MLmodel` says."""
        given = self.given
        flavor = given.python_model.flavor(self.folder, artifacts, given.config)
        now = datetime.now(UTC).replace(tzinfo=None)
        document: dict[str, Any] = {
            "flavors": {"python_function": flavor},
            "model_uuid": uuid.uuid4().hex,
            "utc_time_created": str(now),
        }
        if version := next(filter(None, map(version_of, MLFLOWS)), ""):
            document["mlflow_version"] = version
        if given.metadata:
            document["metadata"] = dict(given.metadata)
        if given.example:
            document["saved_input_example_info"] = given.example.write(self.folder)
        if found := self._signature():
            document["signature"] = found
        return document

    def _signature(self) -> dict[str, str | None] | None:
        given = self.given
        if given.signature is not None:
            return signature.given(given.signature)
        paths = {name: str(_local(str(one), name)) for name, one in given.artifacts.items()}
        adapted = given.python_model.adapted(paths, given.config) if given.example else None
        if given.example is None or adapted is None:
            return None
        try:
            answer = adapted.predict(given.example.data, given.example.params)
        except Exception as error:
            message = f"the model does not answer `input_example`: {type(error).__name__}: {error}"
            raise RequestInvalidError(message) from error
        found = signature.inferred(given.example, answer)
        if found is None:
            self.notes.append("no signature could be inferred of the example; give one")
        return found

    def _write_mlmodel(self) -> None:
        flavor = self.document["flavors"]["python_function"]
        flavor["code"] = "code" if (self.folder / "code").is_dir() else None
        with (self.folder / "MLmodel").open("w") as file:
            yaml.safe_dump(self.document, file, default_flow_style=False)

    def _observer(self, *path: Path) -> Observer:
        asked = self.given.example
        given = Given(asked.serving_json.encode()) if asked else None
        return Observer(models.read(self.folder), given, Path(sys.executable), path)

    def _follow(self) -> None:
        """Take along the code that the model loads here, and that which it may."""
        self.given.on_step("following what the model imports")
        seen = self._observer(*code.roots()).observe()
        if seen.failure:
            raise seen.failure
        local = {one.key for one in seen.distributions.values() if local_path(one)}
        own = [one for one in seen.modules.values() if not one.owner or one.owner in local]
        loaded = [
            (one.name, one.file)
            for one in own
            if not code.is_package_folder(one.file) and not one.file.is_relative_to(self.folder)
        ]
        self._take(followed.followed(loaded, self.given.python_model.defined_in()))
        self._write_mlmodel()

    def _see_that_it_is_read(self) -> None:
        """See that envd reads what was written."""
        try:
            found = gather.read(models.read(self.folder), Settings(self.folder))
        except EnvdError as error:
            text = error.message.replace(str(self.folder), str(self.target))
            raise RequestInvalidError(text, **error.metadata) from error
        self.notes += [one.message for one in found.notes if one.code == "CREDENTIALS_CUT"]


def _local(given: str, name: str) -> Path:
    """Return where the artifact *given* lies here; MLflow brings what lies elsewhere."""
    parts = urlsplit(given)
    if parts.scheme in {"", "file"}:
        path = Path(url2pathname(parts.path) if parts.scheme else given)
        if not path.exists():
            message = f"the artifact `{name}` is not there: `{given}`"
            raise RequestInvalidError(message, artifact=name)
        return path.resolve()
    try:
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415
    except ImportError as error:
        message = f"the artifact `{name}` is a URI, which takes MLflow to fetch; install it"
        raise RequestInvalidError(message, artifact=name) from error
    return Path(download_artifacts(given))
