"""Drops the small things that nothing refers to any more: locks, logs, marks, digests."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from envd import held
from envd.store import digests as known
from envd.store.caches import Download
from envd.store.leases import Holders
from envd.store.record import Record
from envd.store.store import Store

_LOG = re.compile(r"[0-9a-f]{64}|(worker|template)-.+")


def specs(store: Store, unused_s: float) -> None:
    """Drop the specs and locks that were made *unused_s* ago or earlier and come to nothing.

    What several specs come to is one environment: each of them is needed as long as it is
    there, or its models would have to be locked again; and while it is being built.
    """
    holders = store.holders()
    for folder in (store.layout.root / "specs").glob("*"):
        if _age_s(store, folder) < unused_s or _is_needed(store, folder.name, holders):
            continue
        with held.if_free(store.layout.held(f"spec-{folder.name}")) as is_free:
            # Who has just let go of it may have made it anew, or begun to install.
            is_old = is_free and _age_s(store, folder) >= unused_s
            if is_old and not _is_needed(store, folder.name, store.holders()):
                shutil.rmtree(folder, ignore_errors=True)


def logs(store: Store, unused_s: float) -> None:
    """Drop the logs of builds, workers and templates that were written *unused_s* ago or earlier.

    Those of kept specs stay, and those of specs that are being locked.
    """
    working = store.holders().working()
    for path in store.layout.logs.glob("*.log"):
        key = path.stem
        is_kept = f"spec-{key}" in working or store.layout.spec(key).exists()
        if _LOG.fullmatch(key) and not is_kept and _age_s(store, path) >= unused_s:
            path.unlink(missing_ok=True)


def models(store: Store, records: Iterable[Record]) -> None:
    """Drop the marks of models that are gone from the environments of *records*."""
    for one in records:
        if any(_is_gone(model) for model in one.models):
            _drop_marks(store, one.id)


def digests(
    store: Store, artifacts: Collection[str], kept: Iterable[Download], grace_s: float
) -> None:
    """Drop what is known of artifacts that are neither *artifacts* nor *kept* in the cache.

    As long as the cache has one, what its files were at first tells whether they are so yet.
    """
    releases = {one.subject for one in kept if one.kind == "uv"}
    for path in (store.layout.downloads / "digests").glob("[!.]*"):
        if path.name in artifacts or _age_s(store, path) < grace_s:
            continue
        if known.release(path) not in releases:
            path.unlink(missing_ok=True)


def _is_needed(store: Store, spec_key: str, holders: Holders) -> bool:
    # In this order: who builds lets go when it is there.
    return any(
        holders.is_building(one) or store.layout.manifest(one).exists()
        for one in store.specs.env_ids(spec_key)
    )


def _drop_marks(store: Store, env_id: str) -> None:
    with contextlib.suppress(OSError):
        for mark in store.layout.used_by(env_id).glob("[!.]*"):
            if _is_gone(os.fsdecode(mark.read_bytes())):
                mark.unlink(missing_ok=True)
        # So that whoever lists looks again.
        os.utime(store.layout.environment(env_id))


def _is_gone(model: str) -> bool:
    """Whether nothing is at the absolute path *model*; what cannot be looked at may be there."""
    try:
        Path(model).stat()
    except (FileNotFoundError, NotADirectoryError):
        return Path(model).is_absolute()
    except (OSError, ValueError):
        return False
    return False


def _age_s(store: Store, path: Path) -> float:
    with contextlib.suppress(OSError):
        return max(0.0, store.clock.of_files() - path.stat().st_mtime)
    return 0.0
