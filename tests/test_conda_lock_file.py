"""`conda-lock.yml`: what envd writes others read, and what lies in a model is not believed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envd.build import conda as conda_build
from envd.config import Settings
from envd.errors import ModelInvalidError, SolveFailedError
from envd.events import ignore
from envd.lock import conda, conda_lock_file
from envd.lock.conda import CondaQuestion
from envd.lock.rattler import Rattler
from envd.settings.sections import Conda
from envd.spec import conda_lock
from envd.spec.conda_lock import CondaLock, PipPackage
from envd.spec.conda_package import CondaPackage
from tests.conda_channel import PURE, Channel, Package
from tests.mirror import Mirror

HOME = "https://conda.anaconda.org/conda-forge"
SIX = PipPackage(
    "six", "1.16.0", "https://host/six-1.16.0-py2.py3-none-any.whl", "2" * 64, "linux-64"
)
ENTRY = {
    "name": "word",
    "version": "1.0",
    "manager": "conda",
    "platform": "linux-64",
    "dependencies": {"python": ">=3.7"},
    "url": f"{HOME}/noarch/word-1.0-{PURE}.conda",
    "hash": {"md5": "0" * 32, "sha256": "1" * 64},
    "category": "main",
    "optional": False,
}
_READERS = """
import json, os, pathlib, sys, tempfile
tempfile.tempdir = sys.argv[1]
import rattler
from conda_lock.content_hash import compute_content_hashes
from conda_lock.lockfile import parse_conda_lock_file
from conda_lock.src_parser.environment_yaml import parse_environment_file
from conda_lock.virtual_package import default_virtual_package_repodata

folder = pathlib.Path(sys.argv[1])
lock = parse_conda_lock_file(folder / "conda-lock.yml")
environment = rattler.LockFile.from_path(folder / "conda-lock.yml").default_environment()
(here,) = [one for one in environment.platforms() if str(one) == "linux-64"]
asked = parse_environment_file(folder / "environment.yml", ["linux-64", "osx-arm64"], "")
print(json.dumps({
    "conda_lock": [
        [one.name, one.version, one.url, one.hash.sha256, one.manager, one.platform]
        for one in lock.package
    ],
    "conda": [
        [one.name.normalized, str(one.version), str(one.build), one.build_number, one.url,
         one.sha256.hex(), one.noarch.python, one.depends]
        for one in environment.conda_repodata_records_for_platform(here)
    ],
    "pip": [
        [one.name, str(one.version), one.location, one.hashes.sha256.hex()]
        for one in environment.pypi_packages_for_platform(here)
    ],
    "content_hash": lock.metadata.content_hash,
    "expected_hash": compute_content_hashes(asked, default_virtual_package_repodata()),
}), flush=True)
os._exit(0)
"""


@pytest.fixture
def settings(tmp_path: Path, mirror: Mirror) -> Settings:
    place = f"conda-forge=http://127.0.0.1:{mirror.port}/t/a-token/conda-forge"
    return Settings(tmp_path / "root", conda=Conda(mirrors=(place,)))  # type: ignore[arg-type]


@pytest.fixture
def lock(tmp_path: Path) -> Callable[..., CondaLock]:
    """Write a lock into a model, and read it."""

    def written(*entries: object, platform: str = "linux-64", **more: object) -> CondaLock:
        document = {"version": 1, "metadata": {}, "package": list(entries)} | more
        # JSON is YAML.
        (tmp_path / "conda-lock.yml").write_text(json.dumps(document, indent=1))
        return conda_lock.read(tmp_path, "conda-lock.yml", platform)

    return written


def as_read(folder: Path) -> Any:
    """Return what conda-lock and rattler read."""
    argv = [sys.executable, "-W", "ignore", "-c", _READERS, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(done.stdout)


def files_of(prefix: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(prefix)): one.read_bytes().replace(str(prefix).encode(), b"PREFIX")
        for one in prefix.rglob("*")
        if one.is_file() and "conda-meta" not in one.parts
    }


def test_what_is_written_is_read_alike_by_conda_lock_rattler_and_envd(
    channel: Channel, settings: Settings, tmp_path: Path
) -> None:
    python = Package(
        "python", "3.13.1", "h1_5_cp313t", build_number=5, noarch="",
        files={"bin/python": "#!/bin/sh\n"},
    )  # fmt: skip
    channel.add(
        python,
        Package("pure", build=PURE, noarch="python", depends=["python >=3.7,<4", "words 1.*"],
                entry_points=["say = pure:say"], files={"site-packages/pure.py": "x = 1\n"}),
        # Neither is what the names of their builds say.
        Package("words", "1.2", build="py_odd_7", files={"share/words": "hello"}),
        Package("plain", "2!1.0+local", build="0", noarch="python",
                files={"site-packages/plain.py": "x = 2\n"}, suffix=".tar.bz2"),
    )  # fmt: skip
    (record,) = channel.records["linux-64"].values()
    record["python_site_packages_path"] = "lib/python3.13t/site-packages"
    channel.clone("osx-arm64")
    asked = ("pure 1.*", "plain", "conda-forge::python")
    question = CondaQuestion(("conda-forge",), asked, ("linux-64", "osx-arm64"))
    rattler = Rattler(settings)
    found = conda.solve(question, rattler, ignore)

    text = conda_lock_file.text(question, found, [SIX], rattler)
    (tmp_path / "conda-lock.yml").write_text(text)
    (tmp_path / "environment.yml").write_text(
        json.dumps({"channels": ["conda-forge"], "dependencies": asked})
    )
    ours = conda_lock.read(tmp_path, "conda-lock.yml", "linux-64")
    theirs = as_read(tmp_path)

    for secret in ("a-token", str(tmp_path), "127.0.0.1"):
        assert secret not in text
    assert theirs["content_hash"] == theirs["expected_hash"]
    locked = [
        [one.name, one.version, one.url, one.sha256, "conda", platform]
        for platform, packages in found.items()
        for one in packages
    ]
    six = [SIX.name, SIX.version, SIX.url, SIX.sha256]
    assert sorted(theirs["conda_lock"]) == sorted([*locked, [*six, "pip", "linux-64"]])
    assert sorted(theirs["conda"]) == [
        [one.name, one.version, one.build, one.build_number, one.url, one.sha256,
         one.noarch == "python", list(one.depends)]
        for one in ours.packages
    ]  # fmt: skip
    assert theirs["pip"] == [six]
    assert (ours.pip, ours.channels, ours.notes) == ((SIX,), ("conda-forge",), ())
    # What the file has no place for makes no difference.
    for name, packages in (("locked", found["linux-64"]), ("read", ours.packages)):
        conda_build.install(packages, tmp_path / name, rattler, ignore)
    installed = files_of(tmp_path / "locked")
    assert installed == files_of(tmp_path / "read")
    assert {one for one in installed if one.endswith((".py", "words", "say"))} == {
        "lib/python3.13t/site-packages/pure.py",
        "lib/python3.13t/site-packages/plain.py",
        "share/words",
        "bin/say",
    }
    assert text == conda_lock_file.text(question, found, [SIX], rattler)


def test_a_package_without_md5_cannot_be_written(settings: Settings) -> None:
    package = CondaPackage(
        "word", "1.0", "0", 0, "noarch", f"{HOME}/noarch/word-1.0-0.conda", "1" * 64
    )
    question = CondaQuestion(("conda-forge",), ("word",), ("linux-64",))

    with pytest.raises(SolveFailedError, match="no md5"):
        conda_lock_file.text(question, {"linux-64": [package]}, [], Rattler(settings))


def test_a_lock_is_read_for_one_platform_and_for_everybody(lock: Callable[..., CondaLock]) -> None:
    pip = {**ENTRY, "manager": "pip", "name": "Word_Two", "url": "https://host/word_two-1.0.tar.gz",
           "hash": {"sha256": "2" * 64}}  # fmt: skip
    found = lock(
        ENTRY,
        pip,
        {**ENTRY, "platform": "osx-arm64"},
        {**ENTRY, "name": "tool", "url": f"{HOME}/noarch/tool-1.0-0.conda", "category": "dev"},
        {**pip, "name": "extra", "category": "plot", "optional": True},
    )

    assert found == CondaLock(
        ("conda-forge",),
        (
            CondaPackage(
                name="word",
                version="1.0",
                build=PURE,
                build_number=0,
                subdir="noarch",
                url=f"{HOME}/noarch/word-1.0-{PURE}.conda",
                sha256="1" * 64,
                md5="0" * 32,
                noarch="python",
                depends=("python >=3.7",),
            ),
        ),
        (PipPackage("word-two", "1.0", "https://host/word_two-1.0.tar.gz", "2" * 64, "linux-64"),),
        (),
    )


@pytest.mark.parametrize(
    ("url", "channel", "canonical"),
    [
        ("https://conda.anaconda.org/t/a-token/private/noarch/word-1.0-0.conda", "private",
         "https://conda.anaconda.org/private/noarch/word-1.0-0.conda"),
        ("http://user:password@HOST/a/b/linux-64/word-1.0-0.tar.bz2", "http://host/a/b",
         "http://host/a/b/linux-64/word-1.0-0.tar.bz2"),
        ("https://repo.anaconda.com/pkgs/main/noarch/word-1.0-0.conda",
         "https://repo.anaconda.com/pkgs/main",
         "https://repo.anaconda.com/pkgs/main/noarch/word-1.0-0.conda"),
        ("file:///channels/own/noarch/word-1.0-0.conda", "file:///channels/own",
         "file:///channels/own/noarch/word-1.0-0.conda"),
    ],
)  # fmt: skip
def test_a_package_has_the_url_its_channel_goes_by_without_its_secrets(
    url: str, channel: str, canonical: str, lock: Callable[..., CondaLock]
) -> None:
    found = lock({**ENTRY, "url": url})

    assert found.channels == (channel,)
    assert [one.url for one in found.packages] == [canonical]
    has_secret = "token" in url or "password" in url
    assert [(one.code, one.subject) for one in found.notes] == (
        [("CREDENTIALS_CUT", channel)] if has_secret else []
    )
    assert "token" not in str(found)
    assert "password" not in str(found)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"hash": {"md5": "0" * 32}}, "`word` has no sha256"),
        ({"hash": "1" * 64}, "`word` has no sha256"),
        ({"hash": {"sha256": "1" * 63}}, "`sha256` of a package is `1"),
        ({"hash": {"sha256": "1" * 64, "md5": "x"}}, "`md5` of a package is `x`"),
        ({"hash": {"sha256": {"1": "2"}}}, "`sha256` of a package is missing, or no text"),
        ({"url": f"ftp://host/noarch/word-1.0-{PURE}.conda"}, "`url` of a package is `ftp:"),
        ({"url": f"s3://host/noarch/word-1.0-{PURE}.conda"}, "`url` of a package is `s3:"),
        ({"url": f"file://host/noarch/word-1.0-{PURE}.conda"}, "`url` of a package is `file:"),
        ({"url": "word-1.0-0.conda"}, "`url` of a package is `word"),
        ({"url": None}, "`url` of a package is missing"),
        ({"url": f"{HOME}/noarch/../word-1.0-{PURE}.conda"}, "means one place"),
        ({"url": f"{HOME}/noarch/${{TOKEN}}/noarch/word-1.0-0.conda"}, "means one place"),
        ({"url": f"{HOME}/noarch/word-1.0-{PURE}.conda?token=1"}, "has a query"),
        ({"url": f"{HOME}/noarch/word-1.1-{PURE}.conda"}, "not an archive of `word` 1.0"),
        ({"url": f"{HOME}/noarch/other-1.0-{PURE}.conda"}, "not an archive of `word` 1.0"),
        ({"url": f"{HOME}/noarch/word-1.0-{PURE}.whl"}, "not an archive of `word` 1.0"),
        ({"url": "https://host"}, "not an archive of `word` 1.0"),
        ({"url": f"{HOME}/osx-arm64/word-1.0-0.conda"}, "is not for linux-64"),
        ({"url": "https://conda.anaconda.org/noarch/word-1.0-0.conda"}, "not the URL of a channel"),
        ({"url": "https://h/" + "x" * 9999}, "`url` of a package is"),
        ({"name": "../word"}, "`name` of a package is"),
        ({"name": None}, "`name` of a package is missing"),
        ({"version": "1.0; rm"}, "`version` of a package is"),
        ({"manager": "npm"}, "`manager` of a package is `npm`"),
        ({"dependencies": ["python"]}, "`dependencies` of a package is"),
        ({"dependencies": {"python": ["3"]}}, "`dependencies` of a package is"),
        ({"dependencies": {"python": "3\n4"}}, "`dependencies` of a package is"),
        ({"dependencies": {"python": "3" * 600}}, "`dependencies` of a package is"),
    ],
)  # fmt: skip
def test_what_says_nothing_that_can_be_trusted_is_refused(
    changed: dict[str, object], why: str, lock: Callable[..., CondaLock]
) -> None:
    with pytest.raises(ModelInvalidError) as caught:
        lock({**ENTRY, **changed})

    assert why in caught.value.message
    assert "conda-lock.yml`, line " in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"version": 2}, "a lock of version `2`; envd reads 1"),
        ({"version": None}, "a lock of version `None`"),
        ({"package": None}, "`package` is not a list"),
        ({"package": {"word": ENTRY}}, "`package` is not a list"),
        ({"package": ["word"]}, "`package` is not a list"),
        ({"package": []}, "no packages for linux-64, only for nothing"),
        ({"package": [{**ENTRY, "platform": "win-64"}]}, "packages for linux-64, only for win-64"),
        ({"package": [{**ENTRY, "platform": ["linux-64"]}]}, "no packages for linux-64"),
        ({"package": [{**ENTRY, "category": "dev"}]}, "no packages for linux-64"),
        ({"package": [ENTRY, ENTRY]}, "two packages `word`"),
        ({"package": [{"name": "x"}] * 5001}, "over 5000 packages"),
        ({"package": [{**ENTRY, "more": ["x"] * 200_000}]}, "over 200000 values"),
        ({"package": [{**ENTRY, "more": "x" * (4 << 20)}]}, "over 4194304 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_lock_for_this_platform_is_refused(
    more: dict[str, object], why: str, lock: Callable[..., CondaLock]
) -> None:
    with pytest.raises(ModelInvalidError) as caught:
        lock(**more)

    assert why in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    "text",
    ["", "[]", "version: 1", "version: 1\npackage: &a [*a]", "version: !!int 1", "a: [", "\0",
     "version: 1\npackage: " + "[" * 99],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "conda-lock.yml").write_text(text)

    with pytest.raises(ModelInvalidError, match=r"conda-lock\.yml"):
        conda_lock.read(tmp_path, "conda-lock.yml", "linux-64")


def test_two_packages_of_nearly_one_name_are_two_to_conda_and_one_to_pip(
    lock: Callable[..., CondaLock],
) -> None:
    dotted, scored = (
        {**ENTRY, "name": name, "url": f"{HOME}/noarch/{name}-1.0-0.conda"}
        for name in ("ruamel.yaml", "ruamel_yaml")
    )

    assert len(lock(dotted, scored).packages) == 2
    with pytest.raises(ModelInvalidError, match="two packages"):
        lock(dotted | {"manager": "pip"}, scored | {"manager": "pip"})
