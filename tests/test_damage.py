"""One environment that cannot be read costs the others nothing."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envd.errors import EnvironmentNotFoundError, RequestInvalidError
from envd.store import Store, prefixes, removal
from envd.store.parts import Parts
from tests.others import Fake, collect


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _deep(path: Path) -> None:
    path.write_text("[" * 200_000)


DAMAGES = [_loop, Path.mkdir, _deep]


@pytest.fixture
def fakes(tmp_path: Path) -> list[Fake]:
    found = [Fake(name, tmp_path / "root") for name in ("one", "other")]
    for one in found:
        one.build()
    return found


def _cut(path: Path) -> None:
    path.write_text('{"format": 2, "env_id": "')


@pytest.mark.parametrize("damage", [*DAMAGES, _cut])
def test_it_is_listed_as_absent_and_removed_and_the_others_are_untouched(
    fakes: list[Fake], damage: Callable[[Path], None]
) -> None:
    (one, other), store = fakes, Store(fakes[0].root)
    store.layout.manifest(one.id).unlink()
    damage(store.layout.manifest(one.id))

    listed = {record.id: record.broken for record in store.records()}
    again = {record.id: record.broken for record in Store(one.root).records()}
    named = prefixes.resolve(store, other.id[:8]).id
    of_spec = prefixes.resolve(store, other.spec.key[:8]).id
    damaged = prefixes.resolve(store, one.id[:8])
    leased = store.lease(one.id)
    collect(store)

    assert listed == again == {one.id: "its manifest is damaged, or of another envd", other.id: ""}
    assert named == of_spec == other.id
    assert damaged.id == one.id
    assert damaged.total > 0
    assert leased is None
    assert not store.layout.environment(one.id).exists()
    assert store.find(other.id)


def test_what_is_damaged_can_be_removed_and_built_again(fakes: list[Fake]) -> None:
    (one, other), store = fakes, Store(fakes[0].root)
    for fake in fakes:
        _cut(store.layout.manifest(fake.id))

    removal.remove(store, prefixes.resolve(store, one.id[:6]).id)
    other.build()

    assert [record.id for record in store.records()] == [other.id]
    assert store.find(other.id)


def test_without_its_files_it_is_absent_and_built_again(fakes: list[Fake]) -> None:
    one, store = fakes[0], Store(fakes[0].root)
    found = store.find(one.id)
    assert found
    shutil.rmtree(found.prefix)

    (record,) = [record for record in store.records() if record.id == one.id]
    absent = store.find(one.id)
    one.build()

    assert record.broken == "its files are gone"
    assert absent is None
    assert store.find(one.id)


def test_models_that_cannot_be_read_are_left_out(fakes: list[Fake]) -> None:
    (one, other), store = fakes, Store(fakes[0].root)
    (store.layout.used_by(one.id) / "0123456789abcdef").mkdir(parents=True)

    assert {record.id for record in store.records()} == {one.id, other.id}


def test_a_use_that_cannot_be_seen_is_none(fakes: list[Fake]) -> None:
    one, store = fakes[0], Store(fakes[0].root)
    store.layout.used(one.id).unlink()
    _loop(store.layout.used(one.id))

    (record,) = [found for found in store.records() if found.id == one.id]

    assert record.uses == 0
    assert record.last_used == store.layout.manifest(one.id).stat().st_mtime


def _empty(path: Path) -> None:
    path.write_text("{}")


def _gone(_: Path) -> None:
    """Leave nothing there."""


@pytest.mark.parametrize("damage", [*DAMAGES, _empty, _gone])
def test_parts_are_what_the_manifest_says(
    fakes: list[Fake], damage: Callable[[Path], None]
) -> None:
    (one, other), store = fakes, Store(fakes[0].root)
    records, parts = store.records(), Parts(store.layout)
    whole = store.read(other.id)
    assert whole
    store.layout.manifest(one.id).unlink()
    damage(store.layout.manifest(one.id))

    found = {record.id: parts.added(record) for record in records}

    assert (found[one.id].packages, found[one.id].shares) == (None, ())
    added = found[other.id]
    assert added
    assert added.packages == whole.manifest.lock.packages != ()
    assert added.shares == whole.manifest.shares
    assert added._replace(packages=None, shares=()) in records


def test_what_is_named_is_found_without_a_list(fakes: list[Fake]) -> None:
    one, store = fakes[0], Store(fakes[0].root)
    # What was changed just now would not be kept in the list.
    time.sleep(0.05)

    by_id, by_spec = prefixes.resolve(store, one.id[:6]), prefixes.resolve(store, one.spec.key[:6])
    is_listed = store.layout.index.exists()
    shutil.rmtree(store.layout.root / "specs")
    without_specs = prefixes.resolve(store, by_id.spec_key[:6])

    assert by_id.id == by_spec.id == without_specs.id == one.id
    assert not is_listed
    assert store.layout.index.exists()


def test_what_fits_several_is_refused(fakes: list[Fake]) -> None:
    (one, other), store = fakes, Store(fakes[0].root)
    prefix = one.id[:8]
    # A copy under another name is no environment.
    copy = store.layout.environment(f"{prefix}{'0' * 24}")
    shutil.copytree(store.layout.environment(one.id), copy, symlinks=True)
    alone = prefixes.resolve(store, prefix).id
    spec = store.layout.spec(other.spec.key).parent
    shutil.copytree(spec, spec.with_name(f"{prefix}{'f' * 56}"))

    assert alone == one.id
    with pytest.raises(RequestInvalidError, match="fits 2 environments"):
        prefixes.resolve(store, prefix)


def test_a_disk_that_fails_for_a_moment_costs_nothing(
    fakes: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, store = fakes[0], Store(fakes[0].root)
    manifest, read = store.layout.manifest(one.id), Path.read_bytes
    time.sleep(0.05)

    def fail(path: Path) -> bytes:
        if path == manifest:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        listed = {record.id: record.broken for record in store.records()}
        stays = removal.unless_used(store, prefixes.resolve(store, one.id[:8]))
        with pytest.raises(OSError, match="Input/output"):
            store.find(one.id)
    after = {record.id: record.broken for record in store.records()}

    assert listed[one.id] == "it cannot be read: Input/output error"
    assert stays == "usable after all"
    assert after[one.id] == ""
    assert store.find(one.id)


def test_a_file_among_the_environments_is_none(fakes: list[Fake]) -> None:
    one, store = fakes[0], Store(fakes[0].root)
    store.layout.environment("abcd1234").write_text("")

    with pytest.raises(EnvironmentNotFoundError):
        prefixes.resolve(store, "abcd")
    assert one.id in {record.id for record in store.records()}
