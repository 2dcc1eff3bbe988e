"""An example of the settings file: each setting in a comment, with its meaning and its default."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from envd import config
from envd.settings import served, values
from envd.settings.fields import Field

_WIDTH = 96
_HEAD = """\
The settings of envd, each with what it is where nobody sets it. `envctl config` shows those in
force. A variable ENVD_SECTION__KEY goes before the file. `envd` reads this again on SIGHUP, and
names in its log what takes a restart.
"""
_MODELS = """\
A model gets a name, and settings of its own, by a table like this one, or in short by a line
`NAME = "URI"` under [models]. What is left out is as [workers] has it for all models.
"""
# The largest first.
_UNITS: dict[object, tuple[tuple[str, int], ...]] = {
    values.Seconds: (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)),
    values.Bytes: (("GiB", 1 << 30), ("MiB", 1 << 20), ("GB", 10**9)),
}
# What has no default, or none that shows how it is written.
_SAMPLES: dict[str, Any] = {
    "uri": "/srv/models/chat",
    "env": {"MODE": "fast"},
    "env_file": "/etc/envd/chat.env",
    "check": True,
    "workers": 2,
    "gpu": "0",
    "batch": True,
    "max_batch": 64,
    "template": True,
    "model_config": {"temperature": 0.2},
    "queue": 1000,
    "concurrency": 16,
    "network": False,
    "memory_limit": "4GB",
    "cpu_limit": 2,
    "process_limit": 256,
    "time_limit": "30s",
}


def text() -> str:
    """Return the whole file, which sets nothing."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from _comment(_HEAD)
    section = ""
    for row in config.fields():
        if row.section != section:
            section = row.section
            yield from ("", f"[{section}]")
        yield from _row(row, row.default)
    yield from ("", *_comment(_MODELS), "", "#[models.chat]")
    for row in served.ROWS.values():
        yield from _row(row, _SAMPLES.get(row.name, row.default))


def _row(row: Field, value: object) -> Iterator[str]:
    yield ""
    yield from _comment(row.meaning)
    yield f"#{row.name} = {toml(in_units(row, list(value) if isinstance(value, tuple) else value))}"


def _comment(meaning: str) -> list[str]:
    return textwrap.wrap(meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def in_units(row: Field, value: Any) -> object:
    """Return *value* as one writes it: `never`, and durations and sizes in the largest unit."""
    if value == math.inf:
        return values.show(value)
    if not value or not isinstance(value, int | float):
        return value
    of_type = [_UNITS[one] for one in (row.type, *get_args(row.type)) if one in _UNITS]
    fitting = (f"{value // size:.0f}{unit}" for units in of_type for unit, size in units
               if value % size == 0)  # fmt: skip
    return next(fitting, value)


def toml(value: object) -> str:
    """Write *value* as the file has it; a table in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
