"""Channels of conda: one name for every spelling, and which of them are Anaconda's own."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envd.spec import channels
from envd.spec.channels import CONDA_FORGE, DEFAULTS, Channel

ANACONDAS = [
    # Names, as conda and people use them.
    "defaults",
    " defaults ",
    "Defaults",
    "DEFAULTS",
    "defaults/",
    "defaults/linux-64",
    "defaults/noarch/",
    "defaults/osx-arm64",
    "<unknown>",
    "None",
    "anaconda",
    "Anaconda",
    "anaconda/linux-64",
    "anaconda/label/dev",
    "anaconda/label/broken/linux-64",
    "main",
    "main/win-64",
    "main/label/main",
    "r",
    "R",
    "r/noarch",
    "free",
    "free/linux-32",
    "msys2",
    "pro",
    "archive",
    "mro",
    "mro-archive",
    "t/tk-123/main",
    "t/tk-123/anaconda/label/dev",
    "defaults//",
    "\tdefaults ",
    "DEFAULTS/LINUX-64",
    "Main/Linux-64/",
    "ANACONDA/label/Dev/noarch",
    "anaconda/label/main/linux-64/",
    "mro/linux-64",
    "pro/noarch",
    "t/tk-123/t/tk-456/r",
    # What conda calls its own.
    "pkgs",
    "pkgs/main",
    "pkgs/main/",
    "pkgs/main/linux-64",
    "PKGS/main",
    "pkgs/r",
    "pkgs/r/noarch",
    "pkgs/free",
    "pkgs/pro",
    "pkgs/msys2",
    "pkgs/mro",
    "pkgs/mro-archive",
    "pkgs/archive",
    "Pkgs/MAIN/Linux-64",
    "pkgs//r",
    "pkgs/main/label/dev",
    "pkgs/msys2/win-64/",
    "t/tk-123/pkgs/pro",
    # The hosts of its repository.
    "https://repo.anaconda.com",
    "https://repo.anaconda.com/pkgs",
    "https://repo.anaconda.com/pkgs/main",
    "https://repo.anaconda.com/pkgs/main/",
    "https://repo.anaconda.com/pkgs/main/linux-64",
    "https://repo.anaconda.com/pkgs/main/linux-64/",
    "https://repo.anaconda.com//pkgs//main",
    "https://repo.anaconda.com/pkgs/%6Dain",
    "https://repo.anaconda.com:443/pkgs/r",
    "https://repo.anaconda.com./pkgs/r",
    "https://repo.anaconda.com.:443/pkgs/r",
    "https://repo.anaconda.com.:00443/pkgs/r",
    "HTTPS://Repo.Anaconda.COM/pkgs/main",
    "http://repo.anaconda.com/pkgs/free",
    "http://repo.anaconda.com:80/pkgs/free",
    "https://user:pw@repo.anaconda.com/pkgs/pro",
    "https://repo.anaconda.com/t/tk-123/pkgs/main",
    "repo.anaconda.com/pkgs/main",
    "repo.anaconda.com/pkgs/main/linux-64",
    "REPO.Anaconda.com/t/tk-123/pkgs/main/",
    "repo.anaconda.com:443/pkgs/main",
    "repo.anaconda.com./pkgs/main",
    "repo.anaconda.com",
    "//repo.anaconda.com/pkgs/main",
    "https://repo.anaconda.com:8443/pkgs/main",
    "https://repo.anaconda.com/pkgs%2Fmain",
    "https://repo.anaconda.com/pkgs/main/%6Cinux-64",
    "https://repo.anaconda.com/pkgs/main/linux-64/repodata.json",
    "https://repo.anaconda.com/pkgs/main/linux-64/numpy-1.26.4-py39_0.conda",
    "https://repo.anaconda.com/archive",
    "https://user:p%40w@repo.anaconda.com:443/t/tk-123/t/tk-456/pkgs/main/noarch/",
    "https://mirror.corp@repo.anaconda.com/pkgs/main",
    "https://repo.continuum.io",
    "HTTP://REPO.CONTINUUM.IO:80/PKGS/FREE/",
    "repo.continuum.io/pkgs/main/osx-64",
    "https://repo.continuum.io/pkgs/free",
    "https://repo.continuum.io/pkgs/main/noarch",
    "http://repo.continuum.io/pkgs/pro",
    "https://repo.anaconda.cloud/repo/main",
    "https://repo.anaconda.cloud/repo/r/linux-64",
    "https://repo.anaconda.cloud/repo/anaconda",
    "https://repo.anaconda.cloud/t/tk-123/repo/main",
    "https://repo.anaconda.cloud/repo/t/tk-123/main",
    "https://user:pw@repo.anaconda.cloud/repo/msys2/noarch",
    "repo.anaconda.cloud/repo/main/linux-64",
    "https://repo.anaconda.cloud/pkgs/main",
    # The host of everybody's channels.
    "https://conda.anaconda.org/anaconda",
    "https://conda.anaconda.org/anaconda/linux-64",
    "https://conda.anaconda.org/anaconda/label/dev",
    "https://conda.anaconda.org/main",
    "https://conda.anaconda.org/%6Dain",
    "https://conda.anaconda.org/MAIN",
    "https://conda.anaconda.org/free/noarch/",
    "https://conda.anaconda.org/r",
    "https://conda.anaconda.org/msys2",
    "https://conda.anaconda.org/defaults",
    "https://conda.anaconda.org/pkgs/main",
    "https://conda.anaconda.org/t/tk-123/main",
    "https://conda.anaconda.org/t/tk-123/anaconda/linux-64",
    "https://user@conda.anaconda.org/t/tk-123/main",
    "http://conda.anaconda.org/main",
    "conda.anaconda.org/anaconda",
    "https://anaconda.org/anaconda",
    "https://anaconda.org/main",
    "conda.anaconda.org/main",
    "conda.anaconda.org/t/tk-123/Anaconda/linux-64",
    "CONDA.ANACONDA.ORG:443/anaconda",
    "//conda.anaconda.org/main/linux-64",
    "https://conda.anaconda.org//main//",
    "http://conda.anaconda.org:80/anaconda/label/main/linux-64/",
    "https://conda.anaconda.org/t/tk-123/pkgs/main/noarch",
    "https://www.anaconda.org/anaconda",
    "www.anaconda.org/main",
    "https://anaconda.org/anaconda/repo",
    "https://conda.binstar.org/t/tk-123/anaconda",
    "https://conda.binstar.org/anaconda",
    "https://binstar.org/free",
]
OTHERS = {
    "conda-forge": "conda-forge",
    "Conda-Forge": "conda-forge",
    "conda-forge/": "conda-forge",
    "conda-forge/linux-64": "conda-forge",
    "conda-forge/noarch/": "conda-forge",
    "https://conda.anaconda.org/conda-forge": "conda-forge",
    "https://conda.anaconda.org/conda-forge/": "conda-forge",
    "https://conda.anaconda.org/conda-forge/linux-64": "conda-forge",
    "http://conda.anaconda.org/conda-forge": "conda-forge",
    "https://CONDA.anaconda.org:443/conda-forge": "conda-forge",
    "https://conda.anaconda.org/t/tk-123/conda-forge": "conda-forge",
    "https://anaconda.org/conda-forge": "conda-forge",
    "conda.anaconda.org/conda-forge": "conda-forge",
    "conda-forge/label/main": "conda-forge/label/main",
    "conda-forge/label/cf202003": "conda-forge/label/cf202003",
    "conda-forge2": "conda-forge2",
    "pytorch": "pytorch",
    "pytorch/label/Nightly": "pytorch/label/Nightly",
    "pytorch-nightly": "pytorch-nightly",
    "https://conda.anaconda.org/pytorch": "pytorch",
    "nvidia": "nvidia",
    "nvidia/label/cuda-12.1.0": "nvidia/label/cuda-12.1.0",
    "https://conda.anaconda.org/nvidia/label/cuda-12.1.0/linux-64": "nvidia/label/cuda-12.1.0",
    "bioconda": "bioconda",
    "intel": "intel",
    "https://software.repos.intel.com/python/conda": "https://software.repos.intel.com/python/conda",
    "rapidsai": "rapidsai",
    "huggingface": "huggingface",
    "xgboost": "xgboost",
    "h2oai": "h2oai",
    "main-team": "main-team",
    "r-team": "r-team",
    "anaconda-mirror": "anaconda-mirror",
    "my_org/main": "my_org/main",
    "my_org/label/defaults": "my_org/label/defaults",
    "pkgs2/main": "pkgs2/main",
    "nodefaults": "nodefaults",
    "local": "local",
    "https://conda.anaconda.org/t/tk-123/my_org": "my_org",
    "t/tk-123/my_org": "my_org",
    "https://repo.anaconda.cloud/repo/my-org/main": "https://repo.anaconda.cloud/repo/my-org/main",
    "https://repo.anaconda.cloud/repo/conda-forge": "https://repo.anaconda.cloud/repo/conda-forge",
    "https://repo.anaconda.com.evil.org/pkgs/main": "https://repo.anaconda.com.evil.org/pkgs/main",
    "https://evil.org/repo.anaconda.com/pkgs/main": "https://evil.org/repo.anaconda.com/pkgs/main",
    "https://notrepo.anaconda.com/pkgs/main": "https://notrepo.anaconda.com/pkgs/main",
    "https://repo.anaconda.com@evil.org/pkgs/main": "https://evil.org/pkgs/main",
    "https://mirror.corp/anaconda/pkgs/main": "https://mirror.corp/anaconda/pkgs/main",
    "https://mirror.corp/pkgs/main/linux-64/": "https://mirror.corp/pkgs/main",
    "https://mirror.corp/main": "https://mirror.corp/main",
    "https://mirror.corp:8443/defaults": "https://mirror.corp:8443/defaults",
    "https://mirror.corp:443/anaconda": "https://mirror.corp/anaconda",
    "https://mirror.corp.:0443/anaconda": "https://mirror.corp/anaconda",
    "https://mirror.corp.:8443/anaconda": "https://mirror.corp:8443/anaconda",
    "http://mirror.corp:443/anaconda": "http://mirror.corp:443/anaconda",
    "http://10.0.0.1:8000/conda-forge": "http://10.0.0.1:8000/conda-forge",
    "HTTPS://Mirror.Corp/Team": "https://mirror.corp/Team",
    "https://user:pw@mirror.corp/team": "https://mirror.corp/team",
    "https://mirror.corp/t/tk-123/team": "https://mirror.corp/team",
    "https://mirror.corp/t/tk-123/main": "https://mirror.corp/main",
    "https://mirror.corp/anaconda/label/main/linux-64": "https://mirror.corp/anaconda/label/main",
    "https://mirror.corp/repo.anaconda.com": "https://mirror.corp/repo.anaconda.com",
    "https://repo.anaconda.com:pw@mirror.corp/pkgs/main": "https://mirror.corp/pkgs/main",
    "https://repo-anaconda.com/pkgs/main": "https://repo-anaconda.com/pkgs/main",
    "https://repo.anaconda.org/pkgs/main": "https://repo.anaconda.org/pkgs/main",
    "https://repo.anaconda.cloud/repo/main-team": "https://repo.anaconda.cloud/repo/main-team",
    "https://mirrors.example.cn/anaconda/pkgs/main": "https://mirrors.example.cn/anaconda/pkgs/main",
    "https://mirrors.example.cn/anaconda/cloud/conda-forge": "https://mirrors.example.cn/anaconda/cloud/conda-forge",
    "https://conda.anaconda.org/defaults-team": "defaults-team",
    "https://conda.anaconda.org/main_/label/r": "main_/label/r",
    "repo.anaconda.com.evil.org/pkgs/main": "repo.anaconda.com.evil.org/pkgs/main",
    "mirror.corp/main": "mirror.corp/main",
    "mains": "mains",
    "r2": "r2",
    "free.": "free.",
    "conda-forge/label/defaults": "conda-forge/label/defaults",
    "label/main": "label/main",
    "//srv/main": "file:///srv/main",
    "///repo.anaconda.com/pkgs/main": "file:///repo.anaconda.com/pkgs/main",
    "https://mirror.corp/conda/t/tk-123/team/noarch": "https://mirror.corp/conda/team",
    "https://mirror.corp/my%20team": "https://mirror.corp/my%20team",
    "https://mirror.corp": "https://mirror.corp",
    "s3://bucket/main": "s3://bucket/main",
    "oci://ghcr.io/channel-mirrors/conda-forge": "oci://ghcr.io/channel-mirrors/conda-forge",
    "file:///srv/main": "file:///srv/main",
    "file:///srv/main/linux-64": "file:///srv/main",
    "file://localhost/srv/main": "file:///srv/main",
    "/srv/main": "file:///srv/main",
    "/srv/pkgs/main/": "file:///srv/pkgs/main",
    "/srv/t/defaults/main": "file:///srv/t/defaults/main",
}
REFUSED = [
    "", " ", "/", "file:///", "file://host/srv", "./main", "../main", ".", "~/main", "C:\\main",
    "C:/main", "\\\\host\\main", "conda-forge, defaults", "conda forge", "-c", "--override",
    "https://", "https:///main", "https://host:port/main", "https://host:/main",
    "https://host:65536/main", "https://host/a?token=s3cret",
    "https://host/a#b", "https://host/../a", "https://host/%2e%2e/a", "https://user:p/w@host/a",
    "https://host/t/$TOKEN/a", "https://$HOST/a", "http://[::1]:8000/main", "ftp://host/a", "javascript://host/a",
    "https://conda.anaconda.org", "https://conda.anaconda.org/t/tk-123", "conda-forge[noarch]",
    "a\nb", "a\0b", "é", "a" * 2_001, "https://host/" + "é" * 1_000, "/linux-64/../..",
]  # fmt: skip


@pytest.mark.parametrize("text", ANACONDAS)
def test_a_channel_of_anacondas_is_known_in_every_spelling(text: str) -> None:
    assert channels.is_anaconda(channels.parse(text))


@pytest.mark.parametrize(("text", "name"), OTHERS.items())
def test_another_channel_stays_and_has_one_name(text: str, name: str) -> None:
    channel = channels.parse(text)

    assert not channels.is_anaconda(channel)
    assert channel.name == name


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len(set(ANACONDAS)) >= 120
    assert len(OTHERS) >= 80


@pytest.mark.parametrize("text", REFUSED)
def test_what_names_no_one_channel_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^its? ") as caught:
        channels.parse(text)

    assert "s3cret" not in str(caught.value)
    assert "p/w" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "had_secret"),
    [
        ("https://me:s3cret@mirror.corp/team/noarch", "https://mirror.corp/team", True),
        ("https://mirror.corp/t/s3cret/team/", "https://mirror.corp/team", True),
        ("https://me:s3cret@mirror.corp/t/s3cret/team", "https://mirror.corp/team", True),
        ("https://s3cret@mirror.corp/team", "https://mirror.corp/team", True),
        ("https://conda.anaconda.org/t/s3cret/team", "team", True),
        ("t/s3cret/team", "team", True),
        ("team", "team", False),
        ("https://mirror.corp/t", "https://mirror.corp/t", False),
    ],
)
def test_credentials_are_in_no_channel(text: str, name: str, *, had_secret: bool) -> None:
    channel = channels.parse(text)

    assert (channel.name, channel.had_secret) == (name, had_secret)
    assert (channel, hash(channel)) == (Channel(name), hash(Channel(name)))
    notes = [(one.code, one.subject) for one in channels.cut(channel)]
    assert notes == [("CREDENTIALS_CUT", name)] * had_secret
    assert "s3cret" not in repr((channel, channels.cut(channel)))


def test_defaults_stands_for_two_channels() -> None:
    names = [one.name for one in channels.expanded(DEFAULTS)]

    assert names == ["https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r"]
    assert channels.expanded(CONDA_FORGE) == (CONDA_FORGE,)


PIECES = [
    "defaults", "main", "pkgs", "anaconda", "conda-forge", "label", "t", "tk-1", "linux-64",
    "noarch", "https://", "http://", "file://", "repo.anaconda.com", "conda.anaconda.org", "host",
    ":443", ":", "user:pw@", "@", "/", "//", ".", "..", "%2e", "%2F", "%", "$", "?", "#", "[", "]",
    "é", "\0", "~", "\\", " ", "-", "_", "A", "0",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join) | st.text(max_size=30))
@example("/user:pw@")
def test_a_text_is_refused_or_its_name_is_its_own(text: str) -> None:
    try:
        channel = channels.parse(text)
    except ValueError:
        return

    again = channels.parse(channel.name)

    assert (again, again.had_secret) == (channel, False)
    # In a path it is the name of a folder; a login stands before a host.
    host, _, _ = channel.name.rpartition("://")[2].partition("/")
    assert "pw@" not in host
    assert channels.is_anaconda(again) == channels.is_anaconda(channel)
