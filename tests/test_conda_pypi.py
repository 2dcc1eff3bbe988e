"""conda.yaml as the virtualenv manager reads it: conda packages are PyPI's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from envd.errors import ModelInvalidError, PolicyDeniedError
from envd.events import Note
from envd.model.documents import line_of
from envd.settings.sections import Security
from envd.spec import Requirement, conda_pypi, conda_yaml, requirement
from envd.spec.conda_names import pypi_name, pypi_version
from envd.spec.conda_pypi import Translated
from envd.spec.place import Place
from envd.spec.policy import Policy

DEV = Policy("dev", Security(), {})
STANDARD = Policy("standard", Security(), {})
MLFLOW_1_8 = """\
channels:
- defaults
dependencies:
- python=3.7.16
- scikit-learn=0.22.2.post1
- pip
- pip:
  - mlflow
  - cloudpickle==2.2.1
name: mlflow-env
"""


def read(folder: Path, *dependencies: str) -> Translated:
    """Read a file with *dependencies*, each written as YAML."""
    lines = "".join(f"- {one}\n" for one in dependencies)
    return read_text(folder, f"name: mlflow-env\nchannels: [defaults]\ndependencies:\n{lines}")


def read_text(folder: Path, text: str) -> Translated:
    (folder / "conda.yaml").write_text(text)
    return conda_pypi.translated(conda_yaml.read(folder, "conda.yaml"))


def judged(
    folder: Path, text: str, rule: Literal["rewrite", "warn", "deny"], policy: Policy
) -> list[tuple[str, str]]:
    return codes(conda_pypi.judged(read_text(folder, text), rule, policy))


def as_pip_reads(folder: Path, conda: str) -> list[Requirement]:
    place = Place(folder, "conda.yaml", 1)
    return [requirement.parse(place, one) for one in read(folder, conda).packages]


def codes(notes: tuple[Note, ...]) -> list[tuple[str, str]]:
    return [(note.code, note.subject) for note in notes]


def test_a_file_that_mlflow_wrote_is_read(tmp_path: Path) -> None:
    found = read_text(tmp_path, MLFLOW_1_8)

    assert found.python == "3.7.16"
    assert found.build == ("pip",)
    assert found.packages == ("scikit-learn==0.22.2.post1",)
    assert found.source.pip == ("mlflow", "cloudpickle==2.2.1")
    assert codes(found.notes) == [("CONDA_PACKAGE_TRANSLATED", "scikit-learn")]
    assert "`scikit-learn==0.22.2.post1`" in found.notes[0].message


@pytest.mark.parametrize(
    ("conda", "expected"),
    [
        ("numpy", "numpy"),
        ("numpy=1.2", "numpy==1.2.*"),
        ("numpy=1", "numpy==1.*"),
        ("numpy==1.2", "numpy==1.2"),
        ("numpy = 1.2", "numpy==1.2.*"),
        ("numpy == 1.2", "numpy==1.2"),
        ("numpy 1.2", "numpy==1.2"),
        ("numpy=1.2=py37_0", "numpy==1.2"),
        ("numpy==1.2=py37_0", "numpy==1.2"),
        ("numpy 1.2 py37_0", "numpy==1.2"),
        ("numpy=1.2=*_cpu", "numpy==1.2"),
        ("numpy=1.2.*", "numpy==1.2.*"),
        ("numpy==1.2.*", "numpy==1.2.*"),
        ("numpy 1.2.*", "numpy==1.2.*"),
        ("numpy=1.2*", "numpy==1.2.*"),
        ("numpy=1.2.*=py37_0", "numpy==1.2.*"),
        ("numpy=*", "numpy"),
        ("numpy *", "numpy"),
        ("numpy=*=*openblas*", "numpy"),
        ("numpy * mkl", "numpy"),
        ("numpy>=1.2", "numpy>=1.2"),
        ("numpy >= 1.2, < 2", "numpy<2,>=1.2"),
        ("numpy>=1.2,<2", "numpy<2,>=1.2"),
        ("numpy<2", "numpy<2"),
        ("numpy!=1.3", "numpy!=1.3"),
        ("numpy~=1.2", "numpy~=1.2"),
        ("numpy=0.22.2.post1", "numpy==0.22.2.post1"),
        ("numpy==0.22.2.post1", "numpy==0.22.2.post1"),
        ("numpy=1.2rc1", "numpy==1.2rc1"),
        ("numpy=2022a", "numpy==2022a0"),
        ("conda-forge::numpy=1.2", "numpy==1.2.*"),
        ("https://host/channel/linux-64::numpy", "numpy"),
        ("conda-forge/linux-64::numpy 1.2", "numpy==1.2"),
        ("  numpy=1.2  ", "numpy==1.2.*"),
        ("NumPy=1.2", "numpy==1.2.*"),
        ("numpy[version='>=1.2,<2']", "numpy<2,>=1.2"),
        ("numpy[version=1.2,build=py37_0]", "numpy==1.2"),
        ("numpy=1.2.*,!=1.2.3", "numpy==1.2.*,!=1.2.3"),
    ],
)
def test_a_match_spec_means_the_same_to_pip(tmp_path: Path, conda: str, expected: str) -> None:
    found = as_pip_reads(tmp_path, f'"{conda}"')

    assert found == [requirement.parse(Place(tmp_path, "conda.yaml", 1), expected)]


@pytest.mark.parametrize(
    "conda",
    ["numpy[license=MIT]", "=1.2", "numpy*", "numpy=1.2;", "a b c", "#", "", "numpy>1|<2"],
)
def test_what_is_no_match_spec_is_refused(tmp_path: Path, conda: str) -> None:
    with pytest.raises(ModelInvalidError):
        as_pip_reads(tmp_path, f'"{conda}"')


@pytest.mark.parametrize(
    ("conda", "pypi"),
    [
        ("pytorch", "torch"),
        ("pytorch-gpu", "torch"),
        ("py-xgboost", "xgboost"),
        ("py-opencv", "opencv-python-headless"),
        ("msgpack-python", "msgpack"),
        ("matplotlib-base", "matplotlib"),
        ("pytables", "tables"),
        ("PyTorch", "torch"),
        ("scikit-learn", "scikit-learn"),
        ("librosa", "librosa"),
        ("libcst", "libcst"),
        ("cudatoolkit", None),
        ("openssl", None),
        ("_libgcc_mutex", None),
        ("libstdcxx-ng", None),
        ("cuda-runtime", None),
        ("r-base", None),
        ("r-forecast", None),
        ("mkl", None),
    ],
)
def test_a_conda_package_has_this_name_on_pypi(conda: str, pypi: str | None) -> None:
    assert pypi_name(conda) == pypi


def test_system_libraries_are_left_out_with_a_note(tmp_path: Path) -> None:
    found = read(tmp_path, "cudatoolkit=11.3", "numpy=1.2", "libgcc-ng>=9")

    assert found.packages == ("numpy==1.2.*",)
    assert codes(found.notes) == [
        ("CONDA_PACKAGE_DROPPED", "cudatoolkit"),
        ("CONDA_PACKAGE_TRANSLATED", "numpy"),
        ("CONDA_PACKAGE_DROPPED", "libgcc-ng"),
    ]


@pytest.mark.parametrize(
    ("conda", "python"),
    [
        ("python=3.7.16", "3.7.16"),
        ("python==3.7", "3.7"),
        ("python 3.7", "3.7"),
        ("python=3.10", "3.10"),
        ("python>=3.7,<3.9", "3.7"),
        ("python=3.7.*", "3.7"),
        ("python=3.7.3=h0371630_0", "3.7.3"),
        ("conda-forge::python=3.8", "3.8"),
        ("Python=3.8", "3.8"),
        ("python", None),
        ("python=*", None),
        (f"python={'9' * 3_000}", None),
        ("python<3.9,>=3.7", "3.7"),
        ("python[version='>=3.8']", "3.8"),
    ],
)
def test_the_python_is_the_first_version_that_is_named(
    tmp_path: Path, conda: str, python: str | None
) -> None:
    found = read(tmp_path, f'"{conda}"')

    assert (found.python, found.packages, found.notes) == (python, (), ())


def test_what_builds_packages_is_kept_apart(tmp_path: Path) -> None:
    found = read(tmp_path, "pip<=23.0.1", "setuptools=58.1.0", "wheel", "six")

    assert found.build == ("pip<=23.0.1", "setuptools==58.1.0", "wheel")
    assert found.packages == ("six",)


def test_the_lines_of_every_pip_section_are_taken_as_they_stand(tmp_path: Path) -> None:
    pip = "pip: ['Six == 1.0  # why', -r requirements.txt]"

    found = read(tmp_path, pip, "numpy", "pip: [scipy]")

    assert found.source.pip == ("Six == 1.0  # why", "-r requirements.txt", "scipy")
    assert found.packages == ("numpy",)


ORDINARY = [
    "conda-forge", "defaults", "anaconda", "main", "pkgs/main", "nodefaults", "Conda-Forge",
    "https://conda.anaconda.org/conda-forge", "https://repo.anaconda.com/pkgs/main/linux-64/",
]  # fmt: skip


@pytest.mark.parametrize("channel", ORDINARY)
def test_an_ordinary_channel_needs_no_leave(tmp_path: Path, channel: str) -> None:
    text = f"channels: ['{channel}']\ndependencies: [numpy, scipy]\n"

    found = judged(tmp_path, text, "rewrite", STANDARD)

    assert {code for code, _ in found} <= {"CHANNEL_REWRITTEN"}


@pytest.mark.parametrize("channel", [one for one in ORDINARY if one != "nodefaults"])
def test_an_ordinary_channel_of_one_package_needs_no_leave(tmp_path: Path, channel: str) -> None:
    text = f"channels: [conda-forge]\ndependencies: ['{channel}::scipy']\n"

    found = judged(tmp_path, text, "rewrite", STANDARD)

    assert {code for code, _ in found} <= {"CHANNEL_REWRITTEN"}


@pytest.mark.parametrize("text", ["channels: [defaults]\n", "channels: []\n", ""])
def test_that_anacondas_channels_are_not_used_is_noted(tmp_path: Path, text: str) -> None:
    used = f"{text}dependencies: [python=3.9, numpy=1.2=py39_0, openssl=1.1.1=h_0, main::scipy]\n"
    unused = f"{text}dependencies: [python=3.9, pip, openssl=1.1.1=h_0, {{pip: [numpy]}}]\n"

    rewritten = [("CHANNEL_REWRITTEN", "defaults"), ("CHANNEL_REWRITTEN", "main")]
    assert judged(tmp_path, used, "rewrite", STANDARD) == rewritten
    assert judged(tmp_path, unused, "rewrite", STANDARD) == []


def test_a_model_that_names_anacondas_channels_may_be_refused(tmp_path: Path) -> None:
    text = "channels:\n- conda-forge\n- defaults\ndependencies: [python=3.9, {}]\n"

    with pytest.raises(PolicyDeniedError, match=r"line 3: .*`defaults`.*`conda.defaults`"):
        judged(tmp_path, text.format("numpy"), "deny", DEV)
    assert judged(tmp_path, text.format("openssl"), "deny", DEV) == []


def test_anacondas_channels_that_are_left_have_to_be_listed(tmp_path: Path) -> None:
    text = "channels: [defaults]\ndependencies: [numpy]\n"
    listed = Policy("standard", Security(channels=("defaults",)), {})

    with pytest.raises(PolicyDeniedError, match=r"`security.channels`"):
        judged(tmp_path, text, "warn", STANDARD)
    assert judged(tmp_path, text, "warn", listed) == [
        ("CHANNEL_OF_ANACONDA", "defaults"),
        ("CHANNEL_FROM_MODEL", "https://repo.anaconda.com/pkgs/main"),
        ("CHANNEL_FROM_MODEL", "https://repo.anaconda.com/pkgs/r"),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("channels:\n- conda-forge\n- {}\ndependencies: [numpy]\n", 3),
        ("dependencies:\n- numpy\n- '{}::scipy=1.2'\n", 3),
    ],
)
@pytest.mark.parametrize(
    "channel", ["mine", "https://conda.host/mine", "https://evil.org/conda-forge", "conda-forge2"]
)
def test_another_channel_needs_to_be_listed(
    tmp_path: Path, text: str, line: int, channel: str
) -> None:
    with pytest.raises(PolicyDeniedError) as caught:
        judged(tmp_path, text.format(channel), "rewrite", STANDARD)
    listed = Policy("standard", Security(channels=(channel,)), {})

    noted = [("CHANNEL_FROM_MODEL", channel)]
    assert judged(tmp_path, text.format(channel), "rewrite", listed)[-1:] == noted
    assert judged(tmp_path, text.format(channel), "rewrite", DEV)[-1:] == noted
    assert f"conda.yaml`, line {line}: the channel `{channel}`" in caught.value.message
    assert caught.value.metadata["setting"] == "security.channels"


@pytest.mark.parametrize(
    ("listed", "channel"),
    [
        ("https://conda.anaconda.org/pytorch/", "pytorch"),
        ("PyTorch", "https://conda.anaconda.org/pytorch/linux-64"),
        ("nvidia", "nvidia/label/cuda-12.1.0"),
        ("https://me:s3cret@Host", "https://host/t/token/mine"),
        ("/srv/channels", "file:///srv/channels/mine/noarch"),
    ],
)
def test_a_channel_is_listed_in_any_spelling(tmp_path: Path, listed: str, channel: str) -> None:
    text = f"channels: ['{channel}']\ndependencies: [numpy]\n"
    policy = Policy("standard", Security(channels=("a channel", listed)), {})

    assert len(judged(tmp_path, text, "rewrite", policy)) == 1
    with pytest.raises(PolicyDeniedError):
        judged(tmp_path, text, "rewrite", Policy("standard", Security(channels=("a channel",)), {}))


def test_the_channel_of_what_is_left_out_or_built_with_does_not_matter(tmp_path: Path) -> None:
    text = "channels: [mine]\ndependencies: ['mine::python=3.9', 'mine::cudatoolkit', pip]\n"

    assert read_text(tmp_path, text).python == "3.9"
    assert judged(tmp_path, text, "deny", STANDARD) == []


def test_the_credentials_of_a_channel_are_not_shown(tmp_path: Path) -> None:
    text = (
        "channels: ['https://user:s3cret@host/mine']\n"
        "dependencies: [numpy, 'https://host/t/s3cret/own::scipy']\n"
    )

    found = read_text(tmp_path, text)
    notes = conda_pypi.judged(found, "rewrite", DEV)

    assert [note.subject for note in notes] == ["https://host/mine", "https://host/own"]
    assert "s3cret" not in repr((found, notes))


def test_an_entry_knows_the_line_it_stands_in(tmp_path: Path) -> None:
    found = read(tmp_path, "numpy", "{pip: [six]}", "pip", "{pip: [scipy]}")

    lines = [line_of(one) for one in (*found.packages, *found.source.pip, *found.build)]
    assert lines == [4, 5, 7, 6]


@pytest.mark.parametrize(
    ("version", "found"),
    [("1.2", "1.2"), ("1.1.1w", "1.1.1"), ("", "0"), ("1" * 5000, "0")],
)
def test_a_version_of_condas_is_read_as_far_as_pypi_has_the_like(version: str, found: str) -> None:
    assert str(pypi_version(version)) == found
