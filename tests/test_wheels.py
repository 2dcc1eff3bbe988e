"""What envd builds itself: once, kept, the same bytes every time."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from envd.config import Settings
from envd.environments.asked import Asked
from envd.environments.environments import Environments
from envd.errors import InstallFailedError
from envd.events import Line, Stage
from envd.lock import Lock, Package
from envd.store import removal
from tests import tiny
from tests.house import House, installed, sdist, versions, wheel
from tests.index import Index


@pytest.fixture
def count(tmp_path: Path) -> Path:
    """A file to which every build of `tiny-a` adds a letter."""
    path = tmp_path / "count"
    path.touch()
    return path


def counting(path: Path) -> str:
    return f"open({str(path)!r}, 'a').write('x')"


def kept(house: House) -> list[Path]:
    return sorted(house.root.glob("wheels/*/*.whl"))


def test_a_source_distribution_is_taken_where_no_wheel_is(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0", "cp36-cp36m-manylinux1_x86_64")
    archive = tiny.sdist(house.wheels, "tiny-a", "1.0")

    (one,) = house.resolve("tiny-a").packages

    (path,) = kept(house)
    assert path.name == "tiny_a-1.0-py3-none-any.whl"
    assert one == Package(
        "tiny-a", "1.0", path.parent.name, path.name, "", "kept",
        f"{archive.as_uri()}#sha256={sha256_of(archive)}",
    )  # fmt: skip


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_source_is_built_once_for_all_specs_and_outlives_their_environments(
    house: House, count: Path
) -> None:
    tiny.sdist(house.wheels, "tiny-a", "1.0", counting(count))
    wheel(house.wheels, "tiny_b", "1.0")

    first = house.ready(house.ask("tiny-a"))
    removal.remove(house.environments.store, first.environment.id)
    other = house.ask("tiny-a", "tiny-b")
    second = house.ready(other)

    assert count.read_text() == "x"
    assert versions(house.lock_of(other)) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert installed(second, "tiny_a") == ""
    assert len(kept(house)) == 1


def lock(settings: Settings, asked: Asked) -> Lock:
    return Environments(settings).lock(asked)


def test_two_processes_that_need_a_source_at_once_build_it_once(house: House, count: Path) -> None:
    slow = f"import time; time.sleep(0.5); {counting(count)}"
    tiny.sdist(house.wheels, "tiny-a", "1.0", slow)
    wheel(house.wheels, "tiny_b", "1.0")
    asked = [house.ask("tiny-a", name="one"), house.ask("tiny-a", "tiny-b", name="other")]

    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(lock, [house.settings] * 2, asked))

    assert count.read_text() == "x"
    assert found[0].packages == found[1].packages[:1]


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_kept_wheel_that_is_gone_is_built_again(
    house: House, count: Path, *, is_ready: bool
) -> None:
    tiny.sdist(house.wheels, "tiny-a", "1.0", counting(count))
    asked = house.ask("tiny-a")
    if is_ready:
        found = house.ready(asked)
        removal.remove(house.environments.store, found.environment.id)
    lock = house.environments.lock(asked)
    shutil.rmtree(kept(house)[0].parent)

    again = house.ready(asked)

    assert count.read_text() == "xx"
    assert again.environment.id == lock.env_id(asked.spec.python)
    assert installed(again, "tiny_a") == ""


def test_a_build_gives_the_same_bytes_at_any_time_in_any_root(house: House) -> None:
    archive = tiny.sdist(house.wheels, "tiny-a", "1.0", "global MODULE; MODULE = 'ONE = 1'")

    first = house.resolve("tiny-a")
    shutil.rmtree(house.root)
    again = house.resolve("tiny-a")

    assert archive.exists()
    assert again == first
    (path,) = kept(house)
    assert {one.date_time for one in zipfile.ZipFile(path).infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_build_that_fails_is_named_with_its_reason(house: House) -> None:
    tiny.sdist(house.wheels, "tiny-a", "1.0", "raise SystemExit('it lacks a compiler')")

    with pytest.raises(
        InstallFailedError, match=r"`tiny-a==1\.0` could not .* a compiler"
    ) as found:
        house.resolve("tiny-a")

    assert found.value.metadata == {"package": "tiny-a==1.0"}
    assert any("compiler" in one.text for one in house.events if isinstance(one, Line))
    assert [one.message for one in house.events if isinstance(one, Stage)] == [
        "building a wheel of tiny-a==1.0"
    ]
    assert not kept(house)
    assert not list((house.root / "scratch").iterdir())


def test_a_build_that_needs_what_no_index_has_is_named(house: House) -> None:
    tiny.sdist(house.wheels, "tiny-a", "1.0", "", "nowhere-to-be-found")

    with pytest.raises(InstallFailedError, match=r"`tiny-a==1\.0` could not .* nowhere-to-be"):
        house.resolve("tiny-a")


def test_a_source_of_an_index_is_the_one_of_its_hash(
    house: House, start_index: Callable[..., Index], count: Path
) -> None:
    index = start_index()
    house.with_indexes(index.url)
    url = index.add(tiny.sdist(house.wheels, "tiny-a", "1.0", counting(count)))
    digest = index.files["tiny_a-1.0.tar.gz"].sha256

    (one,) = house.resolve(f"tiny-a==1.0 --hash=sha256:{digest}").packages

    assert one.made_from == f"{url}#sha256={digest}"
    assert count.read_text() == "x"


def test_no_binary_builds_what_has_a_wheel(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    tiny.sdist(house.wheels, "tiny-a", "1.0", "global MODULE; MODULE = 'BUILT = True'")
    wheel(house.wheels, "tiny_b", "1.0")

    asked = house.ask("--no-binary tiny-a", "tiny-a", "tiny-b")

    assert installed(house.ready(asked), "tiny_a") == "BUILT = True"
    assert [one.origin for one in house.lock_of(asked).packages] == ["kept", "index"]


def test_what_a_source_is_built_with_may_be_limited(house: House) -> None:
    for version in ("1.0", "2.0"):
        wheel(house.wheels, "tiny_tool", version)
    build = "import tiny_tool; global MODULE; MODULE = tiny_tool.VERSION"
    tiny.sdist(house.wheels, "tiny-a", "1.0", build, "tiny-tool")
    asked = house.ask("tiny-a")
    assert installed(house.ready(asked), "tiny_a") == "2.0"

    limited = replace(asked, spec=replace(asked.spec, build_constraints=("tiny-tool<2",)))

    assert installed(house.ready(limited), "tiny_a") == "1.0"


def test_a_source_that_cannot_say_what_it_is_fails_the_installation(house: House) -> None:
    files = {
        "PKG-INFO": "Metadata-Version: 1.0\nName: tiny_a\nVersion: 1.0\n",
        "pyproject.toml": (
            "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
        ),
        "backend.py": "raise SystemExit('no such luck')",
    }
    sdist(house.wheels, "tiny_a", "1.0", files)

    with pytest.raises(InstallFailedError, match="no such luck"):
        house.resolve("tiny-a")
