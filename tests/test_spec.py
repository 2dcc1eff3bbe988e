"""From the files of a model to its spec and the key of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from envd import config
from envd.errors import ModelInvalidError
from envd.model import read as read_model
from envd.secrets import without_credentials
from envd.settings.sections import Index, Security
from envd.spec import Dependencies, Python, Requirement, Spec, of, read, requirement_file
from envd.spec.policy import Policy
from envd.spec.requirement_file import Requirements
from envd.spec.spec import from_canonical

PYTHON = Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
PYTHON_ENV = (
    "python: {}\nbuild_dependencies: [pip, setuptools]\ndependencies: [-r requirements.txt]"
)
CONDA = "dependencies: [python={}, scikit-learn=1.0, pip<=23, {{pip: [from-conda, mlflow==1.0]}}]"

KEY_OF = """
import sys
from pathlib import Path
from envd.settings.sections import Index, Security
from envd.spec import Dependencies, Python, of, requirement_file
from envd.spec.policy import Policy

python = Python(
    "cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36"
)
rules = Policy("dev", Security(), {})
asked = requirement_file.read(Path(sys.argv[1]), "requirements.txt", rules)
print(of(Dependencies("3.11", (), asked, ()), python, Index()).key)
"""


def dependencies(
    folder: Path,
    *,
    mlmodel: str = "",
    loader: str = "mlflow.sklearn",
    repair: str = "false",
    **files: str,
) -> Dependencies:
    """Read what a model asks for; `conda_yaml="..."` becomes its file `conda.yaml`."""
    text = f"{mlmodel}\nflavors:\n  python_function:\n    loader_module: {loader}\n"
    if "logged_with" in files:
        text += f"    python_version: {files.pop('logged_with')}\n"
    (folder / "MLmodel").write_text(text)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(content)
    environ = {"ENVD_RESOLVE__REPAIR": repair, "ENVD_RESOLVE__AS_OF": "now"}
    return read(read_model(folder), config.load(root=folder, environ=environ))


def names(found: Dependencies) -> list[str]:
    return [one.name for one in found.asked.requirements]


def texts(found: Dependencies) -> list[str]:
    return [one.text for one in found.asked.requirements]


def codes(found: Dependencies) -> list[str]:
    return [note.code for note in found.notes]


def spec(*lines: str, index: Index = Index(), build: tuple[str, ...] = ()) -> Spec:  # noqa: B008
    folder = Path("model")

    def asked(texts: tuple[str, ...]) -> Requirements:
        policy = Policy("dev", Security(), {})
        return requirement_file.read_entries(folder, "file", texts, policy)

    return of(Dependencies("3.11", asked(build).requirements, asked(lines), ()), PYTHON, index)


def test_python_env_yaml_goes_before_the_other_files(tmp_path: Path) -> None:
    found = dependencies(
        tmp_path,
        python_env_yaml=PYTHON_ENV.format("3.10"),
        conda_yaml=CONDA.format("3.7"),
        requirements_txt="mlflow==2.9.2\nsix",
    )

    assert found.python == "3.10"
    assert [one.name for one in found.build] == ["pip", "setuptools"]
    assert texts(found) == ["mlflow==2.9.2", "six"]
    assert found.notes == ()


def test_python_env_yaml_may_hold_the_requirements_itself(tmp_path: Path) -> None:
    found = dependencies(
        tmp_path,
        python_env_yaml="python: 3.12.1\ndependencies: [mlflow==2.9.2, Six]",
        requirements_txt="not-this",
    )

    assert (found.python, names(found)) == ("3.12.1", ["mlflow", "six"])


def test_requirements_txt_goes_before_the_packages_of_conda_yaml(tmp_path: Path) -> None:
    found = dependencies(
        tmp_path, conda_yaml=CONDA.format("3.12"), requirements_txt="mlflow==1.2\nsix"
    )

    assert found.python == "3.12"
    assert [one.text for one in found.build] == ["pip<=23"]
    assert texts(found) == ["mlflow==1.2", "six"]
    assert found.notes == ()


def test_conda_yaml_alone_gives_its_packages_and_its_pip_section(tmp_path: Path) -> None:
    found = dependencies(tmp_path, conda_yaml=CONDA.format("3.12"))

    assert found.python == "3.12"
    assert texts(found) == ["scikit-learn==1.0.*", "from-conda", "mlflow==1"]
    assert codes(found) == ["CONDA_PACKAGE_TRANSLATED", "CHANNEL_REWRITTEN"]


def test_the_pip_section_of_conda_yaml_may_include_a_file(tmp_path: Path) -> None:
    found = dependencies(
        tmp_path,
        conda_yaml="dependencies: [python=3.12, {pip: [-r more.txt, -c limits.txt]}]",
        more_txt="mlflow\nsix",
        limits_txt="numpy<2",
    )

    assert names(found) == ["mlflow", "six"]
    assert [one.text for one in found.asked.constraints] == ["numpy<2"]


def test_requirements_txt_alone_is_enough(tmp_path: Path) -> None:
    found = dependencies(
        tmp_path, requirements_txt="mlflow==2.9.2\n-c limits.txt", limits_txt="a<2"
    )

    assert (found.python, found.build, names(found)) == (None, (), ["mlflow"])
    assert [one.text for one in found.asked.constraints] == ["a<2"]


def test_a_model_without_any_of_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalidError, match="does not say what it depends on"):
        dependencies(tmp_path)


@pytest.mark.parametrize(
    ("python_env", "why"),
    [
        ("dependencies: six", "`dependencies` is not a list of texts"),
        ("dependencies: [{pip: six}]", "`dependencies` is not a list of texts"),
        ("build_dependencies: {pip: 1}", "`build_dependencies` is not a list of texts"),
        ("dependencies: [--trusted-host a]", r"line 1: the option `--trusted-host`"),
        ("dependencies:\n- six\n- 'six=1'", "python_env.yaml`, line 3: `six=1` is not"),
        ("dependencies: [-r ../requirements.txt]", "is not in the model|leads out of the model"),
    ],
)
def test_a_python_env_yaml_that_cannot_be_used_is_refused(
    tmp_path: Path, python_env: str, why: str
) -> None:
    with pytest.raises(ModelInvalidError, match=why):
        dependencies(tmp_path, python_env_yaml=python_env)


@pytest.mark.parametrize(
    ("python", "is_added"),
    [("3.7.16", True), ("3.11.7", True), ("3.9", True), ("3.12.0", False), ("3.13", False)],
)
def test_setuptools_is_added_where_every_virtualenv_has_it(
    tmp_path: Path, python: str, *, is_added: bool
) -> None:
    conda = CONDA.format(python).replace("mlflow==1.0", "mlflow==2.20")

    found = dependencies(tmp_path, repair="true", conda_yaml=conda)

    build = [one.text for one in found.build]
    assert build == (["pip<=23", "setuptools<81"] if is_added else ["pip<=23"])
    assert ("SETUPTOOLS_ADDED" in codes(found)) == is_added


@pytest.mark.parametrize(
    "files",
    [
        {"python_env_yaml": "python: 3.9\nbuild_dependencies: [Setuptools==58.1.0]"},
        {"python_env_yaml": "python: 3.9\ndependencies: [setuptools]"},
        {"python_env_yaml": "dependencies: [mlflow==2.20]"},
    ],
)
def test_setuptools_is_not_added_where_it_is_named_or_no_python_is(
    tmp_path: Path, files: dict[str, str]
) -> None:
    assert "SETUPTOOLS_ADDED" not in codes(dependencies(tmp_path, repair="true", **files))


def test_mlflow_is_added_at_the_version_that_logged_the_model(tmp_path: Path) -> None:
    found = dependencies(
        tmp_path, mlmodel="mlflow_version: 2.20.1", requirements_txt="six", repair="true"
    )

    assert texts(found) == ["six", "mlflow==2.20.1"]
    assert [(note.code, note.subject) for note in found.notes] == [("MLFLOW_ADDED", "mlflow")]


@pytest.mark.parametrize("version", ["", "1.0 @ https://host/mlflow.whl", '"2.9; x"', '"2\\n-e ."'])
def test_mlflow_is_added_without_a_version_where_the_model_has_none(
    tmp_path: Path, version: str
) -> None:
    found = dependencies(
        tmp_path, mlmodel=f"mlflow_version: {version}", requirements_txt="six", repair="true"
    )

    assert texts(found) == ["six", "mlflow"]
    assert found.bounds == ("mlflow>=1.18",)


@pytest.mark.parametrize("line", ["mlflow", "MLflow<3", "mlflow-skinny==2.9", "mlflow_skinny"])
def test_mlflow_is_not_added_where_it_is_named(tmp_path: Path, line: str) -> None:
    found = dependencies(
        tmp_path, mlmodel="mlflow_version: 2.9.2", requirements_txt=line, repair="true"
    )

    assert len(found.asked.requirements) == 1


@pytest.mark.parametrize("loader", ["mine", "mlflow_extras.loader", "package.mlflow"])
def test_mlflow_is_not_added_for_a_loader_of_the_models_own(tmp_path: Path, loader: str) -> None:
    found = dependencies(
        tmp_path,
        loader=loader,
        mlmodel="mlflow_version: 2.9.2",
        requirements_txt="six",
        repair="true",
    )

    assert names(found) == ["six"]


@pytest.mark.parametrize(
    "files",
    [
        {"requirements_txt": "mlflow"},
        {"conda_yaml": "dependencies: [python, {pip: [mlflow]}]"},
        {"python_env_yaml": "dependencies: [mlflow]"},
        {"python_env_yaml": "python: null\ndependencies: [mlflow]"},
    ],
)
def test_the_python_is_that_of_mlmodel_where_the_files_name_none(
    tmp_path: Path, files: dict[str, str]
) -> None:
    found = dependencies(tmp_path, logged_with="3.12.4", **files)

    assert found.python == "3.12.4"
    assert codes(found) == ["PYTHON_FROM_MLMODEL"]


def test_the_python_of_mlmodel_does_not_go_before_that_of_the_files(tmp_path: Path) -> None:
    found = dependencies(
        tmp_path, logged_with="3.7.1", python_env_yaml="python: 3.12\ndependencies: [mlflow]"
    )

    assert (found.python, found.notes) == ("3.12", ())


@pytest.mark.parametrize("version", ["three", "9" * 5_000])
def test_a_python_that_is_no_version_is_none(tmp_path: Path, version: str) -> None:
    found = dependencies(
        tmp_path, logged_with=version, python_env_yaml=f"python: {version}\ndependencies: [mlflow]"
    )

    assert (found.python, found.notes) == (None, ())


def test_the_canonical_document_is_this_one() -> None:
    # Whatever changes it has every environment of every machine locked again.
    document = spec("Six == 1.0 --hash=sha256:aa", "numpy", index=Index(no_index=True)).canonical()

    assert document == (
        '{"as_of":"","bounds":[],"build":[],"build_constraints":[],"channels":[],"closed":false,'
        '"constraints":[],'
        '"indexes":{"best_match":false,"find_links":[],"no_index":true,"urls":[]},'
        '"manager":"virtualenv","no_binary":[],"only_binary":[],"packages":[],'
        '"prereleases":false,'
        '"python":{"abi":"cpython-311-x86_64-linux-gnu","implementation":"cpython",'
        '"libc":"glibc-2.36","platform":"linux-x86_64","version":"3.11.7"},'
        '"requirements":[{"hashes":[],"name":"numpy","source":"","text":"numpy"},'
        '{"hashes":["sha256:aa"],"name":"six","source":"","text":"six==1"}],"v":4,"variables":[]}'
    )


@pytest.mark.parametrize("version", [3, 5, "4", None])
def test_a_document_of_another_version_is_not_read(version: object) -> None:
    document = json.loads(spec("six").canonical()) | {"v": version}

    with pytest.raises(ValueError, match="this one is 4"):
        from_canonical(json.dumps(document))


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_key_is_the_same_in_every_process(tmp_path: Path, seed: str) -> None:
    lines = ["six[c,b,a]!=3,>=1,<2", "numpy", "scipy", "pandas", "mlflow"]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))

    said = subprocess.run(
        [sys.executable, "-c", KEY_OF, tmp_path],
        env={"PYTHONHASHSEED": seed},
        capture_output=True,
        check=True,
        text=True,
    )

    assert said.stdout.strip() == spec(*lines).key


def test_the_canonical_document_makes_the_same_spec() -> None:
    one = spec(
        "six[b,a]==1.0; python_version > '3' --hash=sha256:aa",
        "numpy",
        build=("setuptools<81",),
        index=Index(urls=("https://a/simple",), find_links=("/wheels",), no_index=True),
    )
    one = replace(one, constraints=(Requirement("pandas", "pandas<2"),), bounds=("mlflow>=2.9",))

    again = from_canonical(one.canonical())

    assert again == one
    assert again.key == one.key


def test_specs_that_differ_in_order_and_spelling_share_the_key() -> None:
    one = spec("Six==1.0", "scikit_learn>=1,<2", "six==1", build=("Pip", "wheel"))
    other = spec("scikit-learn <2.0, >=1.0  # why", "six == 1.0.0", build=("wheel", "pip"))

    assert one == other
    assert one.key == other.key


@pytest.mark.parametrize(
    "other",
    [
        spec("six==1.1"),
        spec("six==1.0", "numpy"),
        spec("six==1.0 --hash=sha256:aa"),
        spec("six==1.0", build=("pip",)),
        spec("six==1.0", index=Index(urls=("https://a/simple",))),
        spec("six==1.0", index=Index(find_links=("/wheels",))),
        spec("six==1.0", index=Index(no_index=True)),
        replace(spec("six==1.0"), manager="conda"),
        replace(spec("six==1.0"), constraints=(Requirement("numpy", "numpy<2"),)),
        replace(spec("six==1.0"), bounds=("mlflow>=2.9",)),
        replace(spec("six==1.0"), python=replace(PYTHON, version="3.11.8")),
        replace(spec("six==1.0"), python=replace(PYTHON, platform="linux-aarch64")),
    ],
)
def test_specs_that_ask_for_something_else_have_other_keys(other: Spec) -> None:
    assert other.key != spec("six==1.0").key


def test_a_requirement_is_not_a_constraint() -> None:
    six = (Requirement("six", "six"),)
    asked = replace(spec(), requirements=six)
    limited = replace(spec(), constraints=six)

    assert len({asked.key, limited.key, replace(spec(), build=six).key}) == 3


def test_the_order_of_indexes_is_part_of_the_key() -> None:
    urls = ("https://a/simple", "https://b/simple")

    one = spec("six", index=Index(urls=urls))
    other = spec("six", index=Index(urls=urls[::-1]))

    assert one.key != other.key


@pytest.mark.parametrize(
    ("lines", "urls", "best_match"),
    [
        ([], (), False),
        (["-i {x}"], ("{x}",), False),
        (["-i https://pypi.org/simple"], (), False),
        (["--extra-index-url https://pypi.org/simple/"], (), False),
        (["--extra-index-url {x}"], ("{pypi}", "{x}"), True),
        (["--extra-index-url {x}", "-i {x}"], ("{x}",), False),
        (["-i {x}", "--extra-index-url {pypi}"], ("{x}", "{pypi}"), True),
        (["-i {x}", "-i {pypi}", "--extra-index-url {y}"], ("{pypi}", "{y}"), True),
        (["--extra-index-url {y}", "--extra-index-url {x}"], ("{pypi}", "{y}", "{x}"), True),
    ],
)
def test_the_indexes_of_a_model_go_with_the_ordinary_one(
    lines: list[str], urls: tuple[str, ...], *, best_match: bool
) -> None:
    names = {"x": "https://x/simple", "y": "https://y/simple", "pypi": "https://pypi.org/simple"}
    own = {**names, "pypi": "https://mirror/simple"}
    texts = ["six", *(line.format(**names) for line in lines)]

    found = spec(*texts).indexes
    mirrored = spec(*texts, index=Index(urls=("https://mirror/simple",))).indexes

    assert (found.urls, found.best_match) == (tuple(u.format(**names) for u in urls), best_match)
    # The settings' own index is the ordinary one, where there is one.
    wanted = tuple(url.format(**own) for url in urls) or ("https://mirror/simple",)
    assert (mirrored.urls, mirrored.best_match) == (wanted, best_match)


def test_being_offline_is_not_part_of_the_key() -> None:
    assert spec("six", index=Index(offline=True)).key == spec("six").key


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:s3cret@host:8080/simple", "https://host:8080/simple"),
        ("https://s3cret@host/simple?a=s3cret#c", "https://host/simple#c"),
        ("https://us@er:s3cret@host/simple", "https://host/simple"),
        ("internal=https://user:s3cret@host/simple", "internal=https://host/simple"),
        ("https://host/a@b/simple", "https://host/a@b/simple"),
        ("https://[::1]/simple", "https://[::1]/simple"),
        ("https://[broken/simple", "https://[broken/simple"),
        ("file:///wheels@home", "file:///wheels@home"),
        ("/wheels@home", "/wheels@home"),
    ],
)
def test_credentials_are_not_in_the_canonical_document(url: str, expected: str) -> None:
    document = spec("six", index=Index(urls=(url,), find_links=(url,))).canonical()

    assert without_credentials(url) == expected
    assert "s3cret" not in document
    assert json.loads(document)["indexes"]["urls"] == [expected]


def test_new_credentials_are_no_new_spec() -> None:
    one = spec("six", index=Index(urls=("https://a:old@host/simple",)))
    other = spec("six", index=Index(urls=("https://b:new@host/simple",)))

    assert one.key == other.key
