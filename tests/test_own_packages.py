"""Packages of the model's own, of URLs and of repositories: locked by hash, kept, installed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from envd.errors import InstallFailedError, ModelInvalidError
from envd.lock import Package
from tests import tiny
from tests.house import House, Repository, installed, versions, wheel_file
from tests.index import Index

WHEEL = "tiny_a-1.0-py3-none-any.whl"
SOURCE = "tiny_a-1.0.tar.gz"
BUILT = "global MODULE; MODULE = 'BUILT = True'"


@pytest.fixture
def index(house: House, start_index: Callable[..., Index]) -> Index:
    """An index that is only a host of files."""
    del house
    return start_index()


@pytest.fixture
def repository(house: House) -> Repository:
    found = Repository(house.folder / "repository")
    house.with_security(profile="dev", sources=(found.url,))
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def after_the_model_is_gone(house: House, *lines: str) -> tuple[Package, str]:
    """Lock the model of *lines*, delete it, and install it: the package, and its module."""
    asked = house.ask(*lines)
    house.environments.lock(asked)
    shutil.rmtree(house.model)
    ready = house.ready(asked)
    (one,) = house.lock_of(asked).packages
    assert ready.environment.manifest.lock.packages == (one,)
    return one, installed(ready, "tiny_a")


def test_a_wheel_of_the_model_is_kept(house: House) -> None:
    sha256 = digest(wheel_file(house.model, "tiny-a", "1.0"))

    one, text = after_the_model_is_gone(house, f"./{WHEEL}")

    assert one == Package("tiny-a", "1.0", sha256, WHEEL, "", "kept", f"./{WHEEL}")
    assert "VERSION = '1.0'" in text


def test_a_source_archive_of_the_model_is_built(house: House) -> None:
    sha256 = digest(tiny.sdist(house.model, "tiny-a", "1.0", BUILT))

    one, text = after_the_model_is_gone(house, f"tiny-a @ ./{SOURCE}")

    assert (one.origin, one.made_from) == ("kept", f"./{SOURCE}#sha256={sha256}")
    assert text == "BUILT = True"


@pytest.mark.parametrize("line", ["./pkg", "-e ./sub/pkg", "tiny-a @ ./pkg", "-e ."])
def test_a_source_tree_of_the_model_is_built_and_nothing_written_into_it(
    house: House, line: str
) -> None:
    path = line.rpartition(" ")[2]
    folder = tiny.tree(house.model / path, "tiny-a", "1.0", BUILT)
    asked = house.ask(line)
    before = sorted(folder.rglob("*"))

    house.environments.lock(asked)
    after = sorted(folder.rglob("*"))
    one, text = after_the_model_is_gone(house, line)

    assert after == before
    assert (one.origin, one.made_from) == ("kept", path if path != "." else "./.")
    assert text == "BUILT = True"


def test_a_folder_of_packages_of_the_model_is_copied(house: House) -> None:
    (house.model / "w").mkdir()
    sha256 = digest(wheel_file(house.model / "w", "tiny-a", "1.0"))

    one, text = after_the_model_is_gone(house, "--find-links ./w", "tiny-a")

    assert (one.sha256, one.origin, one.made_from) == (sha256, "kept", f"./w/{WHEEL}")
    assert "VERSION" in text


def test_a_source_in_a_folder_of_packages_of_the_model_is_built(house: House) -> None:
    (house.model / "w").mkdir()
    sha256 = digest(tiny.sdist(house.model / "w", "tiny-a", "1.0", BUILT))

    one, text = after_the_model_is_gone(house, "--find-links ./w", "tiny-a")

    assert (one.origin, one.made_from) == ("kept", f"./w/{SOURCE}#sha256={sha256}")
    assert text == "BUILT = True"


@pytest.mark.parametrize("is_hashed", [True, False])
def test_the_url_of_a_wheel_is_locked_by_its_hash(
    house: House, index: Index, *, is_hashed: bool
) -> None:
    path = wheel_file(house.folder, "tiny-a", "1.0")
    url = index.add(path)

    one, text = after_the_model_is_gone(
        house, f"{url}#sha256={digest(path)}" if is_hashed else f"tiny-a @ {url}"
    )

    assert one == Package("tiny-a", "1.0", digest(path), WHEEL, url, "url")
    assert "VERSION" in text


@pytest.mark.parametrize("is_hashed", [True, False])
@pytest.mark.parametrize("name", [SOURCE, "main.tar.gz"])
def test_the_url_of_an_archive_is_built(
    house: House, index: Index, name: str, *, is_hashed: bool
) -> None:
    path = tiny.sdist(house.folder, "tiny-a", "1.0", BUILT).rename(house.folder / name)
    url = index.add(path)

    one, text = after_the_model_is_gone(house, f"{url}#sha256={digest(path)}" if is_hashed else url)

    assert (one.origin, one.made_from) == ("kept", f"{url}#sha256={digest(path)}")
    assert text == "BUILT = True"


def test_a_subdirectory_of_an_archive_is_built(house: House, index: Index) -> None:
    tiny.tree(house.folder / "main" / "python" / "pkg", "tiny-a", "1.0", BUILT)
    path = Path(shutil.make_archive(str(house.folder / "main"), "zip", house.folder, "main"))
    url = index.add(path)

    one, text = after_the_model_is_gone(
        house, f"{url}#sha256={digest(path)}&subdirectory=python/pkg"
    )

    assert one.made_from == f"{url}#sha256={digest(path)}&subdirectory=python/pkg"
    assert text == "BUILT = True"


@pytest.mark.parametrize("kind", ["wheel", "archive"])
def test_a_url_with_another_hash_is_refused(house: House, index: Index, kind: str) -> None:
    write = wheel_file if kind == "wheel" else tiny.sdist
    url = index.add(write(house.folder, "tiny-a", "1.0"))

    asked = house.ask(f"{url}#sha256={'0' * 64}")

    with pytest.raises(InstallFailedError, match="Hash mismatch for `tiny-a"):
        house.ready(asked)

    assert house.environments.find(asked) is None


def test_a_url_with_extras_brings_what_they_ask_for(house: House, index: Index) -> None:
    path = wheel_file(house.folder, "tiny-a", "1.0", "py3-none-any", "tiny-b; extra == 'more'")
    wheel_file(house.wheels, "tiny-b", "1.0")
    url = index.add(path)

    assert versions(house.resolve(f"tiny-a[more] @ {url}")) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert versions(house.resolve(f"tiny-a @ {url} ; python_version < '3'")) == []


def test_a_branch_is_locked_at_the_commit_it_stands_at(
    house: House, repository: Repository
) -> None:
    tiny.tree(repository.folder, "tiny-a", "1.0", BUILT)
    commit = repository.commit()

    one, text = after_the_model_is_gone(house, f"{repository.url}@main")

    assert (one.name, one.origin) == ("tiny-a", "kept")
    assert one.made_from == f"{repository.url}@{commit}"
    assert text == "BUILT = True"


def test_a_branch_that_moved_is_followed_by_an_upgrade_only(
    house: House, repository: Repository
) -> None:
    tiny.tree(repository.folder, "tiny-a", "1.0")
    old = repository.commit()
    asked = house.ask(f"tiny-a @ {repository.url}")
    first = house.ready(asked)
    tiny.tree(repository.folder, "tiny-a", "2.0")
    new = repository.commit()

    cached = house.ready(asked)
    upgraded = house.ready(asked, upgrade=True)

    assert cached.cached
    assert cached.environment.id == first.environment.id
    assert first.environment.manifest.lock.packages[0].made_from.endswith(f"@{old}")
    assert upgraded.environment.manifest.lock.packages[0].made_from.endswith(f"@{new}")
    assert versions(house.lock_of(asked)) == ["tiny-a==2.0"]


def test_a_commit_is_built_once_wherever_the_branch_goes(
    house: House, repository: Repository
) -> None:
    count = house.folder / "count"
    tiny.tree(repository.folder, "tiny-a", "1.0", f"open({str(count)!r}, 'a').write('x')")
    commit = repository.commit()
    tiny.tree(repository.folder, "tiny-a", "2.0")
    repository.commit()
    line = f"git+file://{repository.folder}@{commit}"

    lock = house.resolve(line)
    again = house.resolve(line, f"tiny-a @ {line}")

    assert versions(lock) == versions(again) == ["tiny-a==1.0"]
    assert lock.packages[0].made_from == f"{repository.url}@{commit}"
    assert count.read_text() == "x"


def test_a_subdirectory_of_a_repository_is_built(house: House, repository: Repository) -> None:
    tiny.tree(repository.folder / "python" / "pkg", "tiny-a", "1.0", BUILT)
    commit = repository.commit()

    one, text = after_the_model_is_gone(
        house, f"{repository.url}@main#egg=tiny-a&subdirectory=python/pkg"
    )

    assert one.made_from == f"{repository.url}@{commit}#subdirectory=python/pkg"
    assert text == "BUILT = True"


def test_a_branch_that_is_not_there_is_named(house: House, repository: Repository) -> None:
    tiny.tree(repository.folder, "tiny-a", "1.0")
    repository.commit()

    with pytest.raises(InstallFailedError, match="nowhere"):
        house.resolve(f"{repository.url}@nowhere")


@pytest.mark.parametrize("line", ["./pkg", f"./{WHEEL}", "--find-links ./w\ntiny-a"])
def test_what_has_changed_since_the_model_was_read_is_refused(house: House, line: str) -> None:
    tiny.tree(house.model / "pkg", "tiny-a", "1.0")
    (house.model / "w").mkdir()
    wheel_file(house.model, "tiny-a", "1.0")
    wheel_file(house.model / "w", "tiny-a", "1.0")
    asked = house.ask(*line.split("\n"))
    for path in (house.model / "pkg" / "more.py", house.model / WHEEL, house.model / "w" / WHEEL):
        path.write_bytes(b"changed")

    with pytest.raises(ModelInvalidError, match="has changed since the model was read; ask again"):
        house.ready(asked)


def test_the_same_tree_in_two_models_is_built_once_and_called_as_in_each(house: House) -> None:
    count = house.folder / "count"
    for name in ("one", "other"):
        path = house.folder / name / name
        tiny.tree(path, "tiny-a", "1.0", f"open({str(count)!r}, 'a').write('x')")

    locks = [
        house.environments.lock(house.ask(f"./{name}", name=name)) for name in ("one", "other")
    ]

    assert count.read_text() == "x"
    assert [lock.packages[0].made_from for lock in locks] == ["./one", "./other"]


def test_a_tree_may_need_packages_of_the_index_and_of_the_model(house: House) -> None:
    wheel_file(house.wheels, "tiny-tool", "1.0")
    (house.model / "w").mkdir()
    wheel_file(house.model / "w", "tiny-own", "1.0")
    build = "import tiny_tool, tiny_own"
    tiny.tree(house.model / "pkg", "tiny-a", "1.0", build, "tiny-tool", "tiny-own")

    lock = house.resolve("./pkg", "--find-links ./w")

    assert versions(lock) == ["tiny-a==1.0"]


@pytest.mark.parametrize("option", ["--no-binary :all:", "--only-binary :all:"])
def test_options_on_wheels_are_about_packages_of_an_index(house: House, option: str) -> None:
    wheel_file(house.model, "tiny-a", "1.0")
    tiny.tree(house.model / "pkg", "tiny-b", "1.0")

    lock = house.resolve(option, f"./{WHEEL}", "./pkg")

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]


def test_a_root_and_a_model_may_have_any_name(tmp_path: Path, house: House) -> None:
    folder = tmp_path / "a b,c"
    folder.mkdir()
    odd = House(folder, house.interpreter)
    (odd.model / "w").mkdir()
    wheel_file(odd.model, "tiny-a", "1.0")
    wheel_file(odd.model / "w", "tiny-b", "1.0")
    tiny.tree(odd.model / "pkg", "tiny-c", "1.0")
    wheel_file(odd.wheels, "tiny-d", "1.0")
    tiny.sdist(odd.wheels, "tiny-e", "1.0")
    lines = (f"./{WHEEL}", "-f ./w", "tiny-b", "./pkg", "tiny-d", "tiny-e")

    ready = odd.ready(odd.ask(*lines))

    origins = {one.name[-1]: one.origin for one in ready.environment.manifest.lock.packages}
    assert origins == dict.fromkeys("abce", "kept") | {"d": "index"}


def test_a_tree_whose_build_leaves_files_in_it_is_still_what_it_was(
    house: House, index: Index
) -> None:
    # As of the month there is no tiny-b: the tree is looked at again as of the day.
    index.add(wheel_file(house.wheels, "tiny-b", "1.0"), "2024-02-10")
    house.with_indexes(index.url)
    tiny.tree(house.model / "pkg", "tiny-a", "1.0", "open('left', 'w').write('x')")

    lock = house.resolve("./pkg", "tiny-b", day="2024-02-14")

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert [note.code for note in lock.notes] == ["AS_OF_DAY"]
    assert not (house.model / "pkg" / "left").exists()


def bringing(folder: Path, other: str, *requires: str) -> None:
    """Write a tree of `tiny-a` whose wheel brings the metadata of *other* as well."""
    tree = tiny.tree(folder, "tiny-a", "1.0", "", *requires)
    file = f'"tiny_a-1.0.data/purelib/{other}-1.0.dist-info/METADATA": "Name: {other}\\n"'
    backend = (tree / "backend.py").read_text()
    (tree / "backend.py").write_text(backend.replace("files = {", f"files = {{{file},"))


def test_a_wheel_that_is_built_may_bring_the_metadata_of_another_package(house: House) -> None:
    bringing(house.model / "pkg", "another")

    kept, _ = after_the_model_is_gone(house, "./pkg")

    assert (kept.name, kept.version, kept.origin) == ("tiny-a", "1.0", "kept")


def test_a_wheel_that_passes_for_what_it_is_built_with_is_refused(house: House) -> None:
    tiny.sdist(house.wheels, "tiny-b", "1.0")
    bringing(house.model / "pkg", "tiny_b", "tiny-b")

    with pytest.raises(InstallFailedError, match=r"which wheel is its own cannot be told: tiny_a-"):
        house.environments.lock(house.ask("./pkg"))


def test_a_wheel_whose_tags_are_none_is_refused(house: House) -> None:
    path = wheel_file(house.model, "tiny-a", "1.0", "py3..py2-none-any")

    with pytest.raises(InstallFailedError, match="is not the name of one"):
        house.environments.lock(house.ask(f"./{path.name}"))


def test_a_directory_that_is_called_like_a_wheel_is_refused(house: House) -> None:
    tiny.tree(house.model / WHEEL, "tiny-a", "1.0")

    with pytest.raises(ModelInvalidError, match="is a directory called like a wheel"):
        house.ask(f"./{WHEEL}")


@pytest.mark.parametrize("line", ["./pkg", f"./{WHEEL}", "--find-links ./w"])
@pytest.mark.parametrize("is_all", [True, False])
def test_what_is_gone_since_the_model_was_read_is_named(
    house: House, line: str, *, is_all: bool
) -> None:
    tiny.tree(house.model / "pkg", "tiny-a", "1.0")
    (house.model / "w").mkdir()
    wheel_file(house.model, "tiny-a", "1.0")
    asked = house.ask(line, "tiny-a")
    shutil.rmtree(house.model)
    if not is_all:
        house.model.mkdir()

    with pytest.raises(ModelInvalidError, match="not in the model"):
        house.ready(asked)
