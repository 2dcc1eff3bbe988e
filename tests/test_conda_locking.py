"""Conda packages are locked over a mirror, as of a month, and failures say why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from envd.config import Settings
from envd.errors import (
    BuildTimedOutError,
    CacheFullError,
    IndexUnreachableError,
    NotLockedOfflineError,
    SolveFailedError,
)
from envd.events import Event
from envd.lock import conda
from envd.lock.conda import CondaQuestion
from envd.lock.rattler import Rattler
from envd.settings.sections import Build
from envd.spec.conda_package import CondaPackage
from tests import test_shortages
from tests.conda_channel import PURE, Channel, Package
from tests.mirror import Mirror, hang, refuse, truncate, want
from tests.test_shortages import Disk

HOME = "https://conda.anaconda.org/conda-forge"
MONTH = "2020-02-01T00:00:00Z"
LATER = date(2020, 2, 1)
ABSENT = (
    "there is no `nowhere`, no `word >=9` (there is 1.0, 2.0), no `old[build='1']` "
    "(there is 1.0 0), no `mac` in conda-forge, other"
)
GLIBC = "__glibc >=2.90, which the platform does not have (it has __glibc 2.36)"

disk = test_shortages.disk


@pytest.fixture
def settings(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A root for which the mirror is conda-forge, and a home with nothing in it."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CONDA_OVERRIDE_GLIBC", raising=False)
    return with_conda(Settings(tmp_path / "root"), mirrors=(at(mirror),))


def with_conda(settings: Settings, **changed: object) -> Settings:
    return replace(settings, conda=replace(settings.conda, **changed))  # type: ignore[arg-type]


def at(mirror: Mirror, login: str = "") -> str:
    return f"conda-forge=http://{login}127.0.0.1:{mirror.port}/conda-forge"


def solve(
    settings: Settings,
    *packages: str,
    channels: tuple[str, ...] = ("conda-forge",),
    platforms: tuple[str, ...] = ("linux-64",),
    moment: str = "",
    offline: bool = False,
) -> Mapping[str, tuple[CondaPackage, ...]]:
    question = CondaQuestion(channels, packages, platforms, moment, offline)
    events: list[Event] = []
    found = conda.solve(question, Rattler(settings), events.append)
    assert events == []
    return found


def stems(settings: Settings, *packages: str, **asked: object) -> list[str]:
    """Return what is locked for linux-64."""
    found = solve(settings, *packages, **asked)  # type: ignore[arg-type]
    return [one.stem for one in found["linux-64"]]


def conflict() -> list[Package]:
    """Two that need another version each of a third."""
    return [
        Package("word", "1.0"),
        Package("word", "2.0"),
        Package("old", depends=["word <2"]),
        Package("new", depends=["word >=2"]),
    ]


def test_a_lock_has_all_that_installing_needs_for_each_platform(
    channel: Channel, settings: Settings, mirror: Mirror
) -> None:
    native = Package(
        "native",
        "1.5",
        "h1_3",
        build_number=3,
        depends=["word >=1", "__unix"],
        constrains=["other <2"],
        noarch="",
    )
    channel.add(native, Package("word", build=PURE, noarch="python"))
    channel.clone("osx-arm64")

    found = solve(settings, "native ==1.5", platforms=("linux-64", "osx-arm64"))

    record = channel.records["linux-64"]["native-1.5-h1_3.conda"]
    on_linux, word = found["linux-64"]
    assert on_linux == CondaPackage(
        name="native",
        version="1.5",
        build="h1_3",
        build_number=3,
        subdir="linux-64",
        url=f"{HOME}/linux-64/native-1.5-h1_3.conda",
        sha256=record["sha256"],
        md5=record["md5"],
        size=record["size"],
        depends=("word >=1", "__unix"),
        constrains=("other <2",),
    )
    assert (word.noarch, word.url) == ("python", f"{HOME}/noarch/word-1.0-{PURE}.conda")
    assert [one.subdir for one in found["osx-arm64"]] == ["osx-arm64", "noarch"]
    assert mirror.asked("/conda-forge/*") > 0
    # Nothing is left lying, at home neither.
    for empty in (settings.root / "scratch", Path(os.environ["HOME"])):
        assert list(empty.iterdir()) == []
    assert {one.name for one in (settings.root / "cache").iterdir()} == {"conda"}


def test_what_was_published_from_the_moment_on_does_not_exist(
    channel: Channel, settings: Settings
) -> None:
    channel.add(
        Package("word", "1.0", published=date(2020, 1, 31)),
        Package("word", "2.0", published=LATER),
        Package("undated", published=LATER),
    )
    del channel.records["noarch"]["undated-1.0-0.conda"]["timestamp"]
    channel.add()

    # Tests publish at noon.
    then = stems(settings, "word", "undated", moment="2020-02-01T12:00:00Z")
    a_moment_later = stems(settings, "word", moment="2020-02-01T13:00:00.001+01:00")

    assert then == ["undated-1.0-0", "word-1.0-0"]
    assert a_moment_later == ["word-2.0-0"]


def test_of_several_entries_for_one_package_all_hold(channel: Channel, settings: Settings) -> None:
    channel.add(*(Package("word", version) for version in ("0.9", "1.0", "2.0")))

    # conda-lock keeps the last (conda/conda-lock#919).
    assert stems(settings, "word <2", "word >=1", "word") == ["word-1.0-0"]


def test_this_platform_is_as_it_is_and_others_as_conda_lock_takes_them(
    channel: Channel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDA_OVERRIDE_GLIBC", "2.99")
    channel.add(Package("native", depends=["__glibc >=2.90"], noarch=""))
    channel.clone("linux-aarch64")

    assert stems(settings, "native") == ["native-1.0-0"]
    with pytest.raises(SolveFailedError) as caught:
        solve(settings, "native", platforms=("linux-aarch64",))

    assert caught.value.message == (
        "no set of conda packages satisfies what is asked for on linux-aarch64: native 1.0 needs "
        "__glibc >=2.90, which the platform does not have (it has __glibc 2.28)"
    )
    assert caught.value.metadata == {"packages": "__glibc, native", "platform": "linux-aarch64"}


@pytest.mark.parametrize(
    ("packages", "why", "names"),
    [
        (("nowhere", "word >=9", "old[build='1']", "mac"), ABSENT, "mac, nowhere, old, word"),
        (("old", "new"), "old 1.0 needs word <2; new 1.0 needs word >=2", "new, old, word"),
        (("both ==3.0",),
         "both 3.0 is only in the channel other, and one before it goes first (strict priority)",
         "both"),
        (("later", "word"), "later 1.0 was published later", "later"),
        (("broken",), "broken 1.0 needs nowhere, which is not there", "broken, nowhere"),
        (("far",), f"far 1.0 needs near; near 1.0 needs {GLIBC}", "__glibc, far, near"),
        (("__glibc >=2.90", "word"), GLIBC.replace(",", " is asked for,", 1), "__glibc"),
        (("__osx", "word"), "__osx is asked for, which the platform does not have", "__osx"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_together_is_named(
    packages: tuple[str, ...],
    why: str,
    names: str,
    channel: Channel,
    settings: Settings,
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONDA_OVERRIDE_GLIBC", "2.36")
    channel.add(
        *conflict(),
        Package("far", depends=["near"]),
        Package("near", depends=["__glibc >=2.90"]),
        Package("mac", platform="osx-arm64", noarch=""),
        Package("later", published=LATER),
        Package("broken", depends=["nowhere"]),
        Package("both"),
    )
    other = Channel(channel.folder.with_name("other"))
    other.add(Package("both", "3.0"))
    settings = with_conda(settings, mirrors=(), channel_alias=mirror.url)

    with pytest.raises(SolveFailedError) as caught:
        solve(settings, *packages, channels=("conda-forge", "other"), moment=MONTH)

    begins = "no set of conda packages as of 2020-02-01 satisfies what is asked for on linux-64: "
    said = caught.value.message.removeprefix(begins)
    # In either order: the solver takes the one or the other first.
    assert sorted(said.split("; ")) == sorted(why.split("; "))
    assert caught.value.metadata == {"packages": names, "platform": "linux-64"}


def test_what_a_later_channel_has_can_be_asked_for_by_its_name(
    channel: Channel, settings: Settings, mirror: Mirror
) -> None:
    channel.add(*conflict())
    other = Channel(channel.folder.with_name("other"))
    other.add(Package("word", "3.0"))
    settings = with_conda(settings, mirrors=(), channel_alias=mirror.url)

    found = solve(settings, "other::word", "new", channels=("conda-forge", "other"))["linux-64"]

    assert [one.url for one in found] == [
        f"{HOME}/noarch/new-1.0-0.conda",
        "https://conda.anaconda.org/other/noarch/word-3.0-0.conda",
    ]


def test_an_index_leads_to_no_other_channel_and_says_what_can_be(
    channel: Channel, settings: Settings, mirror: Mirror
) -> None:
    other = Channel(channel.folder.with_name("other"))
    other.add(Package("else"))
    settings = with_conda(settings, mirrors=(), channel_alias=mirror.url)
    channel.add(Package("word"))
    index = channel.folder / "noarch" / "repodata.json"

    # CEP 42: rattler would take packages of the other, too.
    document = json.loads(index.read_text())
    document["info"]["channel_relations"] = {"base": "../other"}
    index.write_text(json.dumps(document))
    with pytest.raises(SolveFailedError, match="no `else`"):
        solve(settings, "else", "word")
    for key, value in (("build", "../../x"), ("subdir", "../x")):
        channel.records["noarch"]["word-1.0-0.conda"] |= {"build": "0", key: value}
        channel.add()
        with pytest.raises(SolveFailedError, match="true of no package") as caught:
            solve(settings, "word")
        assert caught.value.metadata == {"packages": "word", "platform": "linux-64"}


def test_a_spec_that_rattler_does_not_read_is_named(settings: Settings) -> None:
    with pytest.raises(SolveFailedError, match=r"`word 1\.0 a b` does not say which") as caught:
        solve(settings, "word 1.0 a b")

    assert caught.value.metadata == {"packages": "word 1.0 a b"}


@pytest.mark.slow
def test_a_channel_that_does_not_answer_as_one_is_named_without_its_secrets(
    channel: Channel, settings: Settings, mirror: Mirror
) -> None:
    channel.add(Package("word"))
    place = f"http://user:password@127.0.0.1:{mirror.port}/t/a-token"
    settings = with_conda(
        settings, mirrors=(f"none={place}/none", f"conda-forge={place}/conda-forge")
    )
    said = []

    for name, fault in (("none", None), ("conda-forge", truncate), ("conda-forge", refuse(500))):
        mirror.faults = {"/conda-forge/*": fault} if fault else {}
        with pytest.raises(IndexUnreachableError) as caught:
            solve(settings, "word", channels=("conda-forge", name))
        said.append(caught.value.message)
        assert caught.value.metadata == {"channel": name}

    assert ["404" in said[0], "EOF" in said[1], "500" in said[2]] == [True, True, True]
    for one in said:
        assert "password" not in one
        assert "a-token" not in one
        assert len(one) < 400


@pytest.mark.slow
def test_a_mirror_that_has_gone_is_named(settings: Settings) -> None:
    gone = "conda-forge=http://127.0.0.1:9/conda-forge"

    with pytest.raises(IndexUnreachableError, match=r"`conda-forge` cannot be read.*refused"):
        solve(with_conda(settings, mirrors=(gone,)), "word")


def test_a_mirror_gets_the_login_of_its_url_and_nobody_else(
    channel: Channel, settings: Settings, mirror: Mirror
) -> None:
    channel.add(Package("word"))
    mirror.faults = {"/conda-forge/*": want("user:pass/word")}
    other = Channel(channel.folder.with_name("other"))
    other.add(Package("else"))
    settings = with_conda(
        settings, mirrors=(at(mirror, "user:pass%2Fword@"),), channel_alias=mirror.url
    )

    found = solve(settings, "word", "else", channels=("conda-forge", "other"))["linux-64"]

    assert [one.url for one in found] == [
        "https://conda.anaconda.org/other/noarch/else-1.0-0.conda",
        f"{HOME}/noarch/word-1.0-0.conda",
    ]
    by_channel = {(one.path.split("/")[1], one.credential) for one in mirror.requests}
    assert by_channel == {("conda-forge", "user:pass/word"), ("other", "")}


@pytest.mark.slow
def test_a_channel_that_never_answers_is_not_waited_for(
    channel: Channel, settings: Settings, mirror: Mirror
) -> None:
    channel.add(Package("word"))
    mirror.faults = {"*": hang}
    impatient = replace(settings, build=Build(silence=2.0))  # type: ignore[arg-type]
    hurried = replace(settings, build=Build(timeout=1.5))  # type: ignore[arg-type]

    with pytest.raises(IndexUnreachableError, match="`conda-forge` did not answer for 2 s"):
        solve(impatient, "word")
    with pytest.raises(BuildTimedOutError):
        solve(hurried, "word")


def test_offline_it_is_solved_with_what_is_cached(
    channel: Channel, settings: Settings, mirror: Mirror
) -> None:
    channel.add(Package("word"))

    with pytest.raises(NotLockedOfflineError, match="`conda-forge` is not cached"):
        solve(settings, "word", offline=True)
    assert mirror.requests == []
    stems(settings, "word")
    mirror.requests.clear()
    again = stems(settings, "word", offline=True)

    assert again == ["word-1.0-0"]
    assert mirror.requests == []


def test_a_full_disk_is_named(channel: Channel, settings: Settings, disk: Disk) -> None:
    channel.add(Package("word"))
    settings = replace(settings, root=disk.root)
    stems(settings, "word")
    disk.fill()

    with pytest.raises(CacheFullError):
        solve(settings, "word >=1", platforms=("osx-arm64",))
