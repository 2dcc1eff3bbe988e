"""Anaconda's own channels become conda-forge, or are only noted, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envd.errors import PolicyDeniedError
from envd.spec import conda_forge, conda_yaml
from envd.spec.conda_yaml import CondaYaml
from tests.test_channels import ANACONDAS, OTHERS

# What `conda env export` writes on Linux: all there is, with its builds.
EXPORT = [
    "_libgcc_mutex=0.1=main", "_openmp_mutex=4.5=1_gnu", "blas=1.0=mkl",
    "ca-certificates=2021.7.5=h06a4308_1", "certifi=2021.5.30=py38h06a4308_0",
    "ld_impl_linux-64=2.35.1=h7274673_9", "libffi=3.3=he6710b0_2", "libgcc-ng=9.3.0=h5101ec6_17",
    "libstdcxx-ng=9.3.0=hd4cf53a_17", "mkl=2021.3.0=h06a4308_520", "ncurses=6.2=he6710b0_1",
    "numpy=1.20.3=py38hf144106_0", "openssl=1.1.1k=h27cfd23_0", "pip=21.1.3=py38h06a4308_0",
    "python=3.8.11=h12debd9_0_cpython", "readline=8.1=h27cfd23_0", "sqlite=3.36.0=hc218d9a_0",
    "tk=8.6.10=hbc83047_0", "xz=5.2.5=h7b6447c_0", "zlib=1.2.11=h7b6447c_3",
]  # fmt: skip
FORGED = ["certifi ==2021.5.30", "numpy ==1.20.3", "pip ==21.1.3", "python ==3.8.11"]


def rewritten(
    folder: Path,
    channels: str,
    *packages: str,
    rule: Literal["rewrite", "warn", "deny"] = "rewrite",
) -> CondaYaml:
    lines = "".join(f"- {one}\n" for one in packages)
    (folder / "conda.yaml").write_text(f"{channels}\ndependencies:\n{lines}")
    return conda_forge.rewritten(conda_yaml.read(folder, "conda.yaml"), rule)


def names(found: CondaYaml) -> list[str]:
    return [one.name for _, one in found.channels]


def texts(found: CondaYaml) -> list[str]:
    return [one.text for _, one in found.packages]


def codes(found: CondaYaml) -> list[tuple[str, str]]:
    return [(note.code, note.subject) for note in found.notes]


@pytest.mark.parametrize("channel", ANACONDAS)
def test_every_spelling_is_rewritten_in_the_list_and_before_a_package(
    tmp_path: Path, channel: str
) -> None:
    listed = rewritten(tmp_path, f"channels: ['{channel}']", "numpy=1.2=py39_0")
    named = rewritten(tmp_path, "channels: [mine]", f"'{channel.strip()}::numpy=1.2=py39_0'")
    bracket = rewritten(tmp_path, "channels: [mine]", f'numpy[channel="{channel}",version=1.2]')

    assert (names(listed), texts(listed)) == (["conda-forge"], ["numpy ==1.2"])
    assert (names(named), texts(named)) == (["mine"], ["conda-forge::numpy ==1.2"])
    assert (names(bracket), texts(bracket)) == (["mine"], ["conda-forge::numpy ==1.2"])
    assert [code for code, _ in codes(listed)] == ["CHANNEL_REWRITTEN", "BUILD_DROPPED"]
    assert [code for code, _ in codes(named)] == ["CHANNEL_REWRITTEN", "BUILD_DROPPED"]
    assert codes(bracket)[0][0] == "CHANNEL_REWRITTEN"
    assert "tk-123" not in repr((listed, named, bracket))


@pytest.mark.parametrize("channel", [one for one in OTHERS if one != "nodefaults"])
def test_every_other_channel_stays_in_the_list_and_before_a_package(
    tmp_path: Path, channel: str
) -> None:
    listed = rewritten(tmp_path, f"channels: ['{channel}']", "numpy=1.2=py39_0")
    named = rewritten(tmp_path, "channels: [defaults]", f"'{channel}::numpy=1.2=py39_0'")

    name = OTHERS[channel]
    assert (names(listed), texts(listed)) == ([name], ["numpy ==1.2[build='py39_0']"])
    assert listed.notes == ()
    (kept,) = texts(named)
    assert kept.startswith(f"{name}::numpy ==1.2[build='py39_0'")
    assert codes(named) == [("CHANNEL_REWRITTEN", "defaults")]


@pytest.mark.parametrize(
    ("channels", "expected", "subjects"),
    [
        ("", ["conda-forge"], ["defaults"]),
        ("channels:", ["conda-forge"], ["defaults"]),
        ("channels: []", ["conda-forge"], ["defaults"]),
        ("channels: [nodefaults]", ["conda-forge"], []),
        ("channels: [conda-forge, nodefaults]", ["conda-forge"], []),
        ("channels: [conda-forge, defaults]", ["conda-forge"], ["defaults"]),
        ("channels: [defaults, conda-forge]", ["conda-forge"], ["defaults"]),
        ("channels: [pytorch, defaults, nvidia]", ["pytorch", "conda-forge", "nvidia"],
         ["defaults"]),
        ("channels: [main, pytorch, r, conda-forge, pytorch]", ["conda-forge", "pytorch"],
         ["main", "r"]),
        ("channels: [defaults, defaults/linux-64, Defaults]", ["conda-forge"], ["defaults"]),
        ("channels: [a, b, a/noarch, 'https://conda.anaconda.org/a']", ["a", "b"], []),
    ],
)  # fmt: skip
def test_channels_are_left_once_and_in_their_order(
    tmp_path: Path, channels: str, expected: list[str], subjects: list[str]
) -> None:
    found = rewritten(tmp_path, channels, "numpy")

    assert names(found) == expected
    assert codes(found) == [("CHANNEL_REWRITTEN", one) for one in subjects]


def test_a_file_without_channels_says_so(tmp_path: Path) -> None:
    (note,) = rewritten(tmp_path, "", "numpy").notes

    assert note.message == (
        "packages come from conda-forge in the place of `defaults`, which is meant where no "
        "channel is named"
    )


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("numpy=1.26.4=py39h5f9d8c6_0", "numpy ==1.26.4"),
        ("numpy 1.26.4 py39h5f9d8c6_0", "numpy ==1.26.4"),
        ("numpy[build=py39h5f9d8c6_0]", "numpy"),
        ("numpy=1.26[build_number=3,subdir=linux-64]", "numpy 1.26.*"),
        ("defaults/linux-64::numpy=1.26", "conda-forge::numpy 1.26.*"),
    ],
)
def test_what_only_anacondas_builds_have_is_dropped(
    tmp_path: Path, package: str, expected: str
) -> None:
    found = rewritten(tmp_path, "channels: [defaults]", f"'{package}'", "scipy", "pandas")

    assert texts(found)[0] == expected
    assert codes(found)[-1] == ("BUILD_DROPPED", "numpy")


@pytest.mark.parametrize(
    "package",
    ["numpy[build='*mkl*']", "numpy ==1.2[build='py39*']", "numpy", "numpy >=1.2",
     "pytorch::numpy ==1.2[build='py39_0']", "conda-forge::numpy ==1.2[build='py39_0']"],
)  # fmt: skip
def test_any_other_build_stays(tmp_path: Path, package: str) -> None:
    found = rewritten(tmp_path, "channels: [pytorch, defaults]", f'"{package}"', "scipy", "pandas")

    assert texts(found)[0] == package
    assert codes(found) == [("CHANNEL_REWRITTEN", "defaults")]


def test_an_export_loses_what_python_and_compilers_bring(tmp_path: Path) -> None:
    found = rewritten(tmp_path, "channels: [defaults]", *EXPORT)

    assert texts(found) == FORGED
    dropped = [subject for code, subject in codes(found) if code == "PIN_DROPPED"]
    assert len(dropped) == len(EXPORT) - len(FORGED)
    builds = [subject for code, subject in codes(found) if code == "BUILD_DROPPED"]
    assert builds == ["certifi", "numpy", "pip", "python"]


def test_an_export_without_builds_is_known_by_what_nobody_asks_for(tmp_path: Path) -> None:
    plain = [one.rpartition("=")[0] for one in EXPORT]

    found = rewritten(tmp_path, "channels: [defaults]", *plain)

    assert [one.split()[0] for one in texts(found)] == [one.split()[0] for one in FORGED]


@pytest.mark.parametrize(
    ("channels", "packages"),
    [
        ("conda-forge", EXPORT),
        ("defaults", ["python=3.9", "numpy=1.26=py39_0", "openssl=1.1.1", "zlib"]),
        ("defaults", ["python=3.9=h_0", "conda-forge::openssl=1.1.1=h_0"]),
        ("defaults", ["python=3.9=h_0", "openssl"]),
    ],
)
def test_pins_of_hand_made_files_and_of_other_channels_stay(
    tmp_path: Path, channels: str, packages: list[str]
) -> None:
    found = rewritten(tmp_path, f"channels: [{channels}]", *packages)

    assert len(found.packages) == len(packages)
    assert "PIN_DROPPED" not in [code for code, _ in codes(found)]


def test_with_conda_forge_alone_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "conda.yaml").write_text("channels: [conda-forge]\ndependencies: [numpy=1.2=0]\n")
    found = conda_yaml.read(tmp_path, "conda.yaml")

    assert conda_forge.rewritten(found, "rewrite") == found
    assert conda_forge.rewritten(found, "warn") == found
    assert conda_forge.rewritten(found, "deny") == found


def test_warn_leaves_everything_and_spells_defaults_out(tmp_path: Path) -> None:
    channels = "channels: [pytorch, defaults, nodefaults, pkgs/main]"

    found = rewritten(tmp_path, channels, *EXPORT, "defaults::scipy", "r::r-base", rule="warn")

    main, r = "https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r"
    assert names(found) == ["pytorch", main, r]
    assert texts(found)[0] == "_libgcc_mutex ==0.1[build='main']"
    assert texts(found)[-2:] == [f"{main}::scipy", "r::r-base"]
    assert len(found.packages) == len(EXPORT) + 2
    assert codes(found) == [("CHANNEL_OF_ANACONDA", one) for one in ("defaults", main, "r")]


@pytest.mark.parametrize(
    ("channels", "package", "line", "channel"),
    [
        (
            "channels:\n- conda-forge\n- pkgs/main",
            "numpy",
            3,
            "https://repo.anaconda.com/pkgs/main",
        ),
        ("channels: [conda-forge]", "r::numpy", 3, "r"),
        ("channels: ['https://conda.anaconda.org/t/s3cret/main']", "numpy", 1, "main"),
        ("", "numpy", 1, "defaults"),
    ],
)
def test_deny_says_where_and_what_to_do(
    tmp_path: Path, channels: str, package: str, line: int, channel: str
) -> None:
    with pytest.raises(PolicyDeniedError) as caught:
        rewritten(tmp_path, channels, package, rule="deny")

    message = caught.value.message
    assert f"line {line}: packages come from Anaconda's own channel `{channel}`" in message
    assert "`conda.defaults` (ENVD_CONDA__DEFAULTS)" in message
    assert "s3cret" not in message
    assert caught.value.metadata["setting"] == "conda.defaults"


CHANNELS = st.lists(st.sampled_from([*ANACONDAS[:40], *list(OTHERS)[:30]]), max_size=5)
PACKAGES = st.lists(
    st.sampled_from([*EXPORT, "numpy", "main::six=1=0", "pytorch::torch=2=0", "mkl=*=*mkl*"]),
    max_size=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(CHANNELS, PACKAGES)
def test_what_was_rewritten_has_nothing_left_to_rewrite(
    tmp_path: Path, channels: list[str], packages: list[str]
) -> None:
    found = rewritten(tmp_path, f"channels: {channels}", *packages)
    again = conda_forge.rewritten(found, "deny")

    assert again == found
    assert len(set(names(found))) == len(names(found)) > 0
