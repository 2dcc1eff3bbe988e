"""Removes what is not worth its place: environments by `envd.store.gc`, downloads nothing uses."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from envd import failpoint
from envd.lock import Artifact
from envd.settings import values
from envd.settings.sections import Gc
from envd.store import caches, forgetting, gc, removal, sweep, trees
from envd.store.caches import Caches, Download
from envd.store.gc import Disk, Limits, Verdict
from envd.store.parts import Parts
from envd.store.record import Record
from envd.store.store import Store

log = logging.getLogger(__name__)

# Once the cache is too large by itself, so much of it stays that not every build begins a gc.
_SLACK = 0.9


@dataclass(frozen=True, slots=True)
class Criteria:
    """What gc is told: limits in the place of the settings', and whether to remove anything.

    Ages are seconds, sizes bytes; `min_free` is bytes or a percentage of the disk. What a
    build has to leave is a `reserve`, which the disk is to have free besides.
    """

    force: bool
    max_age: float | None = None
    unused_for: float | None = None
    max_size: int | None = None
    min_free: str | None = None
    keep: int | None = None
    reserve: int = 0

    @property
    def is_limited(self) -> bool:
        """Whether it names a limit: then what was just built is not spared."""
        limits = (self.max_age, self.unused_for, self.max_size, self.min_free)
        return any(one is not None for one in limits)


@dataclass(frozen=True, slots=True)
class Collected:
    """A verdict on every environment, what the downloads took, and what went of all, in bytes."""

    verdicts: tuple[Verdict, ...]
    downloads: int
    downloads_freed: int
    is_cache_in_use: bool
    freed: int

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def from_document(document: dict[str, Any]) -> Collected:
    """Return what `Collected.document` described."""
    verdicts = tuple(Verdict(**one) for one in document["verdicts"])
    return Collected(**(document | {"verdicts": verdicts}))


def collect(store: Store, settings: Gc, criteria: Criteria) -> Collected:
    """Remove what is not worth its place, or only say what that is.

    What goes is in the trash afterwards, which somebody has to empty.
    """
    if not store.layout.root.exists():
        return Collected((), 0, 0, is_cache_in_use=False, freed=0)
    disk = shutil.disk_usage(store.layout.root)
    held = limits(settings, criteria, disk.total)
    if criteria.force:
        sweep.leftovers(store)
        sweep.superseded(store)
        store.failures.forget_old()
    found, parts = Caches(store.layout, store.clock.of_files), Parts(store.layout)
    records = [parts.added(one) for one in (*store.records(), *store.deleting())]
    downloads = found.downloads()
    unused = _unused(store, records, downloads, held, settings)
    free = disk.free + _given_back(store.layout.trash)
    verdicts = gc.choose(records, held, _disk(found, downloads, unused, free), store.clock.now())
    if not criteria.force:
        return _forecast(records, verdicts, downloads, unused)
    failpoint.reach("gc.chosen")
    verdicts = [_removed(store, *pair) for pair in zip(records, verdicts, strict=True)]
    staying = _staying(records, verdicts)
    cutoff_s = max(held.unused_s, settings.grace)
    forgetting.specs(store, cutoff_s)
    forgetting.logs(store, cutoff_s)
    forgetting.models(store, staying)
    downloads_now = found.downloads()
    evicted = found.evict(_unused(store, staying, downloads_now, held, settings))
    kept = [one for one in downloads_now if one.path.exists()]
    forgetting.digests(store, _artifacts(staying), kept, settings.grace)
    return Collected(
        tuple(verdicts),
        sum(one.size for one in downloads),
        evicted.freed,
        bool(evicted.left),
        sum(one.own for one in verdicts if one.goes) + evicted.freed,
    )


def limits(settings: Gc, criteria: Criteria, disk_bytes: int) -> Limits:
    """Return what is to hold: what *criteria* name, else what *settings* say."""
    given = {
        "max_age_s": criteria.max_age,
        "unused_s": criteria.unused_for,
        "max_bytes": criteria.max_size,
        "keep": criteria.keep,
        "min_free": values.share(criteria.min_free, disk_bytes) if criteria.min_free else None,
    }
    named: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    of_settings = Limits(
        max_age_s=settings.max_age,
        unused_s=settings.unused_for,
        max_bytes=settings.max_size,
        min_free=values.share(settings.min_free, disk_bytes),
        keep=settings.keep,
        grace_s=0.0 if criteria.is_limited else settings.grace,
        slack=1.0 if criteria.is_limited else _SLACK,
    )
    found = replace(of_settings, **named)
    return replace(found, min_free=max(found.min_free, criteria.reserve))


def _disk(
    found: Caches, downloads: Sequence[Download], unused: Sequence[Download], free: int
) -> Disk:
    going = sum(one.size - one.linked for one in unused)
    staying = sum(one.size - one.linked for one in downloads) - going
    return Disk(free=free, other=found.other_bytes() + staying, unused=going)


def _given_back(trash: Path) -> int:
    """Return the bytes that will be free when *trash* has been emptied."""
    tree = trees.measure(trash)
    whole = [one for key, one in tree.shared.items() if tree.names[key] >= one.st_nlink]
    return tree.alone + sum(one.st_size for one in whole)


def _unused(
    store: Store,
    records: Sequence[Record],
    downloads: Sequence[Download],
    held: Limits,
    settings: Gc,
) -> list[Download]:
    """Return those of *downloads* that neither *records* nor a kept lock uses."""
    holders = store.holders()
    # What is being built anew has no manifest, and one may be damaged.
    if holders.leased().keys() - {one.id for one in records if one.packages is not None}:
        return []
    # A build under way may need what it has just fetched.
    grace_s = settings.grace if holders.working() else held.grace_s
    models = {Path(one) for record in records for one in record.models}
    # Nothing else depends on what the locks name, and there may be thousands of them.
    has_wheels = any(one.kind == "wheel" for one in downloads)
    return [
        one
        for one in caches.unused(
            downloads,
            _artifacts(records).values(),
            locked=store.specs.artifacts() if has_wheels else (),
            grace_s=grace_s,
            models_s=grace_s,
        )
        if one.kind != "model"
        or one.age_s >= held.unused_s
        or not any(path.is_relative_to(one.path) for path in models)
    ]


def _artifacts(records: Iterable[Record]) -> dict[str, Artifact]:
    return {one.sha256: one for record in records for one in record.packages or ()}


def _forecast(
    records: Sequence[Record],
    verdicts: Sequence[Verdict],
    downloads: Sequence[Download],
    unused: Sequence[Download],
) -> Collected:
    going = sum(one.size - one.linked for one in unused)
    alone = sum(one.own for one in verdicts if one.goes)
    freed = gc.usage(records) - gc.usage(_staying(records, verdicts)) + going
    size = sum(one.size for one in downloads)
    return Collected(tuple(verdicts), size, freed - alone, is_cache_in_use=False, freed=freed)


def _removed(store: Store, record: Record, verdict: Verdict) -> Verdict:
    """Remove what *verdict* says goes, or return why it stays after all."""
    if verdict.goes and (reason := removal.unless_used(store, record)):
        return replace(verdict, goes=False, reason=reason)
    return verdict


def _staying(records: Sequence[Record], verdicts: Sequence[Verdict]) -> list[Record]:
    gone = {one.id for one in verdicts if one.goes}
    return [one for one in records if one.id not in gone]
