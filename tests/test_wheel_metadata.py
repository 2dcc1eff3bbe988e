"""Wheels that come from no index may depend on packages of indexes only."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from envd.errors import InstallFailedError, SolveFailedError
from envd.lock import metadata, wheel_records
from envd.settings.sections import Resolve
from tests import tiny
from tests.house import House, versions, wheel_file
from tests.index import Index

WHEEL = "tiny_a-1.0-py3-none-any.whl"


@pytest.fixture
def outside(house: House) -> tuple[Path, Path]:
    """A source tree outside the model, and the file its build would write."""
    mark = house.folder / "was_run"
    tree = tiny.tree(house.folder / "outside", "outp", "1.0", f"open({str(mark)!r}, 'w').close()")
    return tree, mark


@pytest.mark.parametrize("profile", ["dev", "standard"])
def test_a_wheel_of_the_model_leads_nowhere_else(
    house: House, outside: tuple[Path, Path], profile: str
) -> None:
    tree, mark = outside
    wheel_file(house.model, "tiny-a", "1.0", "py3-none-any", f"outp @ {tree.as_uri()}")
    house.with_security(profile=profile, local=True)

    with pytest.raises(SolveFailedError, match=r"depends on `outp @ file:.*no package of an index"):
        house.environments.lock(house.ask(f"./{WHEEL}"))

    assert not mark.exists()


def test_a_wheel_of_a_url_leads_nowhere_else(
    house: House, outside: tuple[Path, Path], start_index: Callable[..., Index]
) -> None:
    tree, mark = outside
    url = start_index().add(
        wheel_file(house.folder, "tiny-a", "1.0", "py3-none-any", f"outp @ {tree.as_uri()}")
    )

    with pytest.raises(SolveFailedError, match="no package of an index"):
        house.environments.lock(house.ask(f"tiny-a @ {url}"))

    assert not mark.exists()


def test_dependencies_on_packages_of_an_index_are_followed(house: House) -> None:
    wheel_file(house.wheels, "tiny-b", "1.0")
    wheel_file(house.model, "tiny-a", "1.0", "py3-none-any", "tiny-b[x]>=0.5; python_version > '3'")

    assert versions(house.environments.lock(house.ask(f"./{WHEEL}"))) == [
        "tiny-a==1.0", "tiny-b==1.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["Requires-Dist: a @ file:///x", "requires-dist:a@https://h/a.whl ; python_version > '3'",
     "Requires-Dist: a[b] @ git+https://h/a\nRequires-Dist: c"],
)  # fmt: skip
def test_a_url_is_seen_however_it_is_written(line: str) -> None:
    with pytest.raises(SolveFailedError):
        metadata.check(f"Metadata-Version: 2.1\nName: own\n{line}\n\ntext", "own")


def test_what_stands_in_the_description_is_no_dependency() -> None:
    metadata.check("Metadata-Version: 2.1\nName: own\n\nRequires-Dist: a @ file:///x\n", "own")


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / WHEEL
    path.write_text("nothing")

    with pytest.raises(InstallFailedError, match="is not a wheel"):
        metadata.check_wheel(path, "own")


def rubbish(path: Path, skipped: int) -> None:
    """Overwrite the content of the only file in an archive, but for what is *skipped*."""
    with zipfile.ZipFile(path) as archive:
        (info,) = archive.infolist()
    content = bytearray(path.read_bytes())
    start = content.index(info.filename.encode()) + len(info.filename) + skipped
    end = content.index(b"PK\1\2")
    content[start:end] = b"\xff" * (end - start)
    path.write_bytes(content)


# The first 9 bytes of what LZMA has packed say how.
@pytest.mark.parametrize(
    ("method", "skipped"),
    [(zipfile.ZIP_DEFLATED, 0), (zipfile.ZIP_BZIP2, 0), (zipfile.ZIP_LZMA, 9)],
)
def test_a_wheel_whose_metadata_does_not_unpack_is_refused(
    house: House, method: int, skipped: int
) -> None:
    with zipfile.ZipFile(house.model / WHEEL, "w", method) as archive:
        archive.writestr("tiny_a-1.0.dist-info/METADATA", bytes(range(256)))
    rubbish(house.model / WHEEL, skipped)

    with pytest.raises(InstallFailedError, match=f"`./{WHEEL}` is not a wheel"):
        house.environments.lock(house.ask(f"./{WHEEL}"))


def test_a_wheel_that_ends_before_its_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_a-1.0.dist-info/METADATA", "Name: tiny-a\n")
        info = archive.infolist()[0]
        info.compress_size = info.file_size = 100_000

    with pytest.raises(InstallFailedError, match="is not a wheel"):
        metadata.check_wheel(path, "own")


def test_metadata_of_any_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_a-1.0.dist-info/METADATA", b" " * (2 << 20))

    with pytest.raises(InstallFailedError, match="metadata is over"):
        metadata.check_wheel(path, "own")


def test_strict_locks_with_the_repairs_on(house: House) -> None:
    wheel_file(house.wheels, "tiny-a", "1.0")
    wheel_file(house.wheels, "setuptools", "80.0")
    house.settings = replace(house.settings, resolve=Resolve())
    house.with_security(profile="strict")

    assert "tiny-a==1.0" in versions(house.environments.lock(house.ask("tiny-a")))


def test_a_wheel_is_not_shared_with_a_model_that_builds_from_other_indexes(house: House) -> None:
    source = tiny.tree(house.model / "pkg", "tiny-a", "1.0")
    (house.model / "w").mkdir()
    wheel_file(house.model / "w", "tiny-b", "1.0")

    house.environments.lock(house.ask("./pkg"))
    house.environments.lock(house.ask("./pkg", "--find-links ./w"))

    assert source.exists()
    assert len(list(house.root.glob("wheels/made/*.json"))) == 2


def test_the_names_in_a_record_are_those_that_installers_write(tmp_path: Path) -> None:
    names = [
        "plain.py",
        "a,b.py",
        'say "it".py',
        "../../../bin/tool",
        "caf\u00e9.py",
        "a\u2028b.py",
    ]
    info = tmp_path / "Some_Name-1.0.dist-info"
    info.mkdir()
    with (info / "RECORD").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([name, "sha256=x", "7"] for name in names)
        file.write("unhashed.py,,\nno-more-than-a-name\n")

    found = wheel_records.records(tmp_path)

    assert list(found) == ["some-name"]
    read = list(wheel_records.files(found["some-name"]))
    assert read == [*names, "unhashed.py", "no-more-than-a-name"]
