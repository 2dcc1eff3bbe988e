"""A mirror of conda-forge that fails, and packages that mean harm: a clear error each time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from envd.build import conda
from envd.child import Limits
from envd.errors import (
    BuildTimedOutError,
    CacheFullError,
    EnvdError,
    IndexUnreachableError,
    InstallFailedError,
    InternalError,
)
from envd.events import Progress
from envd.held import exclusively, read_owner
from envd.lock.rattler import Rattler
from tests import mirror as faults
from tests import test_shortages
from tests.conda_channel import Archive, Channel, Package, pack
from tests.conda_root import CondaRoot, locked
from tests.mirror import Fault, Mirror
from tests.test_shortages import Disk

disk = test_shortages.disk

WORD = Package("word", files={"share/word": "hello\n" * 100})
OTHER = pack(replace(WORD, files={"share/word": "another\n"}))
_OTHERS_SHA256 = hashlib.sha256(OTHER).hexdigest()
_SECRET = "s3cret"
_LOGIN = f"ada:{_SECRET}@"


@dataclass(frozen=True)
class Trial:
    """What goes wrong, and what is to come of it: an error that says so, or nothing wrong.

    Without a fault the mirror is not there at all.
    """

    fault: Fault | None
    error: type[EnvdError] | None = None
    says: str = ""
    login: str = ""
    silence_s: float = 30


TRIALS = {
    "is not there": Trial(None, IndexUnreachableError, "does not answer"),
    "serves": Trial(faults.serve),
    "has none": Trial(faults.refuse(404), IndexUnreachableError, "answers 404 Not Found"),
    "forbids": Trial(faults.refuse(403), IndexUnreachableError, "403.*`conda.auth_file`"),
    "wants a login": Trial(faults.want(_LOGIN[:-1]), IndexUnreachableError, "answers 401"),
    "gets a login": Trial(faults.want(_LOGIN[:-1]), login=_LOGIN),
    "gets a wrong login": Trial(faults.want("eve"), IndexUnreachableError, "401", login=_LOGIN),
    "fails": Trial(faults.refuse(500), IndexUnreachableError, "answers 500 Internal"),
    "failed": Trial(faults.first(2, faults.refuse(500))),
    "breaks off": Trial(faults.break_off, IndexUnreachableError, "broke off"),
    "broke off": Trial(faults.first(1, faults.break_off)),
    "sends half": Trial(faults.truncate, InstallFailedError, "not the one that was locked"),
    "sends a page": Trial(faults.tamper(b"<html>"), InstallFailedError, "not the one that was"),
    "sends another": Trial(faults.tamper(OTHER), InstallFailedError, _OTHERS_SHA256),
    "trickles": Trial(faults.trickle(300), silence_s=2),
    "hangs": Trial(faults.hang, IndexUnreachableError, "nothing came", silence_s=2),
}  # fmt: skip


@dataclass
class Outcome:
    """What has come of a trial."""

    root: CondaRoot
    host: str
    error: BaseException | None


@pytest.fixture(scope="module", autouse=True)
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Future[Outcome]]]:
    """All trials, begun at once: most of them only wait, while the other tests run."""
    folder = tmp_path_factory.mktemp("trials")

    def make(name: str) -> Outcome:
        home = folder / name.replace(" ", "-")
        channel = Channel(home / "channels" / "conda-forge")
        channel.add(WORD)
        trial = TRIALS[name]
        with Mirror(home / "channels", {"*.conda": trial.fault or faults.serve}) as mirror:
            if trial.fault is None:
                mirror.stop()
            root = CondaRoot.at(home / "root", mirror, trial.login)
            limits = Limits(time.monotonic() + 60, trial.silence_s)
            host = f"`127.0.0.1:{mirror.port}`"
            try:
                root.install(locked(channel), limits=limits)
            except EnvdError as error:
                return Outcome(root, host, error)
            return Outcome(root, host, None)

    with ThreadPoolExecutor(len(TRIALS)) as threads:
        yield {name: threads.submit(make, name) for name in TRIALS}


@pytest.fixture
def root(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> CondaRoot:
    monkeypatch.setenv("HOME", str(tmp_path))
    return CondaRoot.at(tmp_path / "root", mirror)


@pytest.mark.parametrize(
    "path",
    ["../word-1.0-0/share/word", "share/../../word-1.0-0/share/word", "{packages}/share/word"],
)
def test_a_package_that_would_write_elsewhere_is_refused(
    path: str, channel: Channel, root: CondaRoot
) -> None:
    # It leads to a file of the package when it is read, and out of the prefix when written.
    entry = {"_path": path.format(packages=root.packages / "word-1.0-0"), "path_type": "hardlink"}
    paths = json.dumps({"paths_version": 1, "paths": [entry]})
    channel.add(
        replace(WORD, files=dict(WORD.files) | {"info/paths.json": paths}, suffix=".tar.bz2")
    )

    with pytest.raises(InstallFailedError, match=r"`word-1\.0-0` has a file outside"):
        root.install(locked(channel), "environments/env")

    assert list(root.settings.root.rglob("word")) == []


def test_a_package_that_says_that_python_has_its_packages_elsewhere_is_refused(
    channel: Channel, root: CondaRoot
) -> None:
    channel.add(WORD)
    (word,) = locked(channel)

    for place in ("../site-packages", "/lib", "lib/../../x"):
        with pytest.raises(InstallFailedError, match="leads elsewhere"):
            root.install([replace(word, site_packages=place)])


@pytest.mark.parametrize("suffix", [".conda", ".tar.bz2"])
def test_an_archive_that_was_never_one_is_an_error_that_says_so(
    suffix: str, channel: Channel, root: CondaRoot, tmp_path: Path
) -> None:
    archive = tmp_path / f"word-1.0-0{suffix}"
    archive.write_bytes(b"nothing of the kind")
    record = WORD.index | {
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "md5": hashlib.md5(archive.read_bytes()).hexdigest(),
        "size": 19,
    }
    channel.add(Archive(archive, record))

    with pytest.raises(InstallFailedError, match=r"`word-1\.0-0` cannot be unpacked: "):
        root.install(locked(channel))

    assert not root.packages.exists()


def test_a_build_that_has_no_time_left_is_ended(
    channel: Channel, mirror: Mirror, root: CondaRoot
) -> None:
    channel.add(WORD)
    mirror.faults["*.conda"] = faults.hang

    with pytest.raises(BuildTimedOutError, match=r"build\.timeout"):
        root.install(locked(channel), limits=Limits(time.monotonic() + 1))

    assert not root.packages.exists()


def test_who_waits_is_told_how_far_it_is(channel: Channel, mirror: Mirror, root: CondaRoot) -> None:
    channel.add(WORD, Package("other"), Package("third"))
    mirror.faults["*/word-*"] = faults.trickle(1000)
    path = root.settings.root / "held" / "build"
    told: list[Progress] = []

    with exclusively(path, lambda _: None) as held:

        def watch(event: object) -> None:
            if isinstance(event, Progress):
                owner = read_owner(path)
                assert owner is not None
                assert owner.progress == event
                told.append(event)

        rattler = Rattler(root.settings).within(held)
        conda.install(locked(channel), root.settings.root / "env", rattler, watch)

    assert {one.total for one in told} == {3}
    assert Progress(2, 3, told[-1].bytes) in told
    assert sorted(told, key=lambda one: (one.done, one.bytes)) == told


def test_a_full_disk_is_named_and_what_fits_is_installed_once_there_is_room(
    disk: Disk, channel: Channel, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(disk.folder))
    channel.add(replace(WORD, files={"share/word": "hello\n" * 200_000}))
    root = CondaRoot.at(disk.root, mirror)
    disk.fill(left=1_000_000)

    with pytest.raises(CacheFullError, match="is full"):
        root.install(locked(channel))

    disk.empty()
    assert root.install(locked(channel), "again").joinpath("share/word").stat().st_size == 1_200_000


def test_a_program_that_fails_for_a_reason_of_its_own_is_a_bug(root: CondaRoot) -> None:
    with pytest.raises(InternalError, match=r"KeyError\('packages'\)"):
        Rattler(root.settings).run("envd.build.conda_installer", {}, root.events.append)


@pytest.mark.parametrize("name", TRIALS)
def test_whatever_a_mirror_does_ends_in_an_environment_or_in_an_error_that_says_so(
    name: str, outcomes: Mapping[str, Future[Outcome]]
) -> None:
    trial, outcome = TRIALS[name], outcomes[name].result()
    word = outcome.root.settings.root / "env" / "share" / "word"

    if trial.error is None:
        assert outcome.error is None
        assert word.read_text() == "hello\n" * 100
    else:
        with pytest.raises(trial.error, match=trial.says) as raised:
            raise outcome.error or AssertionError
        assert type(raised.value) is trial.error
        assert "`word-1.0-0`" in raised.value.message
        assert outcome.host in raised.value.message
        assert _SECRET not in json.dumps([raised.value.document(), outcome.root.lines])
        assert not word.parent.exists()
        assert not outcome.root.packages.exists()
    assert not (outcome.root.packages.parent / "fetching").exists()
