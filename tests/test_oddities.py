"""What stands in real public models: 127 of them were read, one by one.

Each row is a model: its files, and what must come out of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from envd import config
from envd.errors import ModelInvalidError, PolicyDeniedError
from envd.model import Model
from envd.model import read as read_model
from envd.settings import sections
from envd.spec import Dependencies, Python, of, read

PYTHON = Python("cpython", "3.8.15", "cpython-38-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
MLMODEL = """\
artifact_path: model
flavors:
  python_function:
    env: {env}
    loader_module: mlflow.sklearn
    model_path: model.pkl
    python_version: 3.8.15
  sklearn:
    pickled_model: model.pkl
    serialization_format: cloudpickle
    sklearn_version: 1.0.2
run_id: 7101dfbe959043888b5698f748bfc20d
utc_time_created: '2022-11-29 05:59:10.999374'
"""
ENV_TEXT = MLMODEL.format(env="conda.yaml")
ENV_BOTH = MLMODEL.format(env="{conda: conda.yaml, virtualenv: python_env.yaml}")
NO_ENV = ENV_TEXT.replace("    env: conda.yaml\n", "")
CONDA = """\
channels:
- conda-forge
dependencies:
- python=3.8.15
- pip<=22.2.2
- pip:
  - mlflow==1.30.0
  - scikit-learn==1.0.2
name: mlflow-env
"""
PYTHON_ENV = """\
python: 3.8.15
build_dependencies:
- pip==22.2.2
- setuptools==65.5.0
- wheel==0.37.1
dependencies:
- -r requirements.txt
"""
PINNED = "mlflow==1.30.0\nscikit-learn==1.0.2"
BOTH = ["mlflow==1.30", "scikit-learn==1.0.2"]
Files = Mapping[str, str]


def model(folder: Path, files: Files) -> Model:
    """Write a model of *files*; one that has no MLmodel gets that of MLflow 1.30."""
    for name, text in ({"MLmodel": ENV_TEXT} | dict(files)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return read_model(folder)


def settings(folder: Path, profile: str = "dev", **variables: str) -> config.Settings:
    environ = {"ENVD_SECURITY__PROFILE": profile, **variables}
    return config.load(root=folder / "root", environ=environ)


def found_in(folder: Path, files: Files, profile: str = "dev") -> Dependencies:
    return read(model(folder, files), settings(folder, profile))


def as_written(folder: Path, files: Files) -> Dependencies:
    """Read a model with nothing mended."""
    return read(model(folder, files), settings(folder, ENVD_RESOLVE__REPAIR="false"))


def texts(found: Dependencies) -> list[str]:
    return [one.text for one in found.asked.requirements]


def builds(found: Dependencies) -> list[str]:
    return [one.text for one in found.build]


def codes(found: Dependencies) -> list[str]:
    return [note.code for note in found.notes]


def conda(*packages: str, channels: str = "conda-forge", pip: str = "mlflow==1.30.0") -> Files:
    """Return a conda.yaml of *packages* beside Python 3.8."""
    lines = "".join(f'- "{one}"\n' for one in packages)
    return {
        "conda.yaml": f"channels: [{channels}]\ndependencies:\n- python=3.8\n{lines}"
        f"- pip\n- pip: [{pip}]\n"
    }


@dataclass(frozen=True)
class Row:
    """A model, and what it asks for; `notes` are those besides what is mended."""

    name: str
    files: Files
    requirements: list[str]
    python: str | None = "3.8.15"
    build: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


COMBINATIONS = [
    Row("all three files",
        {"MLmodel": ENV_BOTH, "conda.yaml": CONDA, "python_env.yaml": PYTHON_ENV,
         "requirements.txt": PINNED},
        BOTH, build=["pip==22.2.2", "setuptools==65.5", "wheel==0.37.1"]),
    Row("conda.yaml alone", {"conda.yaml": CONDA}, BOTH,
        build=["pip<=22.2.2", "setuptools<81"], notes=["SETUPTOOLS_ADDED"]),
    Row("conda.yaml and requirements.txt",
        {"conda.yaml": CONDA, "requirements.txt": "mlflow==1.29.0"}, ["mlflow==1.29"],
        build=["pip<=22.2.2", "setuptools<81"], notes=["SETUPTOOLS_ADDED"]),
    Row("python_env.yaml and requirements.txt",
        {"python_env.yaml": PYTHON_ENV, "requirements.txt": PINNED}, BOTH,
        build=["pip==22.2.2", "setuptools==65.5", "wheel==0.37.1"]),
    Row("conda.yaml and python_env.yaml without the requirements.txt it names",
        {"MLmodel": ENV_BOTH, "conda.yaml": CONDA, "python_env.yaml": PYTHON_ENV}, BOTH,
        build=["pip==22.2.2", "setuptools==65.5", "wheel==0.37.1"],
        notes=["REQUIREMENTS_FROM_CONDA"]),
    Row("python_env.yaml that names its requirements",
        {"python_env.yaml": "python: 3.8.15\nbuild_dependencies: [setuptools==65.5]\n"
                            "dependencies: [mlflow==1.30.0]", "conda.yaml": CONDA},
        ["mlflow==1.30"], build=["setuptools==65.5"]),
    Row("requirements.txt alone", {"requirements.txt": PINNED}, BOTH,
        build=["setuptools<81"], notes=["PYTHON_FROM_MLMODEL", "SETUPTOOLS_ADDED"]),
    Row("none, and the flavors record a library", {},
        ["scikit-learn==1.0.2", "mlflow"], build=["setuptools<81"],
        notes=["INFERRED_FROM_FLAVORS", "PYTHON_FROM_MLMODEL", "SETUPTOOLS_ADDED"]),
    Row("none, and the MLmodel has its mlflow", {"MLmodel": f"{NO_ENV}mlflow_version: 1.30.0\n"},
        ["scikit-learn==1.0.2", "mlflow==1.30"], build=["setuptools<81"],
        notes=["INFERRED_FROM_FLAVORS", "PYTHON_FROM_MLMODEL", "SETUPTOOLS_ADDED"]),
    Row("env names a conda.yaml that is not there",
        {"MLmodel": ENV_TEXT, "requirements.txt": PINNED}, BOTH,
        build=["setuptools<81"], notes=["PYTHON_FROM_MLMODEL", "SETUPTOOLS_ADDED"]),
    Row("env names a python_env.yaml that is not there",
        {"MLmodel": ENV_BOTH, "conda.yaml": CONDA}, BOTH,
        build=["pip<=22.2.2", "setuptools<81"], notes=["SETUPTOOLS_ADDED"]),
    Row("an empty requirements.txt",
        {"conda.yaml": CONDA, "requirements.txt": ""}, ["mlflow"],
        build=["pip<=22.2.2", "setuptools<81"],
        notes=["MLFLOW_ADDED", "MLFLOW_BOUNDED", "SETUPTOOLS_ADDED"]),
]  # fmt: skip


@pytest.mark.parametrize("row", COMBINATIONS, ids=lambda row: row.name)
def test_any_combination_of_files_is_read(tmp_path: Path, row: Row) -> None:
    found = found_in(tmp_path, row.files)

    assert (texts(found), found.python, builds(found)) == (row.requirements, row.python, row.build)
    assert codes(found) == row.notes
    assert found.day == "2022-11-29"
    assert of(found, PYTHON, sections.Index()).as_of == "2022-11"


def test_a_model_that_records_nothing_is_refused_clearly(tmp_path: Path) -> None:
    files = {"MLmodel": "flavors: {python_function: {loader_module: mlflow.sklearn}}"}

    with pytest.raises(ModelInvalidError, match=r"it has no `conda.yaml`, `python_env.yaml` or"):
        found_in(tmp_path, files)


def test_a_lost_requirements_txt_is_an_error_where_nothing_is_mended(tmp_path: Path) -> None:
    files = {"conda.yaml": CONDA, "python_env.yaml": PYTHON_ENV}

    with pytest.raises(ModelInvalidError, match=r"`requirements.txt` is not in the model"):
        as_written(tmp_path, files)


def test_a_lost_requirements_txt_is_an_error_where_nothing_else_has_the_lines(
    tmp_path: Path,
) -> None:
    with pytest.raises(ModelInvalidError, match=r"`requirements.txt` is not in the model"):
        found_in(tmp_path, {"python_env.yaml": PYTHON_ENV})


# The MLmodel.


@pytest.mark.parametrize(
    "env",
    ["conda.yaml", "{conda: conda.yaml}", "{conda: conda.yaml, virtualenv: python_env.yaml}",
     "{}", "", "null", "[]", "{virtualenv: python_env.yaml}", "absent.yaml"],
)  # fmt: skip
def test_env_may_be_a_text_a_mapping_or_nothing(tmp_path: Path, env: str) -> None:
    found = found_in(tmp_path, {"MLmodel": MLMODEL.format(env=env), "conda.yaml": CONDA})

    # `absent.yaml` is not there: the flavors say what was in it.
    expected = ["scikit-learn==1.0.2", "mlflow"] if env == "absent.yaml" else BOTH
    assert texts(found) == expected


def test_env_may_be_absent(tmp_path: Path) -> None:
    files = {"MLmodel": NO_ENV, "conda.yaml": CONDA, "python_env.yaml": PYTHON_ENV}

    found = found_in(tmp_path, {**files, "requirements.txt": PINNED})

    assert (texts(found), builds(found)[0]) == (BOTH, "pip==22.2.2")


def test_an_env_of_another_name_is_read(tmp_path: Path) -> None:
    files = {"MLmodel": MLMODEL.format(env="env/mine.yaml"), "env/mine.yaml": CONDA}

    assert texts(found_in(tmp_path, files)) == BOTH


@pytest.mark.parametrize("version", ["", "mlflow_version: null\n", "mlflow_version: 2.9.2\n"])
def test_mlflow_version_may_be_absent(tmp_path: Path, version: str) -> None:
    found = model(tmp_path, {"MLmodel": ENV_TEXT + version, "conda.yaml": CONDA})

    assert found.mlflow_version == ("2.9.2" if "2.9.2" in version else None)


@pytest.mark.parametrize(
    ("created", "day", "notes"),
    [
        ("'2022-11-29 05:59:10.999374'", "2022-11-29", []),
        ("2022-11-29T05:59:10Z", "2022-11-29", []),
        ("'19-09-25 10:00:00'", "2019-09-25", []),
        ("'19-09-25'", "2019-09-25", []),
        (None, None, ["DAY_UNKNOWN"]),
        ("null", None, ["DAY_UNKNOWN"]),
        ("yesterday", None, ["DAY_UNKNOWN"]),
        ("'2022-13-45'", None, ["DAY_UNKNOWN"]),
        ("'9999-12-31'", None, ["DAY_UNKNOWN"]),
        ("'2201-01-01'", None, ["DAY_UNKNOWN"]),
        ("'1989-12-31'", None, ["DAY_UNKNOWN"]),
        ("'0001-01-01'", None, ["DAY_UNKNOWN"]),
        ("'0019-09-25'", None, ["DAY_UNKNOWN"]),
    ],
)
def test_the_date_may_be_malformed_or_absent(
    tmp_path: Path, created: str | None, day: str | None, notes: list[str]
) -> None:
    line = "" if created is None else f"utc_time_created: {created}\n"
    files = {"MLmodel": re.sub("utc_time_created.*\n", line, ENV_BOTH), **_whole()}

    found = found_in(tmp_path, files)

    assert (found.day, codes(found)) == (day, notes)
    assert of(found, PYTHON, sections.Index()).as_of == (day or "")[:7]


def _whole() -> dict[str, str]:
    return {"python_env.yaml": PYTHON_ENV, "requirements.txt": PINNED, "conda.yaml": CONDA}


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    files = {"MLmodel": ENV_BOTH, **_whole()}
    (tmp_path / "unix").mkdir()
    (tmp_path / "windows").mkdir()

    one = found_in(tmp_path / "unix", files)
    other = found_in(
        tmp_path / "windows", {name: text.replace("\n", "\r\n") for name, text in files.items()}
    )

    assert one == other
    assert texts(one) == BOTH


def test_what_an_mlmodel_holds_besides_means_nothing(tmp_path: Path) -> None:
    extra = (
        "prompts: null\nmodel_id: m-42\nmodel_uuid: abc\nmodel_size_bytes: 1143\n"
        "databricks_runtime: 11.3.x-cpu-ml-scala2.12\nmetadata: {a: {b: [1]}}\n"
        "entry_points: {main: {command: python train.py}}\nauth_policy: null\nresources: {}\n"
        "is_signature_from_type_hint: false\ntype_hint_from_example: false\n"
    )
    (tmp_path / "plain").mkdir()
    (tmp_path / "extra").mkdir()

    plain = found_in(tmp_path / "plain", {"conda.yaml": CONDA})
    found = found_in(tmp_path / "extra", {"MLmodel": ENV_TEXT + extra, "conda.yaml": CONDA})

    assert found == plain


@pytest.mark.parametrize("code", [".", "code", "code/"])
def test_code_is_a_directory_or_the_model_itself(tmp_path: Path, code: str) -> None:
    text = NO_ENV.replace("    loader_module", f"    code: {code}\n    loader_module")
    files = {"MLmodel": text, "conda.yaml": CONDA, "code/mine.py": "ANSWER = 1"}

    before = model(tmp_path, files)
    (tmp_path / "code" / "mine.py").write_text("ANSWER = 2")

    assert before.code == code
    assert read_model(tmp_path).digest != before.digest


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: demo\nconda_env: conda.yaml\nentry_points:\n  main:\n    command: python a.py\n",
         "MLmodel`: `flavors` is not a mapping"),
        ("flavors:\n  python_function:\n  loader_module: [\n", r"MLmodel`, line \d+: "),
        ("<<<<<<< HEAD\nflavors: {}\n=======\n", r"MLmodel`, line \d+: "),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 900\n",
         r"MLmodel`, line 1: it is not a mapping|MLmodel`, line \d+: |`flavors` is not"),
        ("", "MLmodel`, line 1: it is not a mapping"),
        ("flavors: {sklearn: {sklearn_version: 1.0.2}, xgboost: {}}",
         r"no `python_function` flavor \(it has sklearn, xgboost\)"),
        ("flavors: {}", r"no `python_function` flavor \(it has none\)"),
        ("flavors: {python_function: {env: conda.yaml}}", "has no `loader_module`"),
    ],
)  # fmt: skip
def test_what_is_no_mlmodel_is_refused_clearly(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ModelInvalidError, match=why):
        model(tmp_path, {"MLmodel": text, "conda.yaml": CONDA})


# The Python.


@pytest.mark.parametrize(
    ("files", "python"),
    [
        ({"python_env.yaml": PYTHON_ENV.replace("3.8.15", "3.7"),
          "conda.yaml": CONDA.replace("3.8.15", "3.6.9"), "requirements.txt": PINNED}, "3.7"),
        ({"python_env.yaml": PYTHON_ENV, "conda.yaml": CONDA.replace("3.8.15", "3.8"),
          "requirements.txt": PINNED}, "3.8.15"),
        ({"conda.yaml": CONDA.replace("3.8.15", "3.6.9")}, "3.6.9"),
        ({"conda.yaml": CONDA.replace("python=3.8.15", "python=3.5")}, "3.5"),
        ({"conda.yaml": CONDA.replace("python=3.8.15", "python=3.5.2")}, "3.5.2"),
        ({"conda.yaml": CONDA.replace("=3.8.15", "")}, "3.8.15"),
        ({"conda.yaml": CONDA.replace("- python=3.8.15\n", "")}, "3.8.15"),
        ({"conda.yaml": CONDA.replace("=3.8.15", ">=3.7,<3.9")}, "3.7"),
        ({"python_env.yaml": "python: 3.10\ndependencies: [mlflow==1.30]"}, "3.10"),
        ({"python_env.yaml": "dependencies: [mlflow==1.30]"}, "3.8.15"),
    ],
)  # fmt: skip
def test_of_files_that_disagree_about_the_python_the_first_is_believed(
    tmp_path: Path, files: Files, python: str
) -> None:
    assert found_in(tmp_path, files).python == python


# conda.yaml.


@pytest.mark.parametrize(
    "channels",
    ["defaults", "conda-forge", "defaults, conda-forge", "conda-forge, defaults", "anaconda", "",
     "https://repo.anaconda.com/pkgs/main, nodefaults"],
)  # fmt: skip
def test_the_ordinary_channels_need_no_permission(tmp_path: Path, channels: str) -> None:
    found = found_in(tmp_path, conda("scikit-learn=1.0.2", channels=channels), "standard")

    assert texts(found) == ["scikit-learn==1.0.2", "mlflow==1.30"]
    rewritten = [] if channels == "conda-forge" else ["CHANNEL_REWRITTEN"]
    assert codes(found) == ["CONDA_PACKAGE_TRANSLATED", *rewritten, "SETUPTOOLS_ADDED"]


@pytest.mark.parametrize("channel", ["pytorch", "nvidia"])
def test_another_channel_is_noted_or_has_to_be_allowed(tmp_path: Path, channel: str) -> None:
    files = conda("pytorch=1.13.1", channels=f"{channel}, conda-forge")

    found = found_in(tmp_path, files)

    assert texts(found) == ["torch==1.13.1", "mlflow==1.30"]
    noted = [note.subject for note in found.notes if note.code == "CHANNEL_FROM_MODEL"]
    assert noted == [channel]
    with pytest.raises(PolicyDeniedError, match=f"the channel `{channel}`.*`security.channels`"):
        found_in(tmp_path, files, "standard")


@pytest.mark.parametrize(
    "beside", [{"requirements.txt": PINNED}, {"python_env.yaml": PYTHON_ENV}, {}]
)
def test_a_channel_nothing_is_installed_from_needs_no_permission(
    tmp_path: Path, beside: Files
) -> None:
    packages = ("pytorch=1.13.1",) if beside else ("cudatoolkit=11.3",)
    files = {**conda(*packages, channels="pytorch, nvidia"), "requirements.txt": PINNED, **beside}
    if not beside:
        del files["requirements.txt"]

    found = found_in(tmp_path, files, "standard")

    assert "mlflow==1.30" in texts(found)
    assert "CHANNEL_FROM_MODEL" not in codes(found)


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("numpy=1.21.6", "numpy==1.21.6"),
        ("numpy==1.21.6", "numpy==1.21.6"),
        ("numpy~=1.21.6", "numpy~=1.21.6"),
        ("numpy>=1.21,<1.23", "numpy<1.23,>=1.21"),
        ("numpy", "numpy"),
        ("numpy=1.21.6=py38h1d589f8_0", "numpy==1.21.6"),
        ("pytorch=1.13", "torch==1.13.*"),
        ("msgpack-python", "msgpack"),
    ],
)
def test_a_conda_package_is_asked_of_pypi(tmp_path: Path, package: str, expected: str) -> None:
    found = found_in(tmp_path, conda(package))

    assert texts(found) == [expected, "mlflow==1.30"]
    assert codes(found)[0] == "CONDA_PACKAGE_TRANSLATED"
    assert "is installed from PyPI as" in found.notes[0].message


@pytest.mark.parametrize(
    "package",
    ["libgcc-ng=9.3.0", "libblas", "mkl=2021.4.0", "cudatoolkit=11.3", "cuda-nvcc", "cudnn",
     "python_abi=3.8", "ca-certificates", "_libgcc_mutex=0.1=main", "openssl", "cpuonly",
     "pytorch-cuda=11.7", "vc=14.2", "ucrt", "m2w64-gcc-libs", "arrow-cpp=8.0.0", "aws-c-common",
     "sysroot_linux-64", "kernel-headers_linux-64", "pywin32", "tk", "xz", "libffi"],
)  # fmt: skip
def test_a_system_library_is_left_out_with_a_note(tmp_path: Path, package: str) -> None:
    found = found_in(tmp_path, conda(package))

    assert texts(found) == ["mlflow==1.30"]
    assert codes(found)[0] == "CONDA_PACKAGE_DROPPED"


@pytest.mark.parametrize("package", ["libpysal", "librosa", "cuda-python", "mlflow-skinny"])
def test_a_python_package_with_the_name_of_a_library_is_kept(tmp_path: Path, package: str) -> None:
    assert texts(found_in(tmp_path, conda(package)))[0] == package


def test_a_package_may_be_named_twice_with_other_specs(tmp_path: Path) -> None:
    found = found_in(tmp_path, conda("numpy~=1.21.6", "numpy==1.21.6", pip="mlflow==1, numpy"))

    assert texts(found) == ["numpy~=1.21.6", "numpy==1.21.6", "mlflow==1", "numpy"]


def test_an_environment_of_fifty_packages_is_read(tmp_path: Path) -> None:
    packages = [f"package-{number}=1.{number}=py38_0" for number in range(57)]

    found = found_in(tmp_path, conda(*packages, "libgcc-ng", channels="defaults"))

    assert texts(found)[56:] == ["package-56==1.56", "mlflow==1.30"]


@pytest.mark.parametrize(
    "extra",
    ["virtualenv: python_env.yaml\n", "prefix: C:\\Users\\me\\env\n", "variables: {A: b}\n",
     "name: null\n"],
)  # fmt: skip
def test_keys_nobody_knows_are_passed_over(tmp_path: Path, extra: str) -> None:
    text = CONDA.replace("name: mlflow-env\n", "") + extra

    assert texts(found_in(tmp_path, {"conda.yaml": text})) == BOTH


@pytest.mark.parametrize(
    ("pip", "expected"),
    [("pip", "pip"), ("pip<=22.2.2", "pip<=22.2.2"), ("pip=22.2.2", "pip==22.2.2"),
     ("pip==22.2.2", "pip==22.2.2")],
)  # fmt: skip
def test_pip_is_a_tool_of_the_build(tmp_path: Path, pip: str, expected: str) -> None:
    found = found_in(tmp_path, {"conda.yaml": CONDA.replace("pip<=22.2.2", pip)})

    assert (builds(found)[0], texts(found)) == (expected, BOTH)


def test_requirements_txt_is_believed_where_the_pip_section_differs(tmp_path: Path) -> None:
    files = {**conda("numpy=1.20", pip="mlflow==1.29.0, lost"), "requirements.txt": PINNED}

    found = found_in(tmp_path, files)

    assert (texts(found), found.python, builds(found)[0]) == (BOTH, "3.8", "pip")


# Requirements.


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("mlflow<3,>=2.1\nsix", ["mlflow<3,>=2.1", "six"]),
        ("mlflow==1.30.0\nsix\nsix", ["mlflow==1.30", "six", "six"]),
        ("mlflow==1.30.0\nsix==1.16\nsix==1.17", ["mlflow==1.30", "six==1.16", "six==1.17"]),
        ("mlflow==1.30.0\nMLflow", ["mlflow==1.30", "mlflow"]),
        ("mlflow==1.30.0\njson\ndatetime", ["mlflow==1.30", "json", "datetime"]),
        ("mlflow==1.30.0\nsix==1.0.post20210125", ["mlflow==1.30", "six==1"]),
        ("mlflow", ["mlflow"]),
        ("\n# nothing\n", ["mlflow"]),
    ],
)
def test_requirements_come_out_as_they_stand_but_for_what_is_mended(
    tmp_path: Path, lines: str, expected: list[str]
) -> None:
    files = {"python_env.yaml": PYTHON_ENV, "requirements.txt": lines}

    found = found_in(tmp_path, files)

    assert texts(found) == expected
    assert found.bounds == (("mlflow>=1.26",) if expected == ["mlflow"] else ())


def test_a_requirement_that_stands_there_twice_is_asked_for_once(tmp_path: Path) -> None:
    files = {"python_env.yaml": PYTHON_ENV, "requirements.txt": "mlflow==1.30.0\nsix\nSix"}

    spec = of(found_in(tmp_path, files), PYTHON, sections.Index())

    assert [one.text for one in spec.requirements] == ["mlflow==1.30", "six"]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("[pip==22.2.2, setuptools, wheel]", ["pip==22.2.2", "setuptools<81", "wheel"]),
        ("[pip, setuptools==52.0.0.post20210125]", ["pip", "setuptools==52"]),
        ("[pip==21.0.1, wheel==0.36.2.post20210125]",
         ["pip==21.0.1", "wheel==0.36.2", "setuptools<81"]),
        ("null", ["setuptools<81"]),
    ],
)  # fmt: skip
def test_the_tools_of_the_build_are_mended(tmp_path: Path, build: str, expected: list[str]) -> None:
    env = f"python: 3.8.15\nbuild_dependencies: {build}\ndependencies: [-r requirements.txt]"

    assert builds(found_in(tmp_path, {"python_env.yaml": env, "requirements.txt": PINNED})) == (
        expected
    )


OPTIONS = [
    ("--find-links https://download.pytorch.org/whl/torch_stable.html", "INDEX_FROM_MODEL"),
    ("-f https://gone.blob.core.windows.net/wheels/index.html", "INDEX_FROM_MODEL"),
    ("--extra-index-url https://azuremlsdktestpypi.azureedge.net/sdk", "INDEX_FROM_MODEL"),
    ("--extra-index-url=https://download.pytorch.org/whl/cu113", "INDEX_FROM_MODEL"),
]


@pytest.mark.parametrize(("option", "code"), OPTIONS)
def test_an_option_is_noted_or_has_to_be_allowed(tmp_path: Path, option: str, code: str) -> None:
    files = {"python_env.yaml": PYTHON_ENV, "requirements.txt": f"{option}\n{PINNED}"}

    found = found_in(tmp_path, files)

    assert (texts(found), codes(found)) == (BOTH, [])
    assert [note.code for note in found.asked.notes] == [code]
    with pytest.raises(PolicyDeniedError, match=r"`security.indexes` \(ENVD_SECURITY__INDEXES\)"):
        found_in(tmp_path, files, "standard")


@pytest.mark.parametrize(("option", "code"), OPTIONS)
def test_an_option_in_a_pip_section_is_judged_as_well(
    tmp_path: Path, option: str, code: str
) -> None:
    files = conda(pip=f"mlflow==1.30.0, '{option}'")

    assert [note.code for note in found_in(tmp_path, files).asked.notes] == [code]
    with pytest.raises(PolicyDeniedError, match=r"conda.yaml`, line .*`security.indexes`"):
        found_in(tmp_path, files, "standard")


def test_an_index_that_is_allowed_is_used(tmp_path: Path) -> None:
    option = "--extra-index-url https://host/simple"
    files = {"python_env.yaml": PYTHON_ENV, "requirements.txt": f"{option}\n{PINNED}"}
    one = settings(tmp_path, "standard")
    allowed = replace(one, security=replace(one.security, indexes=("https://host/",)))

    found = read(model(tmp_path, files), allowed)

    assert "https://host/simple" in of(found, PYTHON, sections.Index()).indexes.urls
