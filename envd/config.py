"""The settings: one table of fields drives the file, the variables, `envctl config` and the docs.

A setting is a field of a class in `envd.settings.sections`: its name, its type, its default
and its meaning stand there and nowhere else. Values come, the later winning, from the
defaults, a TOML file (`--config`, `ENVD_CONFIG`, else `<config home>/envd/config.toml`),
and variables named `ENVD_SECTION__KEY`. Models that have a name are tables of the file's
(`envd.settings.served`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from envd.errors import SettingsInvalidError
from envd.secrets import guarded
from envd.settings import served, settings_file
from envd.settings.fields import Field, of, parse
from envd.settings.sections import (
    Access,
    Build,
    Conda,
    Daemon,
    Gc,
    Http,
    Index,
    Models,
    Python,
    Resolve,
    Security,
    Workers,
)
from envd.settings.served import Served
from envd.settings.values import absolute


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, and the root they are for."""

    root: Path
    index: Index = Index()
    resolve: Resolve = Resolve()
    conda: Conda = Conda()
    build: Build = Build()
    python: Python = Python()
    models: Models = Models()
    security: Security = Security()
    workers: Workers = Workers()
    daemon: Daemon = Daemon()
    access: Access = Access()
    http: Http = Http()
    gc: Gc = Gc()
    served: tuple[Served, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def where(self, key: str) -> str:
        """Return where the setting *key*, `section.name`, is set, as messages begin."""
        place = self.places.get(key)
        return f"{place}: `{key}`" if place else f"`{key}`"


# What of the settings is no section.
_OTHER = ("root", "served", "places")
# Settings by section and name, and an option of a command for each: its value, and what it is.
Options = Mapping[tuple[str, str], tuple[object, str]]
_NO_OPTIONS: Options = {}


def fields() -> Iterator[Field]:
    """Yield every setting but those of single models, section by section."""
    for section, cls in _sections().items():
        yield from of(section, cls)


def _sections() -> dict[str, type]:
    types = typing.get_type_hints(Settings)
    return {
        one.name: types[one.name] for one in dataclasses.fields(Settings) if one.name not in _OTHER
    }


def default_root() -> Path:
    """Return the root a user has without saying anything."""
    return platformdirs.user_state_path("envd")


def load(
    *,
    root: Path | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    options: Options = _NO_OPTIONS,
) -> Settings:
    """Read the settings from *file*, *environ* and *options*; None is none.

    Raises:
        SettingsInvalidError: the file cannot be read, or a setting is unknown or wrong.
    """
    given = settings_file.read(file_of(file, environ), list(fields()))
    rows = {(row.section, row.name): row for row in fields()}
    of_variables = _from_variables(environ)
    of_options = {
        key: parse(rows[key], value, place)
        for key, (value, place) in options.items()
        if value is not None
    }
    values = given.values | of_variables | of_options
    places = given.places | {key: rows[key].variable for key in of_variables}
    places |= {key: options[key][1] for key in of_options}
    sections: dict[str, Any] = {
        section: cls(**{name: value for (of, name), value in values.items() if of == section})
        for section, cls in _sections().items()
    }
    named = environ.get("ENVD_ROOT")
    chosen = root or (Path(named) if named else default_root())
    return Settings(
        _usable(chosen),
        **sections,
        served=given.served,
        places={".".join(key): place for key, place in places.items()},
    )


def _usable(given: Path) -> Path:
    try:
        root = Path(absolute(str(given)))
    except ValueError as error:
        message = f"the root cannot be {str(given)!r}: {error}"
        raise SettingsInvalidError(message) from error
    # Its path stands in the files of installers, line by line.
    if re.search(r"[\x00-\x1f\x7f]", str(root)):
        message = f"the root {str(root)!r} has control characters; give another"
        raise SettingsInvalidError(message)
    return root


def document(settings: Settings) -> dict[str, Any]:
    """Return *settings* as JSON values, for a child that must have the same."""
    found = dataclasses.asdict(settings) | {"root": str(settings.root)}
    del found["places"]
    return found


def digest(settings: Settings) -> str:
    """Return what tells whether two settings build the same, and gives none of them away."""
    text = json.dumps(document(dataclasses.replace(settings, served=())), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def from_document(given: Mapping[str, Any]) -> Settings:
    """Return the settings that `document` described."""
    sections: dict[str, Any] = {}
    for row in fields():
        value = given[row.section][row.name]
        sections.setdefault(row.section, {})[row.name] = (
            tuple(map(guarded, value)) if isinstance(value, list) else guarded(value)
        )
    classes = _sections()
    made: dict[str, Any] = {name: classes[name](**rows) for name, rows in sections.items()}
    return Settings(
        Path(given["root"]), **made, served=tuple(map(served.from_document, given["served"]))
    )


def passed(names: Collection[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables called *names*, in either case, for a child to have.

    A child gets no other variable of the daemon's.
    """
    wanted = {name.upper() for name in names}
    return {key: value for key, value in environ.items() if key.upper() in wanted}


def file_of(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the settings file to read, None where nobody named one and none lies at home."""
    named = given or (Path(environ["ENVD_CONFIG"]) if environ.get("ENVD_CONFIG") else None)
    path = named or platformdirs.user_config_path("envd") / "config.toml"
    return path if named or path.exists() else None


def _from_variables(environ: Mapping[str, str]) -> dict[tuple[str, str], object]:
    table = {row.variable: row for row in fields()}
    given = {}
    for variable, value in environ.items():
        if not variable.startswith("ENVD_") or "__" not in variable:
            continue
        row = table.get(variable)
        if row is None:
            message = f"there is no setting `{variable}`; see `envctl config`"
            raise SettingsInvalidError(message, setting=variable)
        given[row.section, row.name] = parse(row, value, variable)
    return given


def value(section: str, name: str, given: object, where: str) -> Any:
    """Return *given*, which stands in *where*, as the setting takes it.

    Raises:
        SettingsInvalidError: it does not.
    """
    (row,) = (one for one in fields() if (one.section, one.name) == (section, name))
    return parse(row, given, where)
