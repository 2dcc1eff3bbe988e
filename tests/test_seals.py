"""What tells that a package in a cache has changed, and when all of it is read."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envd import seals
from envd.store import trash
from tests.conda_channel import Channel, Link, Package
from tests.conda_root import CondaRoot, locked
from tests.mirror import Mirror

WORD = Package("word", files={"share/word": "hello\n", "share/again": Link("word")})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A sealed package."""
    path = tmp_path / "pkgs" / "word-1.0-0"
    for name in ("info/index.json", "share/word", "share/deep/er/word"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"hello, {name}\n")
    (path / "share/link").symlink_to("word")
    seals.seal(path, "a" * 64)
    return path


def is_seen(path: Path) -> bool:
    return seals.read_at(path, seals.look(path)) is not None


def with_its_date(path: Path, change: Callable[[Path], None]) -> None:
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"H")


def anew(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content.swapcase())


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: overwrite(path / "share/word"),
    "written, its date put back": lambda path: with_its_date(path / "share/word", overwrite),
    "replaced, its date put back": lambda path: with_its_date(path / "share/word", anew),
    "truncated": lambda path: os.truncate(path / "share/deep/er/word", 2),
    "deleted": lambda path: (path / "share/word").unlink(),
    "added": lambda path: (path / "share/deep/more").write_text(""),
    "renamed": lambda path: (path / "share/word").rename(path / "share/words"),
    "a directory more": lambda path: (path / "share/empty").mkdir(),
    "relinked": lambda path: [
        (path / "share/link").unlink(),
        (path / "share/link").symlink_to("x"),
    ],
    "a permission": lambda path: (path / "share/word").chmod(0o600),
    "a permission of a directory": lambda path: (path / "share").chmod(0o700),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_package_that_was_changed_is_read_and_found_out(
    package: Path, change: Callable[[Path], object]
) -> None:
    assert is_seen(package)
    assert seals.is_whole(package)

    change(package)

    assert not is_seen(package)
    assert not seals.is_whole(package)


def test_a_further_link_is_seen_by_who_made_it(package: Path, tmp_path: Path) -> None:
    before = seals.look(package)
    os.link(package / "share/word", tmp_path / "word")
    assert not is_seen(package)

    seals.see(package, before, time.time())
    assert is_seen(package)
    with seals.unlinking([package]):
        (tmp_path / "word").unlink()
        assert not is_seen(package)

    assert is_seen(package)


def test_nothing_else_may_change_with_the_links(package: Path, tmp_path: Path) -> None:
    before = seals.look(package)
    os.link(package / "share/word", tmp_path / "word")
    overwrite(package / "share/word")

    seals.see(package, before, time.time())

    assert not is_seen(package)


def test_what_was_changed_before_is_not_seen_by_who_removes_links(
    package: Path, tmp_path: Path
) -> None:
    os.link(package / "share/word", tmp_path / "word")
    with_its_date(tmp_path / "word", overwrite)

    with seals.unlinking([package, tmp_path / "none"]):
        (tmp_path / "word").unlink()

    assert not is_seen(package)
    assert not seals.is_whole(package)


@pytest.mark.parametrize("text", ["", "x y", "1.0", "{now}", "\x00", "{now} " + "0" * 64])
def test_a_note_that_is_damaged_is_none(package: Path, text: str) -> None:
    (package / "info/envd-seen").write_text(text.format(now=time.time()))

    assert not is_seen(package)
    assert seals.is_whole(package)


@pytest.mark.parametrize(
    ("age_s", "counts"), [(0, "seen"), (80_000, "seen"), (90_000, ""), (-60, "")]
)
def test_at_the_latest_a_day_later_all_is_read_again(
    package: Path, age_s: float, counts: str
) -> None:
    seals.see(package, seals.look(package), time.time() - age_s)

    assert is_seen(package) is bool(counts)


@pytest.fixture
def old_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that keeps times in whole seconds."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    image.touch()
    os.truncate(image, 4_000_000)
    folder.mkdir()
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-I", "128", image], capture_output=True, check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no old disk can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_times_in_whole_seconds_tell_nothing(old_disk: Path, package: Path) -> None:
    path = old_disk / "word"
    shutil.copytree(package, path, symlinks=True)

    seals.seal(path, "a" * 64)

    assert not is_seen(path)
    assert seals.is_whole(path)


class Tampered:
    """A cache whose seals are wrong: who reads a package finds it damaged."""

    def __init__(self, channel: Channel, mirror: Mirror, folder: Path) -> None:
        channel.add(WORD)
        self.packages = locked(channel)
        self.mirror, self.root = mirror, CondaRoot.at(folder, mirror)
        self.root.install(self.packages, "first")
        self.path = self.root.packages / self.packages[0].cached_as
        seal = self.path / "info/envd-seal"
        sha256, _, _ = seal.read_text().partition(" ")
        seal.write_text(f"{sha256} {'0' * 64}\n")

    def is_read(self) -> bool:
        """Whether the next environment has the package read, and fetched therefore."""
        before = self.mirror.asked("*/word-*")
        self.root.install(self.packages, f"next{before}{time.monotonic_ns()}")
        return self.mirror.asked("*/word-*") > before


@pytest.fixture
def tampered(channel: Channel, mirror: Mirror, tmp_path: Path) -> Tampered:
    return Tampered(channel, mirror, tmp_path / "root")


def test_a_package_is_not_read_while_it_stands_as_it_was_seen(tampered: Tampered) -> None:
    assert not tampered.is_read()
    assert not tampered.is_read()

    word = tampered.path / "share/word"
    os.utime(word, ns=(word.stat().st_atime_ns, word.stat().st_mtime_ns))

    assert tampered.is_read()
    assert not tampered.is_read()


def test_environments_that_envd_removes_cost_no_reading_and_others_do(tampered: Tampered) -> None:
    root = tampered.root.settings.root
    (root / "trash" / "0123.4567").mkdir(parents=True)
    (root / "first").rename(root / "trash" / "0123.4567" / "attempt")

    trash.empty(root / "trash")

    assert not list((root / "trash").iterdir())
    assert not tampered.is_read()
    shutil.rmtree(next(root.glob("next*")))
    assert tampered.is_read()
