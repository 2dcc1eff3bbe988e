"""conda.yaml as the virtualenv manager reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from envd.config import Security
from envd.errors import ModelInvalidError, PolicyDeniedError
from envd.model.documents import Document, line_of
from envd.spec import Requirement, conda_yaml, requirement
from envd.spec.conda_names import pypi_name
from envd.spec.conda_yaml import CondaYaml
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


def read(folder: Path, *dependencies: str) -> CondaYaml:
    """Read a file with *dependencies*, each written as YAML."""
    lines = "".join(f"- {one}\n" for one in dependencies)
    return read_text(folder, f"name: mlflow-env\nchannels: [defaults]\ndependencies:\n{lines}")


def read_text(folder: Path, text: str, policy: Policy = DEV) -> CondaYaml:
    (folder / "conda.yaml").write_text(text)
    return conda_yaml.read(folder, "conda.yaml", policy)


def as_pip_reads(folder: Path, conda: str) -> list[Requirement]:
    place = Place(folder, "conda.yaml", 1)
    return [requirement.parse(place, one) for one in read(folder, conda).packages]


def codes(found: CondaYaml) -> list[tuple[str, str]]:
    return [(note.code, note.subject) for note in found.notes]


def test_a_file_that_mlflow_wrote_is_read(tmp_path: Path) -> None:
    found = read_text(tmp_path, MLFLOW_1_8)

    assert found.python == "3.7.16"
    assert found.build == ("pip",)
    assert found.packages == ("scikit-learn==0.22.2.post1",)
    assert found.pip == ("mlflow", "cloudpickle==2.2.1")
    assert codes(found) == [("CONDA_PACKAGE_TRANSLATED", "scikit-learn")]
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
    ],
)
def test_a_match_spec_means_the_same_to_pip(tmp_path: Path, conda: str, expected: str) -> None:
    found = as_pip_reads(tmp_path, f'"{conda}"')

    assert found == [requirement.parse(Place(tmp_path, "conda.yaml", 1), expected)]


@pytest.mark.parametrize(
    "conda",
    ["numpy[version='>=1.2']", "=1.2", "numpy*", "numpy=1.2;", "a b c", "#", "", "numpy>1|<2"],
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
    assert codes(found) == [
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
        (f"python={'9' * 5_000}", None),
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

    assert found.pip == ("Six == 1.0  # why", "-r requirements.txt", "scipy")
    assert found.packages == ("numpy",)


@pytest.mark.parametrize("text", ["name: a\n", "dependencies:\n", "dependencies: []\n"])
def test_a_file_may_name_nothing(tmp_path: Path, text: str) -> None:
    assert read_text(tmp_path, text) == CondaYaml(None, (), (), (), ())


@pytest.mark.parametrize(
    ("dependencies", "why"),
    [
        ("six", "`dependencies` is not a list"),
        ("{pip: [six]}", "`dependencies` is not a list"),
        ("[[six]]", "neither a text nor `pip:`"),
        ("[{pip: six}]", "neither a text nor `pip:`"),
        ("[{pip: [{six: 1}]}]", "neither a text nor `pip:`"),
        ("[{npm: [six]}]", "neither a text nor `pip:`"),
        ("[{pip: [six], npm: [six]}]", "neither a text nor `pip:`"),
        ("[null]", "neither a text nor `pip:`"),
        ("['six: six']", "`six: six` is not a conda package"),
    ],
)
def test_odd_entries_are_refused(tmp_path: Path, dependencies: Document, why: str) -> None:
    with pytest.raises(ModelInvalidError, match=why) as caught:
        read_text(tmp_path, f"dependencies: {dependencies}\n")

    assert caught.value.metadata["path"] == "conda.yaml"


def test_an_entry_of_a_hundred_thousand_letters_is_read_at_once(tmp_path: Path) -> None:
    found = read(tmp_path, "a" * 100_000, "x:" * 50_000 + "::numpy")

    assert found.packages == ("a" * 100_000, "numpy")


@pytest.mark.parametrize(
    "channel",
    ["conda-forge", "defaults", "anaconda", "main", "pkgs/main", "nodefaults", "Conda-Forge",
     "https://conda.anaconda.org/conda-forge", "https://repo.anaconda.com/pkgs/main/linux-64/"],
)  # fmt: skip
def test_an_ordinary_channel_needs_no_leave(tmp_path: Path, channel: str) -> None:
    text = f"channels: ['{channel}']\ndependencies: [numpy, '{channel}::scipy']\n"

    found = read_text(tmp_path, text, STANDARD)

    assert {code for code, _ in codes(found)} == {"CONDA_PACKAGE_TRANSLATED"}


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
        read_text(tmp_path, text.format(channel), STANDARD)
    listed = Policy("standard", Security(channels=(channel,)), {})

    noted = [("CHANNEL_FROM_MODEL", channel)]
    assert codes(read_text(tmp_path, text.format(channel), listed))[-1:] == noted
    assert codes(read_text(tmp_path, text.format(channel)))[-1:] == noted
    assert f"conda.yaml`, line {line}: the channel `{channel}`" in caught.value.message
    assert caught.value.metadata["setting"] == "security.channels"


def test_the_channel_of_what_is_left_out_or_built_with_does_not_matter(tmp_path: Path) -> None:
    text = "channels: [mine]\ndependencies: ['mine::python=3.9', 'mine::cudatoolkit', pip]\n"

    assert read_text(tmp_path, text, STANDARD).python == "3.9"


def test_the_credentials_of_a_channel_are_not_shown(tmp_path: Path) -> None:
    text = "channels: ['https://user:s3cret@host/mine']\ndependencies: [numpy]\n"

    found = read_text(tmp_path, text)

    assert codes(found)[-1] == ("CHANNEL_FROM_MODEL", "https://host/mine")
    assert "s3cret" not in repr(found)


def test_an_entry_knows_the_line_it_stands_in(tmp_path: Path) -> None:
    found = read(tmp_path, "numpy", "{pip: [six]}", "pip", "{pip: [scipy]}")

    assert [line_of(one) for one in (*found.packages, *found.pip, *found.build)] == [4, 5, 7, 6]
