"""Clears away what dead processes left: starting is recovering."""

from __future__ import annotations

import shutil
from pathlib import Path

from envd import durable, scratch
from envd.store import layout, removal, root
from envd.store.store import Store


def leftovers(store: Store) -> None:
    """Send half builds and what was on its way out to the trash, and delete small remains."""
    if root.is_newer(store.layout):
        return
    for above, prefix in ((store.layout.scratch, ""), layout.IN_MEMORY):
        for folder in scratch.left(above, prefix):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in _where_small_files_are(store):
        durable.remove_unfinished(folder)
    for home in store.layout.environments.glob("*"):
        if not (home / "ready.json").exists():
            _not_ready(store, home)


def _where_small_files_are(store: Store) -> list[Path]:
    names = (
        "failures", "logs", "pins", "pythons", "specs/*", "wheels/*", "models/*", "cache/digests",
        "environments/*", "environments/*/used-by",
    )  # fmt: skip
    home = store.layout.root
    return [home, *(folder for name in names for folder in home.glob(name))]


def _not_ready(store: Store, home: Path) -> None:
    # In the order of builders and removers, who hold the one and then the other.
    with store.unbuilt(home.name) as is_unbuilt:
        if is_unbuilt and not (home / "ready.json").exists():
            removal.doomed(store, home.name)


def superseded(store: Store) -> None:
    """Send attempts that newer ones have replaced and nobody uses any more to the trash."""
    for env_id in store.ids():
        replaced(store, env_id)


def replaced(store: Store, env_id: str) -> None:
    """Send the attempts at *env_id* that a newer one has replaced to the trash, if unused."""
    # Whoever wants a lease waits while this looks; so it looks only where there is something.
    if len(store.attempts(env_id)) > 1 and not root.is_newer(store.layout):
        _superseded(store, env_id)


def _superseded(store: Store, env_id: str) -> None:
    with store.unbuilt(env_id) as is_unbuilt:
        found = store.read(env_id)
        # From then on a lease is one on the attempt that is ready, which nobody replaces
        # meanwhile; a rename may take long on a disk with much to do.
        with store.unused(env_id) as is_unused:
            pass
        if is_unbuilt and is_unused and found:
            store.discard_attempts(env_id, but=found.manifest.attempt)
