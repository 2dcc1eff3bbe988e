"""`envctl requirements`: what models ask for, edited in all their files at once."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from envd.errors import EnvdError, ModelInvalidError, RequestInvalidError
from envd.mend import editing, rewriting, showing
from envd.model import mlmodel
from envd.settings.sections import Security
from envd.spec import requirement_text
from envd.spec.policy import Policy
from tests.called import Called
from tests.conftest import MODELS, environment

RULES = Policy("dev", Security(), {})
MLMODEL = """\
flavors:
  python_function:
    env: {conda: conda.yaml, virtualenv: python_env.yaml}
    loader_module: own
"""
PYTHON_ENV = (
    "python: 3.11.7\nbuild_dependencies:\n- pip==23.2.1\ndependencies:\n- -r requirements.txt\n"
)
CONDA = """\
channels:
- conda-forge
dependencies:
- python=3.11.7
- pip<=23.2.1
- pip:
  - mlflow==3.17.2
  - cloudpickle==3.1.2
name: mlflow-env
"""
PLAIN = "mlflow==3.17.2\ncloudpickle==3.1.2"


@pytest.fixture
def envctl(tmp_path: Path, home: Path) -> Called:
    return Called(tmp_path / "root", environment(tmp_path / "root", home))


def model(folder: Path, requirements: str = PLAIN, conda: str = CONDA, **more: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "MLmodel": MLMODEL, "python_env.yaml": PYTHON_ENV,
        "requirements.txt": requirements, "conda.yaml": conda,
    }  # fmt: skip
    texts |= {name.replace("_txt", ".txt"): one for name, one in more.items()}
    for name, content in texts.items():
        if content:
            (folder / name).write_bytes(content.encode())
    return folder


def edit(
    folder: Path, *put: str, remove: tuple[str, ...] = (), only_there: bool = False
) -> list[str]:
    """Edit a model, twice as well as once, and return what is noted of it."""
    wanted = editing.put(put, RULES, only_there=only_there) if put else editing.without(remove)
    plan = editing.plan(folder, wanted)
    editing.carry_out(plan)
    if put:
        assert editing.plan(folder, wanted) == editing.Editing(folder)
    return [one.code for one in plan.notes]


def text(folder: Path, name: str = "requirements.txt") -> str:
    return (folder / name).read_bytes().decode()


def pip(folder: Path) -> list[str]:
    document = yaml.safe_load(text(folder, "conda.yaml"))
    return next(one["pip"] for one in document["dependencies"] if isinstance(one, dict))


# The file, what is put there, and what it is then; `-NAME` removes.
FILES = {
    "another": ("six==1.16.0\n", "bs4==1", "six==1.16.0\nbs4==1\n"),
    "another without a last newline": ("six==1.16.0", "bs4==1", "six==1.16.0\nbs4==1"),
    "one of the same name": ("Sci_Kit==1.0\nsix\n", "sci-kit==1.1", "sci-kit==1.1\nsix\n"),
    "one with a comment": ("# head\n six == 1  # why\n", "six==2", "# head\n six==2  # why\n"),
    "one that goes": ("six==1 # why\n# next\nfoo\n", "-Six", "# why\n# next\nfoo\n"),
    "the last that goes": ("foo\nsix", "-six", "foo\n"),
    "an extra": ("uvicorn[standard]==0.1\n", "uvicorn==0.2", "uvicorn==0.2\n"),
    "one for each Python": (
        'numpy<2; python_version<"3.9"\nsix\nnumpy>=2; python_version>="3.9"\n',
        "numpy==1.26.4",
        "numpy==1.26.4\nsix\n",
    ),
    "the ends of lines": ("six\r\nfoo\r\n", "bar", "six\r\nfoo\r\nbar\r\n"),
    "options": (
        "--extra-index-url https://a.org/x\n--pre\nsix\n-f https://a.org/links\n",
        "bar",
        "--extra-index-url https://a.org/x\n--pre\nsix\nbar\n-f https://a.org/links\n",
    ),
    "what pip-compile says below": (
        "six==1\n    # via foo\n", "bar==1", "six==1\n    # via foo\nbar==1\n"
    ),
    "a continued line": (
        "six==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb  # why\nfoo==1 --hash=sha256:c\n",
        "six==2 --hash=sha256:dd",
        "six==2 --hash=sha256:dd  # why\nfoo==1 --hash=sha256:c\n",
    ),
    "one of a URL": ("six @ https://a.org/six-1.tar.gz\n", "six==2", "six==2\n"),
    "a wheel": ("./wheels/six-1.0-py3-none-any.whl\n", "six==2", "six==2\n"),
    "a repository": ("-e git+https://a.org/x@main#egg=six\n", "six==2", "six==2\n"),
    "an empty file": ("", "six==2", "six==2\n"),
    "what MLflow locked": (
        "# Original requirements\n# six\n#\n# Locked requirements\nsix==1\n",
        "foo",
        "# Original requirements\n# six\n#\n# Locked requirements\nsix==1\nfoo\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "asked", "expected"), FILES.values(), ids=FILES)
def test_a_requirement_file_keeps_all_that_does_not_change(
    tmp_path: Path, before: str, asked: str, expected: str
) -> None:
    folder = model(tmp_path / "m", before or "# nothing", conda="")
    (folder / "requirements.txt").write_bytes(before.encode())

    wanted = editing.without([asked[1:]]) if asked[0] == "-" else editing.put([asked], RULES)
    editing.carry_out(editing.plan(folder, wanted))

    assert text(folder) == expected
    assert text(folder, "requirements.txt.orig") == before


CONDA_FILES = {
    "a list": (CONDA, ["bs4==1"], CONDA.replace("3.1.2\n", "3.1.2\n  - bs4==1\n")),
    "comments and quotes": (
        (
            "# ours\ndependencies:\n- python=3.11\n- pip\n- pip:\n    # first\n"
            "    - 'six==1' # why\n    - \"foo\"\n"
        ),
        ["six==2", 'bar; python_version < "3.9"'],
        (
            "# ours\ndependencies:\n- python=3.11\n- pip\n- pip:\n    # first\n"
            "    - 'six==2' # why\n    - \"foo\"\n    - bar; python_version < \"3.9\"\n"
        ),
    ),
    "in one line": (
        "dependencies: [python=3.11, pip, {pip: [six==1, foo]}]\n",
        ["six[a,b]==2", 'bar>=1,<2; os_name == "posix"'],
        (
            'dependencies: [python=3.11, pip, {pip: ["six[a,b]==2", foo, '
            "'bar>=1,<2; os_name == \"posix\"']}]\n"
        ),
    ),
    "none for pip": (
        "dependencies:\n  - python=3.11\n",
        ["six==2", "foo"],
        "dependencies:\n  - python=3.11\n  - pip\n  - pip:\n    - six==2\n    - foo\n",
    ),
    "an empty one": (
        "dependencies: [pip, {pip: []}]\n", ["six"], "dependencies: [pip, {pip: [six]}]\n"
    ),
    "two sections": (
        "dependencies:\n- pip:\n  - six==1\n- pip:\n  - foo\n  - Six\n",
        ["six==2"],
        "dependencies:\n- pip:\n  - six==2\n- pip:\n  - foo\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "put", "expected"), CONDA_FILES.values(), ids=CONDA_FILES)
def test_a_conda_environment_keeps_all_that_does_not_change(
    tmp_path: Path, before: str, put: list[str], expected: str
) -> None:
    folder = model(tmp_path / "m", "", before)
    (folder / "python_env.yaml").unlink()

    edit(folder, *put)

    assert text(folder, "conda.yaml") == expected


def test_what_cannot_be_edited_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", conda="dependencies:\n- python=3.11\n- pip:\n")
    before = {one: one.read_bytes() for one in folder.iterdir()}
    flow = model(tmp_path / "f", conda="dependencies: [python=3.11]\n")

    with pytest.raises(ModelInvalidError, match=r"conda\.yaml` is laid out so that"):
        edit(flow, "six==1")
    edit(folder, "six==1")

    assert pip(folder) == ["six==1"]
    assert text(flow) == PLAIN
    assert sorted(folder.glob("*.orig")) == [
        Path(f"{one}.orig")
        for one in sorted(before)
        if one.name in {"conda.yaml", "requirements.txt"}
    ]


def test_all_files_ask_for_the_same_afterwards(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "mlflow==3.17.2\nSix==1.0\n")
    shown = showing.show(folder)
    assert [(one.name, one.first, one.second) for one in shown.disagreements] == [
        ("six", "Six==1.0", ""),
        ("cloudpickle", "", "cloudpickle==3.1.2"),
    ]

    edit(folder, "six==1.17.0", "cloudpickle==3.1.1", only_there=True)

    assert showing.show(folder).disagreements == ()
    assert text(folder) == "mlflow==3.17.2\nsix==1.17.0\ncloudpickle==3.1.1\n"
    assert pip(folder) == ["mlflow==3.17.2", "cloudpickle==3.1.1", "six==1.17.0"]


def test_constraints_that_would_not_allow_it_change_and_the_others_stay(tmp_path: Path) -> None:
    # As MLflow writes a model that was logged with constraints.
    folder = model(
        tmp_path / "m",
        "mlflow\nsix\n-c constraints.txt\n",
        CONDA.replace("  - mlflow==3.17.2\n  - cloudpickle==3.1.2\n",
                      "  - mlflow\n  - six\n  - -c constraints.txt\n"),
        constraints_txt="mlflow<3\nsix==1.16.0  # ours\nnumpy<2\n",
    )  # fmt: skip

    notes = edit(folder, "six==1.17.0", "numpy==1.26.4")

    assert notes == ["CONSTRAINT_CHANGED"]
    assert text(folder, "constraints.txt") == "mlflow<3\nsix==1.17.0  # ours\nnumpy<2\n"
    assert text(folder) == "mlflow\nsix==1.17.0\nnumpy==1.26.4\n-c constraints.txt\n"
    assert pip(folder)[-1] == "numpy==1.26.4"
    edit(folder, remove=("six",))
    assert "six==1.17.0" in text(folder, "constraints.txt")


def test_what_is_included_is_edited_where_it_stands(tmp_path: Path) -> None:
    conda = CONDA.replace(
        "  - mlflow==3.17.2\n  - cloudpickle==3.1.2\n", "  - -r requirements.txt\n"
    )
    folder = model(
        tmp_path / "m", "-r more.txt\nfoo\n", conda, more_txt="six==1 # x\n-r more.txt\n"
    )

    edit(folder, "six==2", "bar")

    assert text(folder, "more.txt") == "six==2 # x\n-r more.txt\n"
    assert text(folder) == "-r more.txt\nfoo\nbar\n"
    assert not (folder / "conda.yaml.orig").exists()


def test_files_that_include_one_another_many_times_are_read_once(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "-r 1.txt\n" * 1000, conda="")
    for number in range(1, 6):
        (folder / f"{number}.txt").write_text(f"-r {number + 1}.txt\n" * 1000)
    (folder / "6.txt").write_text("six==1\n-r requirements.txt\n")

    edit(folder, "six==2")

    assert text(folder, "6.txt") == "six==2\n-r requirements.txt\n"


def test_requirements_of_python_env_and_copies_of_databricks_change_too(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "python_env.yaml").write_text("python: 3.11.7\ndependencies:\n- six==1\n- foo\n")
    model(folder / "metadata", "six==1\nfoo\n")

    editing.carry_out(editing.plan(folder, editing.put(["six==2"], RULES)))

    assert text(folder, "python_env.yaml") == "python: 3.11.7\ndependencies:\n- six==2\n- foo\n"
    assert text(folder / "metadata") == "six==2\nfoo\n"
    assert text(folder) == f"{PLAIN}\nsix==2"


def test_what_was_made_of_the_files_is_told_of(tmp_path: Path) -> None:
    conda = CONDA.replace("- pip<", "- conda-forge::scikit-learn=1.0\n- pip<")
    folder = model(tmp_path / "m", conda=conda)
    for name in ("pylock.toml", "conda-lock.yml", "model.sig", "registered_model_meta"):
        (folder / name).touch()

    plan = editing.plan(folder, editing.put(["scikit-learn==1.1"], RULES))

    assert [(one.code, one.subject) for one in plan.notes] == [
        ("CONDA_PACKAGE", "scikit-learn"),
        ("LOCK_STALE", "pylock.toml"),
        ("LOCK_STALE", "conda-lock.yml"),
        ("SIGNATURE_STALE", "model.sig"),
        ("REGISTERED_ELSEWHERE", ""),
    ]


def refusal(folder: Path, *put: str, **more: object) -> str:
    with pytest.raises(EnvdError) as caught:
        edit(folder, *put, **more)  # type: ignore[arg-type]
    assert isinstance(caught.value, RequestInvalidError | ModelInvalidError)
    return caught.value.message


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    hashed = model(tmp_path / "h", "six==1 --hash=sha256:" + "a" * 64)

    assert "requirement 1: `six=1` is not a requirement" in refusal(folder, "six=1")
    assert "`six` is given twice" in refusal(folder, "six==1", "Six==2")
    assert "is not the name of a distribution" in refusal(folder, remove=("-r x",))
    assert "did you mean `cloudpickle`" in refusal(folder, "cloudpikle==1", only_there=True)
    assert "does not ask for `six`" in refusal(folder, remove=("six",))
    assert "give that of `foo` too" in refusal(hashed, "foo==1")
    (folder / "conda.yaml").write_text("a: *b\n")
    assert "aliases" in refusal(folder, "six==1")
    for name in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        (folder / name).unlink()
    assert "no file of requirements" in refusal(folder, "six==1")
    assert not list(tmp_path.rglob("*.orig"))


@pytest.mark.parametrize("target", ["../outside.txt", "/etc/hostname", "link.txt"])
def test_nothing_outside_the_model_is_written(tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("six==1\n")
    folder = model(tmp_path / "m", f"-r {target}\nfoo\n", conda="")
    (folder / "link.txt").symlink_to(outside)

    with pytest.raises(ModelInvalidError):
        edit(folder, "six==2")

    assert outside.read_text() == "six==1\n"


def test_permissions_and_a_byte_order_mark_stay(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "\ufeffsix==1\r\n")
    (folder / "requirements.txt").chmod(0o640)

    edit(folder, "six==2")

    assert (folder / "requirements.txt").read_bytes() == b"\xef\xbb\xbfsix==2\r\n"
    assert stat.S_IMODE((folder / "requirements.txt").stat().st_mode) == 0o640
    assert mlmodel.read(folder).conda_file == "conda.yaml"


def test_edits_of_one_model_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    wanted = [editing.put([f"pkg{number}==1"], RULES) for number in range(4)]

    with ThreadPoolExecutor(len(wanted)) as threads:
        list(threads.map(lambda one: editing.edit(folder, one), wanted))

    assert {f"pkg{number}==1" for number in range(4)} <= set(text(folder).split())
    assert showing.show(folder).disagreements == ()


def killed(folder: Path) -> None:
    """Let an edit of two files be killed when the first of them has changed."""
    program = (
        "import sys; from pathlib import Path; from envd.mend import editing; "
        "from envd.settings.sections import Security; from envd.spec.policy import Policy; "
        "wanted = editing.put(['six==2'], Policy('dev', Security(), {})); "
        "editing.carry_out(editing.plan(Path(sys.argv[1]), wanted))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, folder],
        env=os.environ | {"ENVD_FAILPOINT": "change.renamed:kill"},
        check=False,
    )
    assert ran.returncode == -9


def test_what_a_crash_leaves_undone_whoever_comes_next_does(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    killed(folder)
    changed = [name for name in ("requirements.txt", "conda.yaml") if "six" in text(folder, name)]
    assert len(changed) == 1

    shown = showing.show(folder)

    assert shown.disagreements == ()
    assert text(folder).endswith("six==2")
    assert pip(folder)[-1] == "six==2"
    assert sorted(one.name for one in folder.iterdir()) == [
        "MLmodel", "conda.yaml", "conda.yaml.orig", "python_env.yaml", "requirements.txt",
        "requirements.txt.orig",
    ]  # fmt: skip


def test_what_was_edited_by_hand_after_a_crash_stays(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    killed(folder)
    for name in ("requirements.txt", "conda.yaml"):
        path = folder / name
        path.write_text(path.read_text().replace("3.1.2", "3.1.1"))

    rewriting.finish(folder)

    assert "3.1.1" in text(folder)
    assert pip(folder)[1] == "cloudpickle==3.1.1"
    assert not (folder / ".envd-changes.json").exists()


@pytest.mark.parametrize(
    "journal",
    ["{}", "[]", "x", '{"files": [["../../x", "MLmodel", ""]]}',
     '{"files": [["MLmodel", "a", ""]]}', '{"files": [[".unfinished.x", "../outside", ""]]}'],
)  # fmt: skip
def test_a_journal_that_envd_did_not_write_moves_nothing(tmp_path: Path, journal: str) -> None:
    folder = model(tmp_path / "m")
    (tmp_path / "outside").touch()
    (folder / ".envd-changes.json").write_text(journal)

    with pytest.raises(ModelInvalidError):
        edit(folder, "six==1")


@given(
    st.lists(st.sampled_from(["six==1", "Six", "foo # six", "# six", "", "-c c.txt", "--pre", "a\\",
                              "six \\", "bar==1 --hash=sha256:aa"])),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(0, 1),
)  # fmt: skip
def test_an_edited_file_asks_for_what_was_put_and_else_for_what_it_did(
    lines: list[str], end: str, ends: int
) -> None:
    before = end.join(lines) + end * ends
    found = requirement_text.read(before)
    there = [place for place, one in enumerate(found) if one.name == "six"]
    changes: dict[int, str | None] = dict.fromkeys(there[1:])
    changes |= dict.fromkeys(there[:1], "six==9")

    after = requirement_text.edited(before, changes, [] if there else ["six==9"])

    others = [one.text for one in found if one.name != "six"]
    assert sorted(one.text for one in requirement_text.read(after)) == sorted([*others, "six==9"])


# The command.


def test_several_models_are_edited_and_what_fails_does_not_stop_the_others(
    tmp_path: Path, envctl: Called
) -> None:
    models = [model(tmp_path / "all" / name) for name in ("a", "b", "c")]
    (models[1] / "conda.yaml").write_text("- no\n")

    ran = envctl("requirements", "add", "-m", tmp_path / "all", "six==1.17.0", "--json")

    found = json.loads(ran.stdout)
    assert ran.returncode == 1
    assert [one["changed"] for one in found] == [True, False, True]
    assert "it is not a mapping" in found[1]["error"]["message"]
    assert "+six==1.17.0" in found[0]["files"][0]["diff"]
    assert [text(one).endswith("six==1.17.0") for one in models] == [True, False, True]


def test_a_dry_run_shows_a_diff_and_writes_nothing(tmp_path: Path, envctl: Called) -> None:
    folder = model(tmp_path / "m")

    ran = envctl("requirements", "add", "-m", folder, "six==1.17.0", "--dry-run")

    assert ran.returncode == 0
    assert ran.stdout.count("+six==1.17.0") == ran.stdout.count("+  - six==1.17.0") == 1
    assert text(folder) == PLAIN
    assert not list(folder.glob("*.orig"))


def test_show_lists_the_files_and_where_they_differ(tmp_path: Path, envctl: Called) -> None:
    folder = model(tmp_path / "m", "mlflow==3.17.2\n--extra-index-url https://me:secret@a.org/x\n")

    ran = envctl("requirements", "show", "-m", folder)
    shown = json.loads(envctl("requirements", "show", "-m", folder, "--json").stdout)

    assert "requirements.txt\n  mlflow==3.17.2\n" in ran.stdout
    assert "secret" not in ran.stdout
    assert "`cloudpickle` is asked for not in `requirements.txt` and by" in ran.stderr
    assert [one["path"] for one in shown[0]["files"]] == [
        "python_env.yaml", "requirements.txt", "conda.yaml"
    ]  # fmt: skip
    assert shown[0]["disagreements"][0]["name"] == "cloudpickle"


@pytest.mark.parametrize(
    ("uri", "folder"),
    [("models:/iris/3", "edited"), ("runs:/0a1b/iris", "edited/iris")],
)
def test_what_lies_on_a_server_is_not_edited_and_the_way_is_shown(
    envctl: Called, uri: str, folder: str
) -> None:
    ran = envctl("requirements", "add", "-m", uri, "six>=1,<2")

    assert ran.returncode == 2
    assert f"mlflow artifacts download -u {uri} -d ./edited" in ran.stderr
    assert f"envctl requirements add -m ./{folder} 'six>=1,<2'" in ran.stderr
    # Where MLflow lays it, which of a run's is below that.
    assert f'mlflow.log_artifacts("{folder}", "model")' in ran.stderr
    assert "mlflow.register_model(" in ran.stderr


def test_a_folder_of_models_needs_no_slash_unless_a_model_is_served_by_its_name(
    tmp_path: Path, envctl: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(tmp_path / "folder" / "one")
    model(tmp_path / "elsewhere")
    (tmp_path / "settings.toml").write_text(f'[models]\nfolder = "{tmp_path}/elsewhere"\n')
    monkeypatch.chdir(tmp_path)

    def shown(**more: str) -> list[str]:
        ran = envctl("requirements", "show", "-m", "folder", "--json", **more)
        return [one["model"] for one in json.loads(ran.stdout)]

    assert shown() == [f"{tmp_path}/folder/one"]
    assert shown(ENVD_CONFIG=f"{tmp_path}/settings.toml") == [f"{tmp_path}/elsewhere"]


def test_names_that_no_model_has_are_usage(tmp_path: Path, envctl: Called) -> None:
    (tmp_path / "empty").mkdir()

    assert envctl("requirements", "show", "-m", tmp_path / "empty").returncode == 2
    assert envctl("requirements", "show", "-m", "unknown").returncode == 1
    assert envctl("requirements", "add", "-m", "s3://a/b", "six").returncode == 2
    assert envctl("requirements", "add", "-m", tmp_path).returncode == 2


@pytest.mark.parametrize("name", [one.name for one in MODELS.iterdir() if one.is_dir()])
def test_models_of_all_versions_of_mlflow_are_edited(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(MODELS / name, folder)
    flavors = text(folder, "MLmodel")

    edit(folder, "beautifulsoup4==4.12.3")
    edit(folder, remove=("BeautifulSoup4",))

    assert pip(folder) == pip(MODELS / name)
    assert text(folder, "MLmodel") == flavors
