"""Which modules the wheel brings that an index has under a name: it is looked into, and not run."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.utils import canonicalize_name

from envd.child import Limits
from envd.errors import EnvdError
from envd.lock.sources import Sources
from envd.lock.uv import Uv
from envd.scratch import scratch
from envd.spec import Indexes

_LONGEST_S = 60


@dataclass(frozen=True, slots=True)
class Offered:
    """A distribution that an index has, and the top-level modules of its wheel."""

    name: str
    version: str
    modules: frozenset[str]


def look(uv: Uv, python: Path, indexes: Indexes, name: str) -> Offered | None:
    """Return what *indexes* have under *name* for *python*; None for no wheel, or no answer.

    It is unpacked where nothing runs of it, and removed again. Sources would have to be built.
    """
    limits = Limits(time.monotonic() + _LONGEST_S)
    try:
        with scratch(uv.settings.root, "offered") as folder:
            finished = replace(uv, limits=limits).in_rooms(folder).run(
                [
                    "pip", "install", "--target", str(folder), "--no-deps", "--only-binary=:all:",
                    "--python", str(python), name,
                ],
                on_line=lambda _: None,
                sources=Sources(indexes),
            )  # fmt: skip
            return _unpacked(folder, name) if finished.status == 0 else None
    except (EnvdError, OSError):
        return None


def _unpacked(folder: Path, name: str) -> Offered | None:
    entries = [one.name for one in folder.iterdir()]
    for entry in entries:
        head, _, version = entry.removesuffix(".dist-info").rpartition("-")
        if entry.endswith(".dist-info") and canonicalize_name(head) == canonicalize_name(name):
            names = (one.partition(".")[0] for one in entries if not one.endswith(".dist-info"))
            return Offered(canonicalize_name(name), version, frozenset(filter(None, names)))
    return None
