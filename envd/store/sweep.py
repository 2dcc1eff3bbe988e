"""Deletes what dead processes left: starting is recovering."""

from __future__ import annotations

import shutil
from pathlib import Path

from envd import durable, process
from envd.store.store import Store


def leftovers(store: Store) -> None:
    """Delete what was on its way out, the scratch of dead processes, and half builds."""
    for doomed in store.layout.trash.glob("*"):
        shutil.rmtree(doomed, ignore_errors=True)
    for folder in store.layout.scratch.glob("*"):
        if process.is_stamp_of_the_dead(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    for home in store.layout.environments.glob("*"):
        if not (home / "ready.json").exists():
            _half_built(store, home)


def _half_built(store: Store, home: Path) -> None:
    with store.unbuilt(home.name) as is_unbuilt:
        if is_unbuilt and not (home / "ready.json").exists():
            durable.remove_tree(home, store.layout.trash)


def superseded(store: Store) -> None:
    """Delete the attempts that newer ones have replaced and nobody uses any more."""
    for env_id in store.ids():
        with store.unbuilt(env_id) as is_unbuilt, store.unused(env_id) as is_unused:
            found = store.read(env_id)
            if is_unbuilt and is_unused and found:
                store.remove_attempts(env_id, but=found.manifest.attempt)
