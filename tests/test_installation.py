"""How far an installation is told to be, and what ends one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from envd.build import virtualenv
from envd.build.installation import Installation
from envd.child import Limits
from envd.errors import BuildTimedOutError, CacheFullError
from envd.events import Event, Progress
from envd.held import exclusively
from envd.lock import Lock, Sources
from envd.lock.uv import Uv
from envd.spec import Indexes
from tests.house import House, wheel
from tests.index import Index


def locked(house: House, start_index: Callable[..., Index], *, count: int) -> tuple[Lock, Index]:
    """Lock packages of an index."""
    index = start_index()
    for number in range(count):
        wheel(house.wheels, f"package-{number}", "1.0")
        index.add(house.wheels / f"package_{number}-1.0-py3-none-any.whl")
    house.with_indexes(index.url)
    return house.resolve(*(f"package-{number}" for number in range(count))), index


def of(index: Index) -> Sources:
    return Sources(Indexes(urls=(index.url,)))


def environment(house: House, uv: Uv) -> Path:
    prefix = house.folder / "prefix"
    virtualenv.create(house.interpreter.path, prefix, uv, house.events.append)
    return prefix


def test_what_is_fetched_is_counted_and_then_what_is_installed(
    house: House, start_index: Callable[..., Index]
) -> None:
    lock, index = locked(house, start_index, count=3)
    uv = Uv(house.settings)
    empty = Installation(lock.packages, uv.cache, house.folder / "none").progress(5)

    virtualenv.install(lock, of(index), environment(house, uv), uv, lambda _: None)

    fetched = Installation(lock.packages, uv.cache, house.folder / "none")
    installed = Installation(lock.packages, house.folder / "none", house.folder / "prefix")
    assert empty == Progress(0, 3, 5)
    assert fetched.progress(5) == installed.progress(5) == Progress(3, 3, 5)
    assert fetched.progress(4) == Progress(3, 3, 5)


def test_what_envd_keeps_needs_no_fetching(house: House) -> None:
    wheel(house.wheels, "package", "1.0")
    (package,) = house.resolve("package").packages
    none = house.folder / "none"

    kept = Installation([replace(package, origin="kept")], none, none)

    assert kept.progress(0) == Progress(1, 1, 0)


def test_progress_is_told_to_the_caller_and_to_whoever_waits(
    house: House, start_index: Callable[..., Index]
) -> None:
    lock, index = locked(house, start_index, count=2)
    found: list[Progress] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            found.append(event)
            index.gate.set()

    with exclusively(house.folder / "lock", lambda _: None) as held:
        uv = Uv(house.settings).within(held)
        prefix = environment(house, uv)
        index.gate.clear()
        virtualenv.install(lock, of(index), prefix, uv, on_event)
        told = (house.folder / "lock").read_text()

    assert (found[0].done, found[0].total) == (0, 2)
    assert found[0].bytes > 0
    assert f'"bytes": {found[-1].bytes}' in told


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"deadline": 0.0}, "was stopped after 7 s (`build.timeout`)"),
        ({"silence_s": 0.3}, "said nothing and moved no data for 5 s (`build.silence`)"),
    ],
)
def test_an_installation_is_ended_by_its_limits(
    house: House, start_index: Callable[..., Index], limits: dict[str, float], why: str
) -> None:
    lock, index = locked(house, start_index, count=1)
    build = replace(house.settings.build, timeout=7, silence=5)
    uv = Uv(replace(house.settings, build=build))
    prefix = environment(house, uv)
    index.gate.clear()
    given = Limits(**({"deadline": 1e9} | limits))

    with pytest.raises(BuildTimedOutError) as caught:
        virtualenv.install(lock, of(index), prefix, replace(uv, limits=given), lambda _: None)

    assert caught.value.message.endswith(why)


def test_what_whoever_watches_raises_ends_an_installation(
    house: House, start_index: Callable[..., Index]
) -> None:
    def watch(_: int) -> None:
        raise CacheFullError("full")  # noqa: EM101

    lock, index = locked(house, start_index, count=1)
    uv = Uv(house.settings)
    prefix = environment(house, uv)
    index.gate.clear()

    with pytest.raises(CacheFullError, match="full"):
        virtualenv.install(
            lock, of(index), prefix, replace(uv, limits=Limits(1e9, watch=watch)), lambda _: None
        )
