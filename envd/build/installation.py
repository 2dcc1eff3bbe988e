"""Tells how far uv is with an installation, which it does not say itself.

It names the large ones of what it downloads, and everything when all is over. What it has
fetched from an index lies in its cache as `wheels-*/<index>/<name>/<version>-<tags>`, and
what it has installed in the prefix as `<name>-<version>.dist-info`. Where the cache is laid
out in another way one day, the second is what is left to count.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from envd.events import Progress
from envd.lock.lock import Package


class Installation:
    """The packages of one lock on their way into one prefix."""

    def __init__(self, packages: Iterable[Package], cache: Path, prefix: Path) -> None:
        """Count what of *packages* is in uv's *cache*, or in *prefix*."""
        found = list(packages)
        self._total = len(found)
        # What envd keeps is here from the beginning.
        self._missing = [one for one in found if one.origin != "kept"]
        self._cache, self._prefix = cache, prefix
        self._bytes = 0

    def progress(self, size: int) -> Progress:
        """Return how far it is, *size* bytes having been written; it never goes back."""
        self._missing = [one for one in self._missing if not self._is_fetched(one)]
        fetched = self._total - len(self._missing)
        installed = sum(1 for _ in self._prefix.glob("lib/python*/site-packages/*.dist-info"))
        self._bytes = max(self._bytes, size)
        return Progress(min(self._total, max(fetched, installed)), self._total, self._bytes)

    def _is_fetched(self, package: Package) -> bool:
        name = f"{package.name}/{package.version}-*"
        found = chain.from_iterable(
            self._cache.glob(f"wheels-*/{index}/{name}") for index in ("pypi", "index/*")
        )
        # Beside it lie files: a lock as soon as it begins, metadata since the resolution.
        return any(one.is_dir() for one in found)
