"""Where channels are fetched from: which mirror, in which order, and with whose credentials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from envd import model
from envd.config import Settings
from envd.errors import IndexUnreachableError, ModelInvalidError, SettingsInvalidError
from envd.events import ignore
from envd.lock import conda
from envd.lock.conda import CondaQuestion
from envd.lock.rattler import Rattler
from envd.settings.sections import Build, Conda, Security
from envd.spec import conda_model, policy
from envd.spec.dependencies import Dependencies
from envd.spec.mirrors import Mirrors
from tests.conda_channel import Channel, Package
from tests.conda_root import CondaRoot, locked
from tests.mirror import Fault, Mirror, hang, refuse, want

FORGE = "https://conda.anaconda.org/conda-forge"
# What the first mirror of the channel of that name does; the second one serves.
FIRST: dict[str, Fault] = {
    "absent": refuse(404),
    "gone": refuse(410),
    "forbidden": refuse(403),
    "closed": want("tk-1"),
    "broken": refuse(500),
}


def given(**conda: object) -> Conda:
    return Conda(**conda)  # type: ignore[arg-type]


def solve(settings: Settings, channel: str, *packages: str) -> list[str]:
    """Return the URLs of what is locked."""
    question = CondaQuestion((channel,), packages, ("linux-64",))
    found = conda.solve(question, Rattler(settings), ignore)["linux-64"]
    return [one.url for one in found]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with nothing in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def second(mirror: Mirror) -> Iterator[Mirror]:
    """A mirror of the same channels."""
    with Mirror(mirror.folder) as found:
        yield found


def both(tmp_path: Path, *mirrors: Mirror, channels: tuple[str, ...]) -> Settings:
    """Return settings by which every one of *channels* is fetched from *mirrors*."""
    named = [f"{name}={one.url}/{name}" for name in channels for one in mirrors]
    return Settings(tmp_path / "root", conda=given(mirrors=tuple(named)))


def test_a_url_is_fetched_from_the_mirrors_of_the_longest_beginning_that_fits() -> None:
    found = Mirrors.of(
        given(
            channel_alias="https://alias/conda/",
            mirrors=(
                "conda-forge=https://one/cf",
                f"{FORGE}/linux-64=http://two/cf/",
                "https://host/t/token/private=https://user:password@three/private",
                "s3://bucket/own=https://four/own",
            ),
        )
    )

    assert found.of_url(f"{FORGE}/noarch/") == ("https://one/cf/noarch/", "http://two/cf/noarch/")
    assert found.of_url("https://host/private/x") == ("https://user:password@three/private/x",)
    assert found.of_url(f"{FORGE}2/x") == ("https://alias/conda/conda-forge2/x",)
    assert found.of_url("https://host/privates/x") == ("https://host/privates/x",)
    assert found.of_url("s3://bucket/own/x") == ("https://four/own/x",)
    assert "password" not in repr(found)
    assert Mirrors.of(Conda()).of_url(f"{FORGE}/x") == (f"{FORGE}/x",)


@pytest.mark.parametrize(
    ("conda", "why"),
    [
        (given(mirrors=("../up=https://host/up",)), "it is a relative path"),
        (given(mirrors=("https://me:s3cret@h/t/s3cret/a?=https://host/up",)), "it is neither"),
        (given(channel_alias="file:///channels"), "has to be an http or https URL"),
        *(
            (given(mirrors=(f"{name}=https://host/up",)), "name `pkgs/main` and `pkgs/r`")
            for name in (
                "defaults", " Defaults", "DEFAULTS/noarch", "None", "<unknown>",
                "t/s3cret/defaults", "https://conda.anaconda.org/defaults",
                "http://me:s3cret@anaconda.org/defaults/",
            )
        ),
    ],
)  # fmt: skip
def test_a_mirror_of_no_one_channel_is_refused(conda: Conda, why: str) -> None:
    with pytest.raises(SettingsInvalidError, match=why) as caught:
        Mirrors.of(conda)

    assert caught.value.metadata["setting"] in {"conda.mirrors", "conda.channel_alias"}
    assert "s3cret" not in caught.value.message


def test_an_index_is_read_from_the_first_mirror_that_has_it(
    tmp_path: Path, mirror: Mirror, second: Mirror, home: Path
) -> None:
    names = (*FIRST, "whole")
    for name in names:
        Channel(mirror.folder / name).add(Package(name))
    mirror.faults = {f"/{name}/*": fault for name, fault in FIRST.items()}
    settings = both(tmp_path, mirror, second, channels=names)
    question = CondaQuestion(names, names, ("linux-64",))

    found = conda.solve(question, Rattler(settings), ignore)["linux-64"]

    assert sorted(one.name for one in found) == sorted(names)
    assert all(one.url.startswith("https://conda.anaconda.org/") for one in found)
    # The directory for linux-64 is not there, at neither of them.
    assert second.asked("/whole/noarch/*") == 0
    assert all(second.asked(f"/{name}/noarch/repodata.json*") for name in FIRST)
    assert not home.exists()


def test_what_one_mirror_has_for_a_platform_is_found_where_another_lacks_it(
    tmp_path: Path, channel: Channel, mirror: Mirror, second: Mirror
) -> None:
    channel.add(Package("native", noarch=""), Package("word"))
    mirror.faults = {"*/linux-64/*": refuse(404)}

    found = solve(
        both(tmp_path, mirror, second, channels=("conda-forge",)), "conda-forge", "native"
    )

    assert found == [f"{FORGE}/linux-64/native-1.0-0.conda"]


def test_an_index_is_not_waited_for_where_another_mirror_has_it(
    tmp_path: Path, channel: Channel, mirror: Mirror, second: Mirror
) -> None:
    channel.add(Package("word"))
    mirror.faults = {"*": hang}
    settings = both(tmp_path, mirror, second, channels=("conda-forge",))
    # A third of that is waited for the first.
    hurried = replace(settings, build=Build(silence=3.0))  # type: ignore[arg-type]

    assert solve(hurried, "conda-forge", "word") == [f"{FORGE}/noarch/word-1.0-0.conda"]


def test_where_no_mirror_has_an_index_all_of_them_are_named(
    tmp_path: Path, channel: Channel, mirror: Mirror, second: Mirror
) -> None:
    channel.add(Package("word"))
    mirror.faults, second.faults = {"*": refuse(404)}, {"*": want("tk-1", 403)}
    secret = f"conda-forge=http://me:s3cret@127.0.0.1:{second.port}/t/s3cret/conda-forge"
    settings = both(tmp_path, mirror, channels=("conda-forge",))
    mirrors = (*settings.conda.mirrors, secret, "conda-forge=http://127.0.0.1:9/conda-forge")

    with pytest.raises(IndexUnreachableError) as caught:
        solve(replace(settings, conda=given(mirrors=mirrors)), "conda-forge", "word")

    assert caught.value.metadata == {"channel": "conda-forge"}
    assert caught.value.message == (
        f"the channel `conda-forge` cannot be read: `{mirror.url}/conda-forge/` answers "
        f"404 Not Found; `{second.url}/t/***/conda-forge/` answers 403 Forbidden (are "
        "its credentials in `conda.auth_file` or `conda.mirrors`?); "
        "`http://127.0.0.1:9/conda-forge/` does not answer"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("s3cret", "at line 1 column 1; it has to be JSON"),
        ('{"host": {"Token": "s3cret"}}', "at line 1 column"),
        ("", "at line 1 column 0"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_credentials_that_is_none_is_named(
    content: str | None, why: str, tmp_path: Path, channel: Channel, mirror: Mirror
) -> None:
    channel.add(Package("word"))
    file = tmp_path / "auth.json"
    if content is not None:
        file.write_text(content)
    root = CondaRoot.at(tmp_path / "root", mirror).changed("conda", auth_file=str(file))

    for use in (
        lambda: solve(root.settings, "conda-forge", "word"),
        lambda: root.install(locked(channel)),
    ):
        with pytest.raises(SettingsInvalidError, match=why) as caught:
            use()
        assert caught.value.metadata == {"setting": "conda.auth_file", "file": str(file)}
        assert str(file) in caught.value.message
        assert "s3cret" not in caught.value.message
    assert not root.packages.exists()


def test_rattlers_own_store_is_named_where_it_cannot_be_read(
    tmp_path: Path, channel: Channel, mirror: Mirror, home: Path
) -> None:
    channel.add(Package("word"))
    (home / ".rattler").mkdir(parents=True)
    (home / ".rattler" / "credentials.json").write_text("{")

    with pytest.raises(SettingsInvalidError, match=r"`~/\.rattler/credentials\.json`"):
        CondaRoot.at(tmp_path / "root", mirror).install(locked(channel))


def test_a_file_of_credentials_counts_for_indexes_and_archives(
    tmp_path: Path, channel: Channel, mirror: Mirror
) -> None:
    channel.add(Package("word"))
    mirror.faults = {"*": want("tk-1")}
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"127.0.0.1": {"CondaToken": "tk-1"}}))
    root = CondaRoot.at(tmp_path / "root", mirror).changed("conda", auth_file=str(file))

    assert solve(root.settings, "conda-forge", "word") == [f"{FORGE}/noarch/word-1.0-0.conda"]
    root.install(locked(channel))

    assert {one.credential for one in mirror.requests} == {"tk-1"}


def read(folder: Path, text: str, **settings: object) -> Dependencies:
    """Read a model whose conda.yaml has *text*."""
    (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: mlflow.sklearn}}")
    (folder / "conda.yaml").write_text(f"{text}\ndependencies: [python=3.9, word]\n")
    chosen = Settings(folder / "root", conda=given(**settings))
    return conda_model.read(model.read(folder), "conda.yaml", policy.of(Security(), {}), chosen)


def test_the_credentials_of_a_model_for_its_channels_are_cut(tmp_path: Path) -> None:
    text = (
        "channels: ['https://me:s3cret@host/own', 'https://anaconda.org/t/s3cret/conda-forge', "
        "'https://repo.anaconda.com/t/s3cret/pkgs/main']"
    )

    found = read(tmp_path, text)

    assert found.channels == ("https://host/own", "conda-forge")
    cut = [one.subject for one in found.notes if one.code == "CREDENTIALS_CUT"]
    assert cut == ["https://host/own", "conda-forge"]
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize("name", ["s3://bucket/own", "oci://ghcr.io/channel-mirrors/conda-forge"])
def test_a_channel_of_another_scheme_needs_a_mirror(
    name: str, tmp_path: Path, mirror: Mirror
) -> None:
    text = f"channels:\n- conda-forge\n- {name}"
    with pytest.raises(
        ModelInvalidError, match=r"line 3: the channel .* `conda\.mirrors`"
    ) as caught:
        read(tmp_path, text)
    Channel(mirror.folder / "own").add(Package("word"))
    settings = given(mirrors=(f"{name}={mirror.url}/own",))

    assert name in read(tmp_path, text, mirrors=settings.mirrors).channels
    assert caught.value.metadata["channel"] == name
    found = solve(Settings(tmp_path / "root", conda=settings), name, "word")
    assert found == [f"{name}/noarch/word-1.0-0.conda"]
