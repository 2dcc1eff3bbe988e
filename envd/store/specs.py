"""The specs asked for so far, and what each resolved to."""

from __future__ import annotations

import json

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

    def lock(self, spec_key: str) -> Lock | None:
        """Return the lock cached under *spec_key*, or None."""
        try:
            return lock_from_document(json.loads(self._layout.lock(spec_key).read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_lock(self, spec_key: str, lock: Lock) -> None:
        """Cache *lock* under *spec_key*."""
        durable.write_json(self._layout.lock(spec_key), lock.document())
