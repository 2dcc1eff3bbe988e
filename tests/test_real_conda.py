"""What envd locks is what the real conda would install, and a conda may solve in its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from envd.config import Settings
from envd.errors import (
    IndexUnreachableError,
    NotLockedOfflineError,
    SettingsInvalidError,
    SolveFailedError,
)
from envd.events import ignore
from envd.lock import conda
from envd.lock.conda import CondaQuestion
from envd.lock.rattler import Rattler
from envd.settings.sections import Conda
from envd.spec.conda_package import CondaPackage
from tests.conda_channel import PURE, Channel, Package
from tests.conda_forge import SKLEARN, TOOLS, CondaForge
from tests.mirror import Mirror, refuse, want
from tests.real_conda import RealConda

HOME = "https://conda.anaconda.org/"
MADE_UP = (
    *(Package("word", version, f"h_{number}", build_number=number)
      for version in ("1.9", "1.10", "2.0a1") for number in (0, 1)),
    Package("word", "1.10", "old_9", build_number=2, suffix=".tar.bz2"),
    Package("reader", "1.0", "h1_0", depends=["word <2", "python >=3.8"], noarch=""),
    Package("reader", "2.0", "h2_0", depends=["word >=2.0a0", "writer"], noarch=""),
    Package("writer", build=PURE, noarch="python", depends=["python <3.8"], constrains=["word <2"]),
    Package("small", depends=["__glibc >=2.17"], noarch=""),
)  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealConda:
    return RealConda.make(tmp_path_factory.mktemp("conda"))


@pytest.fixture
def settings(
    real: RealConda, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """What has the mirror for all channels, as the real conda has."""
    real.configure(channel_alias=mirror.url, channel_priority="strict")
    monkeypatch.setenv("HOME", str(real.home))
    return Settings(tmp_path / "root", conda=Conda(channel_alias=mirror.url))  # type: ignore[arg-type]


def with_exe(settings: Settings, exe: Path, **changed: object) -> Settings:
    return replace(settings, conda=replace(settings.conda, exe=str(exe), **changed))  # type: ignore[arg-type]


def solve(
    settings: Settings, *packages: str, platform: str = "linux-64", **asked: object
) -> tuple[CondaPackage, ...]:
    question = CondaQuestion(
        channels=("conda-forge",),
        packages=packages,
        platforms=(platform,),
        **asked,  # type: ignore[arg-type]
    )
    return conda.solve(question, Rattler(settings), ignore)[platform]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "platform"),
    [
        (("python ==3.9.18", "pip <=23.0.1"), "linux-64"),
        (("python ==3.7.16", "scikit-learn ==0.22.2.post1", "pip"), "linux-64"),
        (("python 3.7.*", "numpy", "joblib >=1"), "linux-64"),
        (("python >=3.8", "conda-forge::wheel", "word"), "linux-64"),
        (("reader ==2.0", "python"), "linux-64"),
        (("word <2", "small"), "linux-64"),
        (("word ==1.10[build='h_*']", "setuptools"), "linux-64"),
        (("python 3.9.*", "pip", "word !=1.10"), "osx-arm64"),
    ],
)
def test_the_packages_are_those_of_the_real_conda(
    packages: tuple[str, ...], platform: str, real: RealConda, settings: Settings,
    conda_forge: CondaForge, channel: Channel, mirror: Mirror,
) -> None:  # fmt: skip
    channel.add(*conda_forge.archives("3.7.16", "3.9.18", *TOOLS, *SKLEARN), *MADE_UP)
    channel.clone("osx-arm64")

    ours = solve(settings, *packages, platform=platform)
    by_conda_lock = solve(with_exe(settings, real.exe), *packages, platform=platform)
    theirs = real.solve(*packages, platform=platform)

    assert [(one.name, one.version, one.build, one.url, one.sha256) for one in ours] == sorted(
        (one["name"], one["version"], one["build"],
         one["url"].replace(f"{mirror.url}/", HOME), one["sha256"])
        for one in theirs
    )  # fmt: skip
    assert by_conda_lock == ours


@pytest.mark.slow
def test_a_conda_goes_by_its_own_configuration_too(
    real: RealConda, settings: Settings, channel: Channel, mirror: Mirror
) -> None:
    channel.add(Package("word"))
    real.configure(custom_channels={"conda-forge": mirror.url})
    settings = replace(settings, conda=Conda())

    (found,) = solve(with_exe(settings, real.exe), "word")
    (same,) = solve(
        with_exe(settings, real.exe, mirrors=(f"conda-forge={mirror.url}/conda-forge",)), "word"
    )

    assert found.url == f"{HOME}conda-forge/noarch/word-1.0-0.conda"
    assert same == found


@pytest.mark.slow
def test_what_a_conda_says_of_a_failure_is_told(
    real: RealConda, settings: Settings, channel: Channel, mirror: Mirror
) -> None:
    channel.add(
        Package("word", "1.0"),
        Package("word", "2.0"),
        Package("old", depends=["word <2"]),
        Package("new", depends=["word >=2"]),
    )
    settings = with_exe(settings, real.exe)

    with pytest.raises(SolveFailedError, match="there is no nowhere") as missing:
        solve(settings, "nowhere", "word")
    with pytest.raises(SolveFailedError, match=r"old needs word\[version='<2'\]") as clashing:
        solve(settings, "old", "new")
    mirror.faults = {"*": refuse(403)}
    with pytest.raises(IndexUnreachableError, match="403"):
        solve(settings, "word")

    assert missing.value.metadata == {"packages": "nowhere", "platform": "linux-64"}
    assert clashing.value.metadata["packages"] == "new, old, word"


@pytest.mark.slow
@pytest.mark.parametrize("secret", ["me:s3cret@{host}", "{host}/t/s3cret"])
def test_a_conda_gets_the_credentials_of_a_mirror_and_that_which_answers(
    secret: str, real: RealConda, settings: Settings, channel: Channel, mirror: Mirror
) -> None:
    channel.add(Package("word"))
    place = secret.format(host=f"127.0.0.1:{mirror.port}")
    mirror.faults = {"*": want("me:s3cret" if "@" in place else "s3cret")}
    mirrors = (
        "conda-forge=http://127.0.0.1:9/conda-forge",
        f"conda-forge=http://{place}/conda-forge",
    )
    real.configure()

    (found,) = solve(with_exe(settings, real.exe, mirrors=mirrors), "word")

    assert found.url == f"{HOME}conda-forge/noarch/word-1.0-0.conda"


def program(path: Path, answer: str, status: int = 0) -> Path:
    """Write a program that answers so, whatever it is asked."""
    path.write_text(f"#!/bin/sh\nprintf '%s' '{answer}'\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_a_conda_that_does_not_work_is_named(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "root")
    for exe, why in (
        (tmp_path / "nothing", "No such file"),
        (Path("/bin/false"), "says nothing"),
        (program(tmp_path / "odd", '{"actions": {"FETCH": [{"name": 1}]}}'), "does not answer as"),
    ):
        with pytest.raises(SettingsInvalidError, match=why) as caught:
            solve(with_exe(settings, exe), "word")
        assert caught.value.metadata == {"setting": "conda.exe", "file": str(exe)}
    with pytest.raises(NotLockedOfflineError, match="asks the channels every time"):
        solve(with_exe(settings, tmp_path), "word", offline=True)
    with pytest.raises(SettingsInvalidError, match="whose URLs end in it"):
        solve(with_exe(settings, tmp_path, mirrors=("conda-forge=http://host/cf",)), "word")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "status"),
    [("", 0), ("[]", 0), ("{}", 0), ("\377", 0), ("usage: ls", 0), ("[1]", 1),
     ('{"actions": []}', 0), ('{"actions": {"FETCH": [{}]}}', 0),
     ('{"actions": {"LINK": [{"name": "a"}]}}', 0)],
)  # fmt: skip
def test_whatever_is_no_conda_is_named(answer: str, status: int, tmp_path: Path) -> None:
    exe = program(tmp_path / "odd", answer, status)

    with pytest.raises(SettingsInvalidError, match=r"`conda\.exe`"):
        solve(with_exe(Settings(tmp_path / "root"), exe), "word")


def test_that_a_conda_knows_no_dates_is_noted() -> None:
    question = CondaQuestion(("conda-forge",), ("word",), ("linux-64",), "2020-02-01T00:00:00Z")
    with_conda = Conda(exe="/opt/bin/micromamba")  # type: ignore[arg-type]

    (note,) = conda.notes(question, with_conda)

    assert (note.code, note.subject) == ("AS_OF_IGNORED", "2020-02-01")
    assert "`micromamba` (`conda.exe`) cannot solve as of a day" in note.message
    assert conda.notes(question, Conda()) == ()
    assert conda.notes(replace(question, moment=""), with_conda) == ()
