"""A list of the published environments in sqlite: disposable, and checked at every listing.

The directory tree is the only truth. A row is good while the directory of its environment
has the mtime that it had before the row was read: publishing, removing an attempt and
recording a model all change it. Whatever is wrong with the file, rows are read anew.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from envd.store import trees
from envd.store.layout import Layout
from envd.store.leases import Holders
from envd.store.manifest import Manifest
from envd.store.record import Record

_VERSION = 2
_TIMEOUT_S = 1.0
# Filesystems date with a tick of some milliseconds: what changed within it looks the same.
_TICK_NS = 20_000_000
_KEPT_ASIDE = 3
# No list, half a list, another program's list, a directory, a pipe.
_DAMAGE = {
    sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
}  # fmt: skip


class Row(NamedTuple):
    """What the directory of an environment says of it, but for its last use."""

    id: str
    spec_key: str
    manager: str
    python: str
    created: float
    total: int
    own: int
    models: tuple[str, ...]
    base: str
    base_mtime_ns: int
    details: str
    damage: str = ""

    @classmethod
    def of(cls, manifest: Manifest, models: tuple[str, ...]) -> Row:
        """Return the row of an environment that *models* have used."""
        notes = [one.document() for one in (*manifest.notes, *manifest.lock.notes)]
        details = {
            "seconds": manifest.seconds,
            "requested": manifest.python_requested,
            "as_of": manifest.lock.as_of,
            "notes": notes,
        }
        return cls(
            id=manifest.env_id,
            spec_key=manifest.spec_key,
            manager=manifest.manager,
            python=manifest.python.version,
            created=manifest.created,
            total=manifest.sizes.total,
            own=manifest.sizes.exclusive,
            models=models,
            base=str(manifest.base.path),
            base_mtime_ns=manifest.base.mtime_ns,
            details=json.dumps(details),
        )

    @classmethod
    def damaged(cls, home: Path, damage: str) -> Row:
        """Return the row of what lies in *home* and cannot be told any more, for its *damage*."""
        tree = trees.measure(home)
        shared = sum(one.st_size for one in tree.shared.values())
        details: dict[str, object] = {"seconds": 0.0, "requested": "", "as_of": "", "notes": []}
        return cls(
            id=home.name,
            spec_key="",
            manager="",
            python="",
            created=0.0,
            total=tree.alone + shared,
            own=tree.alone,
            models=(),
            base="",
            base_mtime_ns=0,
            details=json.dumps(details),
            damage=damage,
        )


# By id: the mtime of the directory, and what was read after that.
Known = dict[str, tuple[int, Row]]


class Index:
    """The published environments of one root. Threads and processes may list at once."""

    def __init__(self, layout: Layout) -> None:
        """Open nothing yet."""
        self._layout = layout
        self._known: Known | None = None

    def records(self, read: Callable[[str], Row | None]) -> list[Record]:
        """Return every published environment, by id.

        *read* is asked for those that have changed since somebody listed them last, and
        returns None where nothing is published.

        Raises:
            OSError: the directories or an environment cannot be read; never the index.
        """
        rows = self._rows(read)
        if not rows:
            return []
        with _opened(self._layout.environments) as folder:
            facts = _Facts(self._layout, folder)
            return [facts.record(rows[name]) for name in sorted(rows)]

    def record(self, row: Row) -> Record:
        """Return what is known of the one environment that *row* is of."""
        with _opened(self._layout.environments) as folder:
            facts = _Facts(self._layout, folder)
            return facts.record(row)

    def _rows(self, read: Callable[[str], Row | None]) -> dict[str, Row]:
        now_ns = time.time_ns()
        directories = _directories(self._layout.environments)
        known = self._known or (self._load() if directories else {})
        found, fresh, learned = {}, {}, {}
        for name, mtime_ns in directories.items():
            kept = known.get(name)
            row = kept[1] if kept and kept[0] == mtime_ns else read(name)
            # A directory under another name than its environment's is none.
            if row is None or row.id != name:
                continue
            found[name] = row
            if kept and kept[1] is row:
                fresh[name] = kept
            elif not row.damage and abs(now_ns - mtime_ns) > _TICK_NS:
                learned[name] = mtime_ns, row
        if learned or known.keys() - found.keys():
            self._store(learned, known.keys() - found.keys())
        self._known = fresh | learned
        return found

    def _load(self) -> Known:
        try:
            with self._opened() as database:
                rows = database.execute("SELECT facts, checksum FROM environments").fetchall()
        except sqlite3.Error as error:
            if self._is_damage(getattr(error, "sqlite_errorcode", 0) & 0xFF):
                self._move_aside()
            return {}
        except UnicodeDecodeError:
            # Its message names what is damaged.
            self._move_aside()
            return {}
        return dict(_known(rows))

    def _store(self, learned: Known, gone: Iterable[str]) -> None:
        # Without the list everything is only slower.
        failures = (sqlite3.Error, UnicodeDecodeError)
        with contextlib.suppress(*failures), self._opened() as database, database:
            database.executemany(
                "DELETE FROM environments WHERE id = ?", [(name,) for name in gone]
            )
            database.executemany(
                "INSERT OR REPLACE INTO environments VALUES (?, ?, ?)",
                [(name, *_written(*one)) for name, one in learned.items()],
            )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._layout.index, timeout=_TIMEOUT_S)
        with contextlib.closing(database):
            # A killed writer is rolled back; after a loss of power it is made anew.
            database.execute("PRAGMA synchronous = OFF")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                with database:
                    database.execute("DROP TABLE IF EXISTS environments")
                    database.execute(
                        "CREATE TABLE environments (id TEXT PRIMARY KEY, facts, checksum)"
                    )
                    database.execute(f"PRAGMA user_version = {_VERSION}")
            yield database

    def _is_damage(self, code: int) -> bool:
        path = self._layout.index
        # A file that may be opened and is not: this process has too many open.
        is_shortage = code == sqlite3.SQLITE_CANTOPEN and path.is_file()
        return code in _DAMAGE and not (is_shortage and os.access(path, os.R_OK | os.W_OK))

    def _move_aside(self) -> None:
        path = self._layout.index
        with contextlib.suppress(OSError):
            path.rename(path.with_name(f"index.bad-{time.time_ns()}"))
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        for old in sorted(path.parent.glob("index.bad-*"))[:-_KEPT_ASIDE]:
            shutil.rmtree(old, ignore_errors=True)
            old.unlink(missing_ok=True)


class _Facts:
    """What no directory says of its environment, at one moment."""

    def __init__(self, layout: Layout, folder: int) -> None:
        holders = Holders(layout)
        self._leased, self._building = holders.leased(), holders.building()
        self._pinned = _names(layout.pin("any").parent)
        self._mtime_ns = functools.cache(_mtime_ns)
        self._folder, self._used = folder, layout.used("any").name
        self._manifest = layout.manifest("any").name

    def record(self, row: Row) -> Record:
        try:
            used = os.stat(f"{row.id}/{self._used}", dir_fd=self._folder)
            last_used, uses = used.st_mtime, used.st_size
        except OSError:
            last_used, uses = self._published(row), 0
        broken = row.damage
        if not broken and self._mtime_ns(row.base) != row.base_mtime_ns:
            broken = f"its interpreter `{row.base}` is gone or has changed"
        # By position: names would take a tenth of the time of a list.
        return Record(
            row.id, row.spec_key, row.manager, row.python, row.created, last_used, uses,
            row.total, row.own, row.models, self._leased.get(row.id, ()), row.id in self._pinned,
            row.id in self._building, broken, row.details,
        )  # fmt: skip

    def _published(self, row: Row) -> float:
        # As `Uses.last`.
        try:
            return os.stat(f"{row.id}/{self._manifest}", dir_fd=self._folder).st_mtime
        except OSError:
            return row.created


def _written(mtime_ns: int, row: Row) -> tuple[bytes, int]:
    facts = json.dumps([mtime_ns, *row]).encode()
    return facts, zlib.crc32(facts)


def _known(rows: Iterable[tuple[object, object]]) -> Iterator[tuple[str, tuple[int, Row]]]:
    good = [
        facts
        for facts, checksum in rows
        if isinstance(facts, bytes) and zlib.crc32(facts) == checksum
    ]
    # One document is read three times as fast as one for each row.
    for mtime_ns, *values in json.loads(b"[%s]" % b",".join(good)):
        values[7] = tuple(values[7])
        yield values[0], (mtime_ns, Row(*values))


def _directories(folder: Path) -> dict[str, int]:
    """Return the directories in *folder*, and the mtime of each in nanoseconds."""
    found = {}
    with (
        contextlib.suppress(FileNotFoundError),
        _opened(folder) as descriptor,
        os.scandir(descriptor) as entries,
    ):
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_mtime_ns
            except FileNotFoundError:
                # It was removed meanwhile.
                continue
    return found


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    # Names below an open directory are found in two thirds of the time of whole paths.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _names(folder: Path) -> Collection[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208
    except FileNotFoundError:
        return ()


def _mtime_ns(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return None
