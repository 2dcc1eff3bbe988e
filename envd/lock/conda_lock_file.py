"""Writes `conda-lock.yml`, the lock of conda-lock (conda-lock-v1.schema.json)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple

from envd.errors import SolveFailedError
from envd.events import OnEvent, ignore
from envd.lock.conda import CondaQuestion
from envd.lock.rattler import Rattler
from envd.scratch import scratch
from envd.spec.conda_lock import PipPackage
from envd.spec.conda_package import CondaPackage

_WRITER = "envd.lock.conda_lock_writer"


def text(
    question: CondaQuestion,
    packages: Mapping[str, Sequence[CondaPackage]],
    pip: Sequence[PipPackage],
    rattler: Rattler,
    on_event: OnEvent = ignore,
) -> str:
    """Return the `conda-lock.yml` of *packages*, by platform, and of *pip*.

    It is that of *question*; equal arguments give equal texts.

    Raises:
        SolveFailedError: a package has no md5, and conda-lock takes none without.
        EnvdError: as `envd.lock.rattler.Rattler.run`.
    """
    for one in (one for found in packages.values() for one in found):
        if not one.md5:
            message = f"`{one.url}` has no md5, and cannot stand in a `conda-lock.yml`"
            raise SolveFailedError(message, packages=one.name)
    with scratch(rattler.settings.root, "conda") as folder:
        request = {
            "question": asdict(question),
            "packages": {key: [asdict(one) for one in found] for key, found in packages.items()},
            "pip": [astuple(one) for one in pip],
            "scratch": str(folder),
        }
        return str(rattler.run(_WRITER, request, on_event))
