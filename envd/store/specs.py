"""The specs asked for so far, and what each resolved to."""

from __future__ import annotations

import json
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

    def keep(self, spec: Spec) -> None:
        """Keep the canonical document of *spec*, so that keys can be explained later."""
        if not self._layout.spec(spec.key).exists():
            durable.write_json(self._layout.spec(spec.key), json.loads(spec.canonical()))

    def lock(self, spec_key: str, day: str | None = None) -> Lock | None:
        """Return the lock cached under *spec_key*, for a model logged on *day*, or None."""
        try:
            text = self.lock_path(spec_key, day).read_text()
            return lock_from_document(json.loads(text))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def lock_path(self, spec_key: str, day: str | None = None) -> Path:
        """Return where that lock lies, or would."""
        of_month, of_day = self._layout.lock(spec_key), self._layout.lock(spec_key, day or "")
        return of_day if of_day.exists() else of_month

    def keep_lock(self, spec_key: str, lock: Lock, day: str | None = None) -> None:
        """Cache *lock*, of a model logged on *day*, under *spec_key*.

        Under the day as well where it depends on it; else it takes the place of one that did.
        """
        durable.write_json(self._layout.lock(spec_key, lock.day), lock.document())
        if day and not lock.day:
            self._layout.lock(spec_key, day).unlink(missing_ok=True)
