"""The specs asked for so far, and what each resolved to."""

from __future__ import annotations

import json
import os
from pathlib import Path

from envd import durable
from envd.lock import Lock
from envd.lock.lock import from_document as lock_from_document
from envd.spec import Spec
from envd.spec.spec import from_canonical
from envd.store.layout import Layout


class Specs:
    """The canonical specs and the locks kept below one root, by spec_key."""

    def __init__(self, layout: Layout) -> None:
        """Look below the root of *layout*."""
        self._layout = layout

    def spec(self, spec_key: str) -> Spec | None:
        """Return the spec kept under *spec_key*, or None."""
        try:
            return from_canonical(self._layout.spec(spec_key).read_text())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def complete(self, prefix: str) -> str | None:
        """Return the one key that begins with *prefix*, or None."""
        found = [one.name for one in (self._layout.root / "specs").glob(f"{prefix}*")]
        return found[0] if len(found) == 1 else None

    def keep(self, spec: Spec) -> None:
        """Keep the canonical document of *spec*, so that keys can be explained later.

        It is as young as when somebody last asked for it to be built.
        """
        path = self._layout.spec(spec.key)
        if not path.exists():
            durable.write_json(path, json.loads(spec.canonical()))
        os.utime(path.parent)

    def lock(self, spec_key: str, day: str | None = None) -> Lock | None:
        """Return the lock cached under *spec_key*, for a model logged on *day*, or None."""
        return _read(self.lock_path(spec_key, day))

    def env_ids(self, spec_key: str) -> set[str]:
        """Return the ids of the environments that the kept locks of a spec come to."""
        spec = self.spec(spec_key)
        paths = self._layout.lock(spec_key).parent.glob("lock*.json") if spec else ()
        return {one.env_id(spec.python) for path in paths if spec and (one := _read(path))}

    def artifacts(self) -> set[str]:
        """Return the SHA-256 of all that the kept locks name."""
        found: set[str] = set()
        for path in (self._layout.root / "specs").glob("*/lock*.json"):
            if lock := _read(path):
                found |= {one.sha256 for one in lock.artifacts}
        return found

    def lock_path(self, spec_key: str, day: str | None = None) -> Path:
        """Return where that lock lies, or would."""
        of_month, of_day = self._layout.lock(spec_key), self._layout.lock(spec_key, day or "")
        return of_day if of_day.exists() else of_month

    def keep_lock(self, spec_key: str, lock: Lock, day: str | None = None) -> None:
        """Cache *lock*, of a model logged on *day*, under *spec_key*.

        Under the day as well where it depends on it; else it takes the place of one that did.
        """
        durable.write_checked(self._layout.lock(spec_key, lock.day), lock.document())
        if day and not lock.day:
            self._layout.lock(spec_key, day).unlink(missing_ok=True)


def _read(path: Path) -> Lock | None:
    try:
        return lock_from_document(durable.read_checked(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None
