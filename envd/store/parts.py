"""What environments are made of, which gc asks of thousands of them at once."""

from __future__ import annotations

import json
from typing import Any

from envd.errors import OUT_OF
from envd.lock import Artifact, Package
from envd.spec.conda_package import conda_package
from envd.store.layout import Layout
from envd.store.record import Record

_DAMAGE = (ValueError, KeyError, TypeError, RecursionError)


class Parts:
    """The packages and shares of environments, each kept once however many have it.

    No checksum is compared, which would take longer than all the rest: who made the list
    has done so. What gc errs in is fetched again.
    """

    def __init__(self, layout: Layout) -> None:
        """Read what is below the root of *layout*."""
        self._layout = layout
        self._packages: dict[str, Artifact] = {}
        self._shares: dict[tuple[str, int], tuple[str, int]] = {}

    def added(self, record: Record) -> Record:
        """Return *record* with its packages and shares, as it was where they cannot be told.

        Raises:
            OSError: this process may not have more files or memory.
        """
        try:
            document = json.loads(self._manifest(record.id))
            lock = document["lock"]
            packages = tuple(map(self._artifact, [*lock["conda"], *lock["packages"]]))
            shares = tuple(map(self._share, document["shares"]))
        except _DAMAGE:
            return record
        except OSError as error:
            if error.errno in OUT_OF:
                raise
            return record
        return record._replace(packages=packages, shares=shares)

    def _manifest(self, env_id: str) -> bytes:
        try:
            return self._layout.manifest(env_id).read_bytes()
        except FileNotFoundError:
            # Whoever uses what is to be removed needs its files until then.
            return self._layout.doomed(env_id).read_bytes()

    def _artifact(self, document: dict[str, Any]) -> Artifact:
        found = self._packages.get(document["sha256"])
        if found is None:
            found = conda_package(document) if "build" in document else Package(**document)
            self._packages[found.sha256] = found
        return found

    def _share(self, document: list[Any]) -> tuple[str, int]:
        sha256, size = document
        return self._shares.setdefault((sha256, size), (sha256, size))
