"""The settings: one table of fields drives the file, the variables, `envctl config` and the docs.

A setting is a field of one of the section classes below: its name, its type, its default
and its meaning stand there and nowhere else. Values come, the later winning, from the
defaults, a TOML file (`--config`, `ENVD_CONFIG`, else `<config home>/envd/config.toml`),
and variables named `ENVD_SECTION__KEY`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import tomllib
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import platformdirs

from envd import values
from envd.errors import SettingsInvalidError
from envd.values import (
    Bytes,
    Count,
    CountOrZero,
    IndexUrl,
    Location,
    Mirror,
    Prefix,
    Seconds,
    Share,
)


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True)
class Index:
    """Where packages come from."""

    urls: tuple[IndexUrl, ...] = _setting(
        (), "Package indexes, the first preferred; none means PyPI."
    )
    find_links: tuple[Location, ...] = _setting(
        (), "Directories or pages of wheels to look in as well."
    )
    offline: bool = _setting(False, "Never touch the network: only what is cached.")  # noqa: FBT003
    no_index: bool = _setting(False, "Use `find_links` only.")  # noqa: FBT003
    keyring: bool = _setting(False, "Ask the `keyring` command for credentials.")  # noqa: FBT003


@dataclass(frozen=True, slots=True)
class Resolve:
    """How what a model leaves open is settled."""

    as_of: Literal["month", "now"] = _setting(
        "month", "Resolve as of the month a model was logged in, or with today's packages."
    )
    repair: bool = _setting(True, "Mend what is known to break old models.")  # noqa: FBT003
    env_manager: Literal["virtualenv", "conda", "auto"] = _setting(
        "virtualenv",
        "What makes environments, as `--env-manager`; `auto` is conda for models whose conda "
        "packages PyPI does not have.",
    )


@dataclass(frozen=True, slots=True)
class Conda:
    """Where conda packages come from."""

    defaults: Literal["rewrite", "warn", "deny"] = _setting(
        "rewrite",
        "What becomes of Anaconda's own channels: conda-forge in their place, only a note, or "
        "the model is refused.",
    )
    channel_alias: IndexUrl = _setting(
        IndexUrl("https://conda.anaconda.org"), "Where channels that are no URL lie."
    )
    mirrors: tuple[Mirror, ...] = _setting(
        (), 'Channels fetched from elsewhere: `{ conda-forge = ["https://..."] }`.'
    )
    exe: Location = _setting(
        Location(""), "A conda, mamba or micromamba to solve with in the place of rattler."
    )
    auth_file: Location = _setting(
        Location(""), "Rattler's file of credentials; none means its own store."
    )


@dataclass(frozen=True, slots=True)
class Security:
    """What a model's files may ask for, besides packages of the indexes above."""

    profile: Literal["auto", "dev", "standard", "strict"] = _setting(
        "auto",
        "`dev` allows and notes, `standard` allows what is listed here, `strict` wheels only; "
        "`auto` is `dev` for the owner alone and `standard` for anybody else.",
    )
    indexes: tuple[Prefix, ...] = _setting((), "Indexes a model may name, by how their URLs begin.")
    sources: tuple[Prefix, ...] = _setting(
        (), "URLs and repositories a model may install from, by how they begin."
    )
    channels: tuple[str, ...] = _setting((), "Conda channels a model may use besides conda-forge.")
    local: bool = _setting(
        False,  # noqa: FBT003
        "Whether a model may bring packages of its own: wheels, source trees.",
    )
    variables: tuple[str, ...] = _setting(
        (), "Variables of envd's environment that a model's `${NAME}` may stand for."
    )


@dataclass(frozen=True, slots=True)
class Build:
    """How environments are built."""

    link_mode: Literal["hardlink", "copy", "clone", "symlink"] = _setting(
        "hardlink", "How files get from the download cache into an environment."
    )
    timeout: Seconds = _setting(Seconds(1800), "The longest a build may take.")
    silence: Seconds = _setting(
        Seconds(300), "A build that says nothing and moves no data for so long is stopped."
    )
    at_once: Count = _setting(Count(2), "How many builds run at once; the others wait.")
    reserve: Bytes = _setting(
        Bytes(1 << 30),
        "Free disk that a build leaves; it is refused or stopped where there is less.",
    )


@dataclass(frozen=True, slots=True)
class Python:
    """Which interpreters environments are built on."""

    match: Literal["minor", "exact"] = _setting(
        "minor", "`exact` refuses another patch release than the model asks for."
    )
    roots: tuple[Location, ...] = _setting((), "Directories that hold one Python per directory.")
    download: Literal["auto", "never"] = _setting(
        "auto", "Whether uv may download a Python that is not here."
    )


@dataclass(frozen=True, slots=True)
class Models:
    """Where models come from."""

    refresh: Seconds = _setting(
        Seconds(60), "How long the download of a model URI is used before it is asked again."
    )
    tracking_uri: str = _setting("", "MLflow's tracking server, for `runs:/` and `models:/`.")
    registry_uri: str = _setting("", "MLflow's model registry, where it is another server.")


@dataclass(frozen=True, slots=True)
class Workers:
    """How models run."""

    idle_timeout: Seconds = _setting(Seconds(900), "A worker unused for so long is stopped.")
    start_timeout: Seconds = _setting(Seconds(120), "The longest a model may take to load.")
    stop_grace: Seconds = _setting(Seconds(2), "Between asking a worker to stop and killing it.")
    template: bool = _setting(True, "Whether workers may be forked.")  # noqa: FBT003
    memory: Share = _setting(Share("75%"), "What workers may take together.")
    max_requests: CountOrZero = _setting(CountOrZero(0), "A worker is replaced after so many.")
    max_age: Seconds = _setting(Seconds(math.inf), "A worker that is so old is replaced.")
    max_memory: Bytes = _setting(Bytes(0), "A worker that takes more is replaced.")


@dataclass(frozen=True, slots=True)
class Daemon:
    """How the daemon listens and stops."""

    drain: Seconds = _setting(Seconds(30), "How long SIGTERM waits for requests under way.")
    max_message: Bytes = _setting(Bytes(64 << 20), "The largest request or answer.")


@dataclass(frozen=True, slots=True)
class Gc:
    """What is kept, and for how long."""

    max_size: Bytes = _setting(
        Bytes(50 * 10**9), "What environments and downloads may take together."
    )
    min_free: Share = _setting(
        Share("5%"), "Free disk that is restored by removing what is unused: a share or a size."
    )
    unused_for: Seconds = _setting(
        Seconds(30 * 86400), "An environment unused for so long is removed."
    )
    max_age: Seconds = _setting(
        Seconds(math.inf), "An environment built so long ago is removed, used or not."
    )
    keep: CountOrZero = _setting(
        CountOrZero(0), "How many of the environments used last are kept in any case."
    )
    grace: Seconds = _setting(Seconds(3600), "An environment built within this time is kept.")
    interval: Seconds = _setting(Seconds(3600), "How often the daemon looks for what to remove.")


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
    gc: Gc = Gc()


@dataclass(frozen=True, slots=True)
class Field:
    """One row of the table of settings."""

    section: str
    name: str
    type: Any
    default: object
    meaning: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"ENVD_{self.section}__{self.name}".upper()


def fields() -> Iterator[Field]:
    """Yield every setting, section by section."""
    for section in dataclasses.fields(Settings):
        if section.name == "root":
            continue
        section_class = typing.get_type_hints(Settings)[section.name]
        types = typing.get_type_hints(section_class)
        for row in dataclasses.fields(section_class):
            yield Field(
                section.name, row.name, types[row.name], row.default, row.metadata["meaning"]
            )


def default_root() -> Path:
    """Return the root a user has without saying anything."""
    return platformdirs.user_state_path("envd")


def load(
    *,
    root: Path | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Read the settings from *file* and *environ*.

    Raises:
        SettingsInvalidError: the file cannot be read, or a setting is unknown or wrong.
    """
    given = _from_file(file, environ) | _from_variables(environ)
    sections = {
        section.name: dataclasses.replace(
            typing.cast("Any", section.default),
            **{name: value for (of, name), value in given.items() if of == section.name},
        )
        for section in dataclasses.fields(Settings)
        if section.name != "root"
    }
    named = environ.get("ENVD_ROOT")
    chosen = root or (Path(named) if named else default_root())
    return Settings(_usable(chosen.expanduser().absolute()), **sections)


def _usable(root: Path) -> Path:
    # Its path stands in the files of installers, line by line.
    if re.search(r"[\x00-\x1f\x7f]", str(root)):
        message = f"the root {str(root)!r} has control characters; give another"
        raise SettingsInvalidError(message)
    return root


def document(settings: Settings) -> dict[str, Any]:
    """Return *settings* as JSON values, for a child that must have the same."""
    return dataclasses.asdict(settings) | {"root": str(settings.root)}


def digest(settings: Settings) -> str:
    """Return what tells whether two settings are the same, and gives none of them away."""
    text = json.dumps(document(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def from_document(given: Mapping[str, Any]) -> Settings:
    """Return the settings that `document` described."""
    sections: dict[str, Any] = {}
    for row in fields():
        value = given[row.section][row.name]
        sections.setdefault(row.section, {})[row.name] = (
            tuple(value) if isinstance(value, list) else value
        )
    types = typing.get_type_hints(Settings)
    return Settings(
        Path(given["root"]), **{name: types[name](**rows) for name, rows in sections.items()}
    )


def passed(names: Collection[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables called *names*, in either case, for a child to have.

    A child gets no other variable of the daemon's.
    """
    wanted = {name.upper() for name in names}
    return {key: value for key, value in environ.items() if key.upper() in wanted}


def _from_file(file: Path | None, environ: Mapping[str, str]) -> dict[tuple[str, str], object]:
    named = file or (Path(environ["ENVD_CONFIG"]) if environ.get("ENVD_CONFIG") else None)
    path = named or platformdirs.user_config_path("envd") / "config.toml"
    if named is None and not path.exists():
        return {}
    try:
        text = path.read_text()
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"cannot read the settings file `{path}`: {error}"
        raise SettingsInvalidError(message, file=path) from error
    table = {(row.section, row.name): row for row in fields()}
    given = {}
    for section, rows in document.items():
        # What is no table of known settings, an empty one included, is no setting either.
        under = rows if isinstance(rows, dict) and rows else {"": rows}
        for name, value in under.items():
            where = f"{path}:{_line_of(text, section, name)}"
            row = table.get((section, name))
            if row is not None:
                given[section, name] = _parse(row, value, where)
            elif rows != {} or section not in {known for known, _ in table}:
                key = f"[{section}] {name}" if name else section
                message = f"{where}: there is no setting `{key}`; see `envctl config`"
                raise SettingsInvalidError(message, file=path, setting=key)
    return given


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
        given[row.section, row.name] = _parse(row, value, variable)
    return given


def _line_of(text: str, section: str, name: str) -> int:
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            inside = stripped.partition("]")[0].strip("[ ") == section
            if inside and not name:
                return number
        elif (inside or not name) and re.match(rf'"?{re.escape(name or section)}"?\s*=', stripped):
            return number
    return 1


def _parse(row: Field, value: object, where: str) -> object:
    try:
        return values.parse(row.type, value)
    except ValueError as error:
        shown = values.without_secrets(value)
        message = f"{where}: `{row.section}.{row.name}` cannot be {shown!r}; {error}"
        raise SettingsInvalidError(message, setting=f"{row.section}.{row.name}") from error
