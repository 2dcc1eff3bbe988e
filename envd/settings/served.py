"""The models that have a name: each a table of its own in the settings, `[models.NAME]`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from envd.errors import SettingsInvalidError
from envd.secrets import Secret, guarded
from envd.settings import fields
from envd.settings.fields import setting
from envd.settings.values import (
    Bytes,
    Cores,
    Count,
    CountOrAuto,
    CountOrZero,
    Gpus,
    Location,
    ModelUri,
    Seconds,
    Table,
    Variables,
)

_LONGEST_NAME = 255
# How like a setting a name must be to be taken for a slip of the pen.
_LIKE = 0.8


@dataclass(frozen=True, slots=True)
class Served:
    """A model that has a name, and what it needs around it.

    What is None is as `[workers]` says; of `batch`, as the model itself says.
    """

    name: str
    uri: ModelUri = setting(ModelUri(""), "The model: a directory or a URI.")
    env: Variables = setting(
        Variables(()), "Variables that its workers get, and nobody else.", is_secret=True
    )
    env_file: Location = setting(
        Location(""),
        "A file of further ones, a KEY=VALUE in each line, that only its owner can read: "
        "the daemon's user or root. `env` goes before it.",
    )
    preload: bool = setting(
        default=False, meaning="Build its environment and load it when the daemon starts."
    )
    check: bool | None = setting(
        None,
        "Whether it has to answer its own input example before it counts as loaded; else as "
        "`models.check`.",
    )
    workers: CountOrAuto | None = setting(
        None, "How many workers it has while it is asked; else as `workers.per_model`."
    )
    gpu: Gpus | None = setting(
        None,
        "The GPUs its workers see, as in `0,1`: an empty text hides them all; else all are seen.",
    )
    batch: bool | None = setting(
        None,
        "Whether its answer to some rows is the same whatever other rows there are (but for the "
        "last digits, where rows are multiplied together), so that requests may be answered in "
        "one call; else as the model says (`metadata.envd.batch`).",
    )
    max_batch: Count | None = setting(
        None, "How many requests one call answers at most; else as `workers.max_batch`."
    )
    template: bool | None = setting(
        None, "Whether its workers may be forked from a template; else as `workers.template`."
    )
    model_config: Table = setting(
        Table(""), "MLflow's `model_config`, which the model is loaded with."
    )
    queue: Count | None = setting(
        None, "How many of its requests wait at most; else as `workers.queue`."
    )
    concurrency: Count | None = setting(
        None,
        "How many of its requests are with one worker at once; else as `workers.concurrency`.",
    )
    network: bool | None = setting(
        None, "Whether it may use the network; else as `workers.network`."
    )
    memory_limit: Bytes | None = setting(
        None, "The most memory a worker of it may take; else as `workers.memory_limit`."
    )
    cpu_limit: Cores | None = setting(
        None, "How many processors a worker of it may use; else as `workers.cpu_limit`."
    )
    process_limit: CountOrZero | None = setting(
        None, "How many processes a worker of it may have; else as `workers.process_limit`."
    )
    time_limit: Seconds | None = setting(
        None, "The longest a request to it may take; else as `workers.time_limit`."
    )


ROWS = {row.name: row for row in fields.of("models.NAME", Served)}
# Where the key of a table, or the table itself where there is none, stands: `file:line`.
Where = Callable[[str], str]


def read(name: str, value: object, plain: Collection[str], where: Where) -> Served:
    """Return the served model called *name* in the settings, whose table is *value*.

    A text is its `uri`. *plain* are the names that mean something else there.

    Raises:
        SettingsInvalidError: it cannot be used.
    """
    if refused := refused_name(name):
        message = f"{where('')}: {refused}"
        raise SettingsInvalidError(message, setting="models")
    if not isinstance(value, dict):
        _check_not_meant(name, plain, where(""))
        return Served(name, uri=_parse(name, "uri", value, where("")))
    for key in value:
        if key not in ROWS:
            own = f"[models.{name}] {key}"
            message = f"{where(key)}: there is no setting `{own}`; see `envctl config`"
            raise SettingsInvalidError(message, setting=own)
    if "uri" not in value:
        message = f"{where('')}: `[models.{name}]` has no `uri`; give a directory or a URI"
        raise SettingsInvalidError(message, setting=f"models.{name}.uri")
    return Served(name, **{key: _parse(name, key, one, where(key)) for key, one in value.items()})


def from_document(document: Mapping[str, Any]) -> Served:
    """Return the served model that `dataclasses.asdict` described, as JSON."""
    env = tuple((key, Secret(value)) for key, value in document["env"])
    return Served(**{**document, "env": env, "uri": guarded(document["uri"])})


def _parse(name: str, key: str, value: object, where: str) -> Any:
    row = ROWS[key]
    own = fields.Field(f"models.{name}", key, row.type, row.default, row.meaning, row.is_secret)
    return fields.parse(own, value, where)


def refused_name(name: str) -> str | None:
    """Say why *name* is none for a model, if so."""
    is_text = name == name.strip() and name.isprintable() and 0 < len(name) <= _LONGEST_NAME
    if is_text and not name.startswith(".") and not set(name) & set("/:"):
        return None
    return (
        f"{name!r} is no name for a model; give 1 to {_LONGEST_NAME} characters, "
        "the first no `.`, none a `/` or a `:`"
    )


def _check_not_meant(name: str, plain: Collection[str], where: str) -> None:
    """See that a text is not the value of a setting whose name was misspelt."""
    if meant := difflib.get_close_matches(name, plain, 1, _LIKE):
        message = (
            f"{where}: there is no setting `[models] {name}`: write `{meant[0]}`, "
            f'or `[models.{name}]` with `uri = "..."` for a model of that name'
        )
        raise SettingsInvalidError(message, setting=f"models.{name}")
