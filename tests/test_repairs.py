"""What is mended in old models, and that nothing is where `resolve.repair` is false."""

from __future__ import annotations

from pathlib import Path

import pytest

from envd import config
from envd.model import read as read_model
from envd.settings.sections import Index
from envd.spec import Dependencies, Python, Terms, of, read, repairs

PYTHON = Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
ENV = "python: {}\nbuild_dependencies: [{}]\ndependencies: [-r requirements.txt]"
HASH = "--hash=sha256:" + "a" * 64
MLFLOW = "mlflow.sklearn"


def mended(
    folder: Path,
    requirements: str,
    *,
    mlflow: str = "",
    loader: str = MLFLOW,
    python: str = "3.12",
    build: str = "",
    override: tuple[str, ...] = (),
    repair: bool = True,
    **files: str,
) -> Dependencies:
    """Read a model with a `python_env.yaml`, written with the version *mlflow* of MLflow."""
    version = f"mlflow_version: {mlflow}\n" if mlflow else ""
    (folder / "MLmodel").write_text(
        f"{version}flavors: {{python_function: {{loader_module: {loader}}}}}"
    )
    (folder / "python_env.yaml").write_text(ENV.format(python, build))
    (folder / "requirements.txt").write_text(requirements)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return _read(folder, override, repair=repair)


def _read(folder: Path, override: tuple[str, ...] = (), *, repair: bool = True) -> Dependencies:
    environ = {"ENVD_RESOLVE__REPAIR": str(repair).lower(), "ENVD_RESOLVE__AS_OF": "now"}
    settings = config.load(root=folder / "root", environ=environ)
    return read(read_model(folder), settings, Terms(override, fresh=True))


def untouched(folder: Path) -> Dependencies:
    """Read the model that was written last with nothing mended."""
    return _read(folder, repair=False)


def texts(found: Dependencies) -> list[str]:
    return [one.text for one in found.asked.requirements]


def builds(found: Dependencies) -> list[str]:
    return [one.text for one in found.build]


def codes(found: Dependencies) -> list[str]:
    return [note.code for note in found.notes]


def test_every_rule_says_why_it_is_there() -> None:
    assert len(repairs.RULES) == 7
    assert all(len(rule.reason) > 20 for rule in repairs.RULES)


def test_nothing_is_mended_in_a_model_that_needs_nothing(tmp_path: Path) -> None:
    found = mended(tmp_path, "mlflow==3.17.2\nsix", mlflow="3.17.2", build="pip")

    assert (texts(found), builds(found)) == (["mlflow==3.17.2", "six"], ["pip"])
    assert (found.notes, found.build_constraints) == ((), ())


def test_no_rule_applies_where_repair_is_off(tmp_path: Path) -> None:
    mended(tmp_path, "pyyaml==5.4.1\nmlflow", python="3.9", build="pip==21.0.post20210125")

    found = untouched(tmp_path)

    assert (texts(found), builds(found)) == (
        ["pyyaml==5.4.1", "mlflow"],
        ["pip==21.post20210125"],
    )
    assert (found.notes, found.build_constraints, found.only_binary) == ((), (), ())


# The loader imports mlflow.


@pytest.mark.parametrize(
    ("mlflow", "added"),
    [("2.10.0", "mlflow==2.10"), ("2.10.0+databricks", "mlflow==2.10"),
     ("2.0.0rc0", "mlflow==2rc0"), ("", "mlflow"), ("newest", "mlflow"),
     ("2.10.1.dev0", "mlflow"), ("9" * 5_000, "mlflow")],
)  # fmt: skip
def test_mlflow_is_added_at_the_version_that_wrote_the_model(
    tmp_path: Path, mlflow: str, added: str
) -> None:
    found = mended(tmp_path, "six", mlflow=mlflow)

    assert texts(found) == ["six", added]
    assert found.bounds == (("mlflow>=1.26",) if added == "mlflow" else ())
    assert found.notes[0].code == "MLFLOW_ADDED"
    assert f"`{MLFLOW}` needs it" in found.notes[0].message
    assert texts(untouched(tmp_path)) == ["six"]


@pytest.mark.parametrize("loader", ["mine", "mlflow_extras.loader", "package.mlflow"])
def test_mlflow_is_not_added_for_a_loader_of_the_models_own(tmp_path: Path, loader: str) -> None:
    assert texts(mended(tmp_path, "six", mlflow="2.9.2", loader=loader)) == ["six"]


@pytest.mark.parametrize(
    "line",
    ["MLflow<3", "mlflow_skinny==2.9", "mlflow[extras]==2.9.2", "mlflow===2.9.2",
     "mlflow @ https://host/mlflow-2.9.2.tar.gz", "git+https://github.com/mlflow/mlflow.git@v2",
     "https://github.com/mlflow/mlflow/archive/v2.zip"],
)  # fmt: skip
def test_mlflow_is_not_added_where_a_line_brings_it(tmp_path: Path, line: str) -> None:
    found = mended(tmp_path, line, mlflow="2.16.0")

    assert found.asked.requirements == untouched(tmp_path).asked.requirements
    assert len(found.asked.requirements) == 1


def test_an_added_mlflow_is_the_same_as_one_that_was_named(tmp_path: Path) -> None:
    added = mended(tmp_path, "six", mlflow="2.20.0")
    named = mended(tmp_path, "mlflow==2.20.0\nsix", mlflow="2.20.0")

    assert of(added, PYTHON, Index()).key == of(named, PYTHON, Index()).key


# A bare mlflow.


@pytest.mark.parametrize(
    ("mlflow", "bounded"),
    [("2.20.0", "mlflow>=2.20.0"), ("2.16.0+local", "mlflow>=2.16.0"), ("", "mlflow>=1.26"),
     ("2.20.0.dev0", "mlflow>=1.26"), ("nonsense", "mlflow>=1.26")],
)  # fmt: skip
def test_a_bare_mlflow_is_not_older_than_the_model(
    tmp_path: Path, mlflow: str, bounded: str
) -> None:
    found = mended(tmp_path, "mlflow\nsix", mlflow=mlflow)

    assert (texts(found), found.bounds) == (["mlflow", "six"], (bounded,))
    (note,) = (one for one in found.notes if one.code == "MLFLOW_BOUNDED")
    assert note.subject == "mlflow"
    assert f"from {bounded.partition('>=')[2]} on" in note.message
    assert of(found, PYTHON, Index()).bounds == (bounded,)
    assert untouched(tmp_path).asked == found.asked
    assert untouched(tmp_path).bounds == ()


@pytest.mark.parametrize(
    ("files", "mlmodel", "expected"),
    [
        (["requirements.txt", "conda.yaml"], "", ["mlflow>=1.18"]),
        (["requirements.txt"], "signature: {inputs: '[]'}", ["mlflow>=1.18"]),
        (["conda.yaml"], "signature: {inputs: '[]'}", ["mlflow>=1.9"]),
        (["conda.yaml"], "", []),
        (["conda.yaml"], "mlflow_version: 1.30.0", ["mlflow>=1.30.0"]),
    ],
)
def test_without_a_version_the_format_says_which_mlflow_wrote_it(
    tmp_path: Path, files: list[str], mlmodel: str, expected: list[str]
) -> None:
    content = {
        "requirements.txt": "mlflow",
        "conda.yaml": "dependencies: [python=3.8, {pip: [mlflow]}]",
    }
    for name in files:
        (tmp_path / name).write_text(content[name])
    (tmp_path / "MLmodel").write_text(
        f"{mlmodel}\nflavors: {{python_function: {{loader_module: {MLFLOW}}}}}"
    )

    found = _read(tmp_path)

    assert (texts(found), list(found.bounds)) == (["mlflow"], expected)


@pytest.mark.parametrize(
    ("lines", "bound"),
    [("mlflow[extras]", "mlflow>=2.16.0"), ("mlflow-skinny", "mlflow-skinny>=2.16.0"),
     ("mlflow; python_version > '3.6'", "mlflow>=2.16.0"),
     ("mlflow-skinny\nmlflow", "mlflow>=2.16.0")],
)  # fmt: skip
def test_a_bound_leaves_the_requirement_as_it_stands(
    tmp_path: Path, lines: str, bound: str
) -> None:
    found = mended(tmp_path, lines, mlflow="2.16.0")

    assert found.bounds == (bound,)
    assert found.asked.requirements == untouched(tmp_path).asked.requirements


@pytest.mark.parametrize(
    "requirements",
    ["mlflow<3,>=2.1", "mlflow==2.1", f"mlflow==2.1 {HASH}", "mlflow!=2.1",
     "mlflow @ https://host/mlflow-2.9.2.tar.gz", "mlflow @ git+https://host/mlflow",
     "mlflow\nmlflow==2.1", "mlflow\nmlflow<3", "mlflow\n-c limits.txt"],
)  # fmt: skip
def test_an_mlflow_of_which_a_line_says_the_version_is_left_alone(
    tmp_path: Path, requirements: str
) -> None:
    found = mended(tmp_path, requirements, mlflow="2.16.0", limits="mlflow==2.1")

    assert found.asked.requirements == untouched(tmp_path).asked.requirements
    assert found.bounds == ()
    assert "MLFLOW_BOUNDED" not in codes(found)


# Packages of conda.


def test_the_date_of_a_conda_build_is_cut_off_its_version(tmp_path: Path) -> None:
    found = mended(
        tmp_path,
        "mlflow==3.1\ncertifi==2020.12.5.post20210125\n-c limits.txt",
        build="setuptools==52.0.0.post20210125",
        limits="wheel==0.36.2.post20210125",
    )

    assert builds(found) == ["setuptools==52"]
    assert texts(found) == ["mlflow==3.1", "certifi==2020.12.5"]
    assert [one.text for one in found.asked.constraints] == ["wheel==0.36.2"]
    assert codes(found) == ["CONDA_VERSION"] * 3
    assert "`setuptools==52.post20210125`" in " ".join(note.message for note in found.notes)
    assert builds(untouched(tmp_path)) == ["setuptools==52.post20210125"]


@pytest.mark.parametrize(
    "line",
    ["scikit-learn==0.22.2.post1", "six==1.0.post2021", "six>=1.0.post20210125",
     f"six==1.0.post20210125 {HASH}", "six==1.0.post202101251"],
)  # fmt: skip
def test_a_post_release_that_an_index_may_have_is_left_alone(tmp_path: Path, line: str) -> None:
    found = mended(tmp_path, f"mlflow==3.1\n{line}")

    assert found.asked.requirements == untouched(tmp_path).asked.requirements
    assert found.notes == ()


# setuptools.


@pytest.mark.parametrize(
    ("python", "mlflow", "why"),
    [
        ("3.7.16", "3.1", "every virtualenv of this Python has it"),
        ("3.11", "3.1", "every virtualenv of this Python has it"),
        ("3.12.1", "2.15.1", "mlflow needs its pkg_resources"),
        ("3", "2.15.1", "mlflow needs its pkg_resources"),
        ("nobody", "1.0", "mlflow needs its pkg_resources"),
        ("3.12", "2.16", None),
        ("3.13", "3.1", None),
        ("3", "3.1", None),
        ("nobody", "3.1", None),
    ],
)
def test_setuptools_is_added_where_it_was_seeded_or_is_imported(
    tmp_path: Path, python: str, mlflow: str, why: str | None
) -> None:
    found = mended(tmp_path, f"mlflow=={mlflow}", python=python, build="pip")

    assert builds(found) == (["pip", "setuptools<81"] if why else ["pip"])
    assert [note.message for note in found.notes] == (
        [f"`setuptools<81` is added: {why}"] if why else []
    )
    assert builds(untouched(tmp_path)) == ["pip"]


@pytest.mark.parametrize(
    ("requirements", "mlflow", "is_added"),
    [
        ("mlflow>=2", "2.15.0", True),
        ("mlflow>=2", "2.16.0", False),
        ("mlflow>=2", "", True),
        ("mlflow==2.15.0+local", "2.16.0", True),
        ("mlflow\nmlflow==2.15", "2.16.0", True),
        ("mlflow==2.16\nmlflow", "2.15", False),
        ("mlflow-skinny==2.9", "", True),
        ("six", "2.15", False),
    ],
)
def test_which_mlflow_is_meant_decides_about_pkg_resources(
    tmp_path: Path, requirements: str, mlflow: str, *, is_added: bool
) -> None:
    found = mended(tmp_path, requirements, mlflow=mlflow, loader="mine")

    assert builds(found) == (["setuptools<81"] if is_added else [])


@pytest.mark.parametrize(
    ("requirements", "build"),
    [("mlflow==1.1", "setuptools==58.1"), ("mlflow==1.1\nSetuptools<70", ""),
     ("mlflow==1.1\nsetuptools @ https://host/setuptools-60.0.tar.gz", "")],
)  # fmt: skip
def test_setuptools_is_not_added_where_it_is_named(
    tmp_path: Path, requirements: str, build: str
) -> None:
    found = mended(tmp_path, requirements, python="3.8", build=build)

    assert builds(found) == builds(untouched(tmp_path))
    assert found.notes == ()


def test_a_constraint_says_the_version_of_an_added_setuptools(tmp_path: Path) -> None:
    found = mended(tmp_path, "mlflow==1.1\n-c limits.txt", limits="setuptools==82.0")

    assert builds(found) == ["setuptools"]


@pytest.mark.parametrize(
    ("requirements", "build", "expected"),
    [
        ("mlflow==2.15.1", "pip, setuptools", (["pip", "setuptools<81"], ["mlflow==2.15.1"])),
        ("mlflow==1.2\nsetuptools", "", ([], ["mlflow==1.2", "setuptools<81"])),
        ("mlflow==1.2\nsetuptools", "setuptools",
         (["setuptools<81"], ["mlflow==1.2", "setuptools<81"])),
    ],
)  # fmt: skip
def test_an_open_setuptools_is_one_with_pkg_resources(
    tmp_path: Path, requirements: str, build: str, expected: tuple[list[str], list[str]]
) -> None:
    found = mended(tmp_path, requirements, build=build)

    assert (builds(found), texts(found)) == expected
    assert codes(found) == ["SETUPTOOLS_BOUNDED"]
    assert "setuptools<81" not in builds(untouched(tmp_path)) + texts(untouched(tmp_path))


@pytest.mark.parametrize(
    ("requirements", "build"),
    [
        ("mlflow==2.16", "setuptools"),
        ("mlflow==1.2", "setuptools==82"),
        ("mlflow==1.2", "setuptools>=60"),
        ("mlflow==1.2\nsetuptools==82", "setuptools"),
        ("mlflow==1.2\n-c limits.txt", "setuptools"),
        (f"mlflow==1.2\nsetuptools==82 {HASH}", ""),
    ],
)
def test_a_setuptools_of_which_a_line_says_the_version_is_left_alone(
    tmp_path: Path, requirements: str, build: str
) -> None:
    found = mended(tmp_path, requirements, build=build, limits="setuptools==82")

    assert found.build == untouched(tmp_path).build
    assert found.asked == untouched(tmp_path).asked


# Builds.


@pytest.mark.parametrize("line", ["PyYAML==5.4.1", "pyyaml==6.0.0", "six\n-c limits.txt"])
def test_an_old_pyyaml_is_built_with_what_it_was_written_for(tmp_path: Path, line: str) -> None:
    found = mended(tmp_path, f"mlflow==3.1\n{line}", limits="pyyaml==5.3.1")

    assert found.build_constraints == ("cython<3", "setuptools<66")
    assert codes(found) == ["BUILD_CONSTRAINED"]
    assert of(found, PYTHON, Index()).build_constraints == ("cython<3", "setuptools<66")
    assert untouched(tmp_path).build_constraints == ()


@pytest.mark.parametrize("line", ["pyyaml==6.0.1", "pyyaml<6", "pyyaml", "pyyaml-env-tag==0.1"])
def test_other_builds_are_not_constrained(tmp_path: Path, line: str) -> None:
    assert mended(tmp_path, f"mlflow==3.1\n{line}").build_constraints == ()


def test_what_is_compiled_is_chosen_among_wheels(tmp_path: Path) -> None:
    found = mended(tmp_path, "mlflow==3.1\nshap\nnumpy<2\nscikit-learn==1.0.*")

    assert {"numba", "numpy", "scikit-learn", "shap"} <= set(found.only_binary)
    assert "numba" in of(found, PYTHON, Index()).only_binary
    assert found.notes == ()
    assert untouched(tmp_path).only_binary == ()


@pytest.mark.parametrize(
    "line",
    ["numba==0.53.1", f"numba==0.53.1 {HASH}", "numba @ git+https://host/numba",
     "numba @ https://host/numba-0.53.1.tar.gz", "--no-binary numba", "--no-binary=Numba,six",
     "--no-binary :all:", "-c limits.txt"],
)  # fmt: skip
def test_what_the_model_chose_itself_may_be_built(tmp_path: Path, line: str) -> None:
    found = mended(tmp_path, f"mlflow==3.1\n{line}", limits="numba==0.53.1")

    assert "numba" not in found.only_binary
    assert ("numpy" in found.only_binary) == (":all:" not in line)


# Together.


def test_what_is_added_is_bounded_after(tmp_path: Path) -> None:
    found = mended(tmp_path, "six", python="3.12")

    assert (texts(found), found.bounds) == (["six", "mlflow"], ("mlflow>=1.26",))
    assert builds(found) == ["setuptools<81"]
    assert codes(found) == ["MLFLOW_ADDED", "MLFLOW_BOUNDED", "SETUPTOOLS_ADDED"]


def test_all_rules_apply_to_one_model(tmp_path: Path) -> None:
    found = mended(
        tmp_path,
        "pyyaml==5.4.1\ncertifi==2020.12.5.post20210125",
        build="setuptools, wheel",
        python="3.9",
    )

    assert builds(found) == ["setuptools<81", "wheel"]
    assert texts(found) == ["pyyaml==5.4.1", "certifi==2020.12.5", "mlflow"]
    assert found.bounds == ("mlflow>=1.26",)
    assert codes(found) == [
        "MLFLOW_ADDED", "MLFLOW_BOUNDED", "CONDA_VERSION", "SETUPTOOLS_BOUNDED",
        "BUILD_CONSTRAINED",
    ]  # fmt: skip
    assert "numpy" in found.only_binary


def test_a_model_that_is_mended_is_not_mended_again(tmp_path: Path) -> None:
    found = mended(tmp_path, "pyyaml==5.4.1\nsix==1.post20210125", build="setuptools", python="3.9")

    again = repairs.applied(read_model(tmp_path), found)

    assert (again.build, again.asked, again.bounds) == (found.build, found.asked, found.bounds)


def test_pins_hashes_and_sources_are_left_as_they_are(tmp_path: Path) -> None:
    requirements = (
        f"mlflow==1.30.0 {HASH}\nscikit-learn==1.0.2\npandas @ https://host/pandas-1.0.tar.gz\n"
        f"setuptools==58.1.0 {HASH}\nsix @ git+https://host/six@main\nurllib3<2"
    )

    found = mended(tmp_path, requirements, mlflow="1.30.0", python="3.8")

    assert found.asked == untouched(tmp_path).asked
    assert found.notes == untouched(tmp_path).notes


def test_options_and_constraints_outlive_a_repair(tmp_path: Path) -> None:
    requirements = "--extra-index-url https://host/simple\nmlflow\n-c limits.txt"

    found = mended(tmp_path, requirements, mlflow="2.9.2", limits="numpy<2")

    assert (texts(found), found.bounds) == (["mlflow"], ("mlflow>=2.9.2",))
    assert [one.text for one in found.asked.constraints] == ["numpy<2"]
    assert found.asked.options.extra_index_urls == ("https://host/simple",)
    assert codes(found)[-2:] == ["MLFLOW_BOUNDED", "SETUPTOOLS_ADDED"]


# Overrides.


@pytest.mark.parametrize(
    ("override", "is_added"), [("mlflow==2.9.2", True), ("mlflow==2.16.0", False)]
)
def test_the_mlflow_of_an_override_decides_about_pkg_resources(
    tmp_path: Path, override: str, *, is_added: bool
) -> None:
    asked = "mlflow==2.16" if is_added else "mlflow==2.9.2"

    found = mended(tmp_path, asked, override=(override,))

    assert (builds(found) == ["setuptools<81"]) == is_added


def test_a_build_of_an_override_is_mended_too(tmp_path: Path) -> None:
    found = mended(tmp_path, "mlflow==3.1\npyyaml", override=("pyyaml==5.4.1", "numba==0.53.1"))

    assert found.build_constraints == ("cython<3", "setuptools<66")
    assert "numba" not in found.only_binary


@pytest.mark.parametrize(
    ("override", "bounds"),
    [("mlflow==2.1", ()), ("mlflow", ()), ("six==1.0", ("mlflow>=2.9.2",))],
)
def test_an_override_says_the_version_of_mlflow_itself(
    tmp_path: Path, override: str, bounds: tuple[str, ...]
) -> None:
    found = mended(tmp_path, "mlflow\nsix", mlflow="2.9.2", override=(override,))

    assert of(found, PYTHON, Index()).bounds == bounds


def test_an_override_of_the_old_pyyaml_needs_no_mending(tmp_path: Path) -> None:
    found = mended(tmp_path, "mlflow==3.1\npyyaml==5.4.1", override=("pyyaml==6.0.2",))

    assert found.build_constraints == ()
