"""A mirror of conda-forge that fails, and packages that mean harm: a clear error each time."""

from __future__ import annotations

import contextlib
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

    Without a fault the mirror is not there at all. There may be a second one.
    """

    fault: Fault | None
    error: type[EnvdError] | None = None
    says: str = ""
    login: str = ""
    silence_s: float = 30
    second: Fault | None = None
    others: int = 0


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
    "breaks off": Trial(faults.break_off, IndexUnreachableError, "breaks off"),
    "broke off": Trial(faults.first(1, faults.break_off)),
    "sends half": Trial(faults.truncate, InstallFailedError, "not the one that was locked"),
    "sends a page": Trial(faults.tamper(b"<html>"), InstallFailedError, "not the one that was"),
    "sends another": Trial(faults.tamper(OTHER), InstallFailedError, _OTHERS_SHA256),
    # 14 s: on a busy machine the programs that fetch may stand still for some seconds.
    "trickles": Trial(faults.trickle(60), silence_s=10),
    "hangs": Trial(faults.hang, IndexUnreachableError, "nothing came", silence_s=2),
    "is not there, the second serves": Trial(None, second=faults.serve),
    **{
        f"answers {status}, the second serves": Trial(faults.refuse(status), second=faults.serve)
        for status in (401, 403, 404, 410, 500)
    },
    "breaks off, the second serves": Trial(faults.break_off, second=faults.serve),
    "sends another, the second serves": Trial(faults.tamper(OTHER), second=faults.serve),
    "hangs, the second serves": Trial(
        faults.hang, second=faults.serve, silence_s=6, others=19
    ),
    "answers 404, the second fails for a while": Trial(
        faults.refuse(404), second=faults.first(2, faults.refuse(500))
    ),
    "hangs, the second has none": Trial(
        faults.hang, IndexUnreachableError, "sends nothing for 1 s; .* answers 404",
        silence_s=3, second=faults.refuse(404),
    ),
    "both fail": Trial(
        faults.refuse(404), IndexUnreachableError, r"404 Not Found; .* answers 403",
        second=faults.refuse(403),
    ),
    "one is not there, one sends another": Trial(
        None, InstallFailedError, _OTHERS_SHA256, second=faults.tamper(OTHER)
    ),
    "both hang": Trial(
        faults.hang, IndexUnreachableError, "nothing came", silence_s=3, second=faults.hang
    ),
}  # fmt: skip


@dataclass
class Outcome:
    """What has come of a trial."""

    root: CondaRoot
    places: list[str]
    error: BaseException | None
    asked: list[int]


@pytest.fixture(scope="module", autouse=True)
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Future[Outcome]]]:
    """All trials, begun at once: most of them only wait, while the other tests run."""
    folder = tmp_path_factory.mktemp("trials")

    def make(name: str) -> Outcome:
        home = folder / name.replace(" ", "-")
        channel = Channel(home / "channels" / "conda-forge")
        trial = TRIALS[name]
        channel.add(WORD, *(Package(f"p{number}") for number in range(trial.others)))
        with contextlib.ExitStack() as stack:
            mirrors = [
                stack.enter_context(Mirror(home / "channels", {"*.conda": fault or faults.serve}))
                for fault in (trial.fault, *([trial.second] if trial.second else []))
            ]
            if trial.fault is None:
                mirrors[0].stop()
            root = CondaRoot.at(home / "root", *mirrors, login=trial.login)
            limits = Limits(time.monotonic() + 60, trial.silence_s)
            places = [f"`{one.url}/conda-forge/`" for one in mirrors]
            error: EnvdError | None = None
            try:
                root.install(locked(channel), limits=limits)
            except EnvdError as raised:
                error = raised
            return Outcome(root, places, error, [one.asked("*.conda") for one in mirrors])

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


def test_mirrors_are_asked_in_their_order_and_no_more_of_them_than_needed(
    channel: Channel, mirror: Mirror, tmp_path: Path
) -> None:
    channel.add(WORD, Package("other"))
    mirror.faults["*/other-*"] = faults.refuse(404)
    with Mirror(mirror.folder) as second, Mirror(mirror.folder) as third:
        CondaRoot.at(tmp_path / "root", mirror, second, third).install(locked(channel))

    asked = [sorted(one.path for one in each.requests) for each in (mirror, second, third)]
    word, other = (f"/conda-forge/noarch/{name}-1.0-0.conda" for name in ("word", "other"))
    assert asked == [[other, word], [other], []]


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
    assert 2 in {one.done for one in told}
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
    with pytest.raises(InternalError, match=r"KeyError\('go'\)"):
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
        wrong = outcome.places if trial.error is IndexUnreachableError else outcome.places[-1:]
        assert all(one in raised.value.message for one in wrong)
        assert _SECRET not in json.dumps([raised.value.document(), outcome.root.lines])
        assert not word.parent.exists()
        assert not outcome.root.packages.exists()
    assert list((outcome.root.settings.root / "scratch").iterdir()) == []


def test_a_mirror_that_hangs_is_not_waited_for_again(
    outcomes: Mapping[str, Future[Outcome]],
) -> None:
    # As many as are fetched at once.
    assert outcomes["hangs, the second serves"].result().asked == [16, 20]
