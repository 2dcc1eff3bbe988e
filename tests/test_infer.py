"""What a model needs is found by what it loads, who asks for that, and what it can do without."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from envd import config, infer
from envd import model as models
from envd.build import Interpreters
from envd.errors import EnvdError, RequestInvalidError
from envd.infer import Inferred
from envd.infer.observing import Given, Observer, python_of
from tests.called import Called
from tests.conftest import environment
from tests.unpacked import Site

_LOADER = """\
{head}


class Model:
    def predict(self, data):
{body}


def _load_pyfunc(path):
    return Model()
"""


@pytest.fixture
def site(tmp_path: Path, bare_python: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Packages for the Python of the shell, which has no others."""
    found = Site(tmp_path / "site-packages")
    found.folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(found.folder))
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    monkeypatch.setenv("VIRTUAL_ENV", str(bare_python.parents[1]))
    return found


def model(tmp_path: Path, body: str = "return data", head: str = "") -> Path:
    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    (folder / "code" / "its_loader.py").write_text(_LOADER.format(head=head, body=lines))
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: its_loader\n    code: code\n"
    )
    return folder


def inferred(folder: Path, python: str = "", payload: str = '{"inputs": [1]}') -> Inferred:
    given = Given(payload.encode()) if payload else None
    return infer.infer(Observer(models.read(folder), given, python_of(python or None)))


def lines(found: Inferred) -> list[str]:
    return list(found.requirements)


def test_what_the_code_imports_is_pinned_and_what_that_requires_is_not(
    site: Site, tmp_path: Path
) -> None:
    site.add("Deep_Lib", {"deep.py": ""}, version="0.3")
    site.add("used-lib", {"used.py": "import deep\n"}, "deep-lib>=0.1", version="2.1.post1")
    site.add("other-lib", {"other.py": ""})

    found = inferred(model(tmp_path, "import used\nreturn data"))

    assert lines(found) == ["used-lib==2.1.post1"]
    assert found.lines[0].why == "imported by its_loader"


def test_what_is_imported_of_the_required_is_pinned_too_and_who_holds_it_is_said(
    site: Site, tmp_path: Path
) -> None:
    site.add("deep-lib", {"deep.py": ""}, version="0.3")
    site.add("used-lib", {"used.py": "import deep\n"}, "deep-lib>=0.1")

    found = inferred(model(tmp_path, "import deep, used\nreturn data"))

    assert {one.text: one.held_by for one in found.lines} == {
        "used-lib==1.0": (),
        "deep-lib==0.3": ("used-lib",),
    }


def test_what_a_library_can_do_without_is_not_asked_for_and_what_it_cannot_is(
    site: Site, tmp_path: Path
) -> None:
    text = "try:\n    import faster\nexcept ImportError:\n    pass\nimport undeclared\n"
    site.add("used-lib", {"used.py": text})
    site.add("faster-lib", {"faster.py": ""})
    site.add("undeclared-lib", {"undeclared.py": "import below\n"}, "below-lib")
    site.add("below-lib", {"below.py": ""})

    found = inferred(model(tmp_path, "import used\nreturn data"))

    assert lines(found) == ["undeclared-lib==1.0", "used-lib==1.0"]
    assert found.without == ("faster-lib",)


def test_a_library_that_changes_the_answer_is_needed(site: Site, tmp_path: Path) -> None:
    finds = "import importlib.util\nHAS = importlib.util.find_spec('faster') is not None\n"
    site.add("used-lib", {"used.py": finds + "if HAS:\n    import faster\n"})
    site.add("faster-lib", {"faster.py": ""})

    found = inferred(model(tmp_path, "import used\nreturn used.HAS"))

    assert lines(found) == ["faster-lib==1.0", "used-lib==1.0"]


@pytest.mark.slow
def test_of_a_model_that_draws_lots_only_what_it_fails_without_is_needed(
    site: Site, tmp_path: Path
) -> None:
    text = "try:\n    import faster\nexcept ImportError:\n    pass\nimport undeclared\n"
    site.add("used-lib", {"used.py": text})
    site.add("faster-lib", {"faster.py": ""})
    site.add("undeclared-lib", {"undeclared.py": ""})

    found = inferred(model(tmp_path, "import random, used\nreturn random.random()"))

    assert lines(found) == ["undeclared-lib==1.0", "used-lib==1.0"]
    assert [one.code for one in found.notes] == ["ANSWERS_DIFFER"]


def test_of_a_namespace_that_several_share_only_what_is_loaded_counts(
    site: Site, tmp_path: Path
) -> None:
    site.add("shared-one", {"shared/one/__init__.py": "", "shared/one/core.py": ""})
    site.add("shared-two", {"shared/two.py": ""})

    found = inferred(model(tmp_path, "from shared.one import core\nreturn data"))

    assert lines(found) == ["shared-one==1.0"]


def test_an_extra_is_found_where_all_of_it_is_installed_and_the_library_loads_it(
    site: Site, tmp_path: Path
) -> None:
    text = "def table():\n    import tables\n    return tables.TEXT\n"
    requires = (
        'tables-lib>=1; extra == "tables"', 'absent-lib; extra == "all"',
        'tables-lib; extra == "all"', 'other-lib; extra == "other"',
    )  # fmt: skip
    extras = ("all", "other", "tables")
    site.add("used-lib", {"used.py": text}, *requires, extras=extras)
    site.add("tables-lib", {"tables.py": "TEXT = 'table'\n"})
    site.add("other-lib", {"other.py": ""})

    found = inferred(model(tmp_path, "import used\nreturn used.table()"))

    assert lines(found) == ["used-lib[tables]==1.0"]


def test_an_extra_of_which_a_part_is_not_installed_is_none(site: Site, tmp_path: Path) -> None:
    requires = ('tables-lib; extra == "all"', 'absent-lib; extra == "all"')
    site.add("used-lib", {"used.py": "import tables\n"}, *requires, extras=("all",))
    site.add("tables-lib", {"tables.py": ""})

    found = inferred(model(tmp_path, "import used\nreturn data"))

    assert lines(found) == ["tables-lib==1.0", "used-lib==1.0"]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ((), ["tables-lib==1.0", "used-lib==1.0"]),
        (("other-lib",), ["between-lib[tables]==1.0", "used-lib==1.0"]),
    ],
)
def test_an_extra_of_what_the_model_does_not_know_has_to_have_brought_several(
    site: Site, tmp_path: Path, others: tuple[str, ...], expected: list[str]
) -> None:
    site.add("used-lib", {"used.py": "import between\n"}, "between-lib")
    requires = [f'{one}; extra == "tables"' for one in ("tables-lib", *others)]
    site.add("between-lib", {"between.py": "import tables\n"}, *requires, extras=("tables",))
    site.add("tables-lib", {"tables.py": ""})
    site.add("other-lib", {"other.py": ""})

    found = inferred(model(tmp_path, "import used\nreturn data"))

    assert lines(found) == expected


@pytest.mark.parametrize("last", ["gpu-lib", "cpu-lib"])
def test_of_two_distributions_that_bring_a_module_it_is_whose_file_was_loaded(
    site: Site, tmp_path: Path, last: str
) -> None:
    first = ({"gpu-lib", "cpu-lib"} - {last}).pop()
    for name in (first, last):
        native = f"KIND = {name!r}\n"
        site.add(name, {"lib/__init__.py": "from lib import core\n", "lib/core.py": native})

    found = inferred(model(tmp_path, "import lib\nreturn lib.core.KIND"))

    assert lines(found) == [f"{last}==1.0"]


def test_of_two_with_the_same_files_it_is_who_needs_the_other(site: Site, tmp_path: Path) -> None:
    for name, requires in (("whole", ["part==1.0"]), ("part", [])):
        site.add(name, {"lib.py": ""}, *requires)

    found = inferred(model(tmp_path, "import lib\nreturn data"))

    assert lines(found) == ["whole==1.0"]


def test_what_is_worked_on_is_reported_and_counts_as_code_of_the_model(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "mine").mkdir(parents=True)
    (project / "mine" / "__init__.py").write_text("import deep\n")
    origin = {"url": project.as_uri(), "dir_info": {"editable": True}}
    site.add("my-project", {}, "deep-lib", "unused-lib", origin=origin)
    site.add("deep-lib", {"deep.py": ""})
    monkeypatch.setenv("PYTHONPATH", f"{site.folder}{os.pathsep}{project}")

    found = inferred(model(tmp_path, "import mine\nreturn data"))

    assert lines(found) == ["deep-lib==1.0"]
    assert [(one.name, one.path, one.modules) for one in found.local] == [
        ("my-project", str(project), ("mine",))
    ]
    assert "no index's" in found.notes[0].message


def test_an_egg_that_is_worked_on_is_found_by_its_link(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "old.egg-info").mkdir(parents=True)
    (project / "old.egg-info" / "PKG-INFO").write_text("Name: old\nVersion: 0.1\n")
    (project / "old.egg-info" / "requires.txt").write_text("deep-lib\n\n[more]\nmore-lib\n")
    (project / "old.py").write_text("")
    (site.folder / "old.egg-link").write_text(f"{project}\n.")
    monkeypatch.setenv("PYTHONPATH", f"{site.folder}{os.pathsep}{project}")

    found = inferred(model(tmp_path, "import old\nreturn data"))

    assert lines(found) == []
    assert [(one.name, one.path) for one in found.local] == [("old", str(project))]


def test_code_that_is_nobodys_is_reported(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "helping.py").write_text("import deep\n")
    site.add("deep-lib", {"deep.py": ""})
    monkeypatch.setenv("PYTHONPATH", f"{site.folder}{os.pathsep}{tmp_path / 'mine'}")

    found = inferred(model(tmp_path, "import helping\nreturn data"))

    assert found.modules == (("helping", str(tmp_path / "mine" / "helping.py")),)
    assert lines(found) == ["deep-lib==1.0"]


COMMIT = "0123456789abcdef0123456789abcdef01234567"
ORIGINS = {
    "an index": ("1.0", None, "pip", "lib==1.0", ""),
    "a build of its own": ("1.0+mine", None, "pip", "lib==1.0", "LOCAL_VERSION"),
    "a repository": (
        "1.0",
        {"url": "https://u:p@a.test/lib", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
        "pip",
        f"lib @ https://a.test/lib@{COMMIT}",
        "FROM_URL",
    ),
    "a URL": (
        "1.0",
        {"url": "https://a.test/lib-1.0.zip", "archive_info": {}},
        "pip",
        "lib @ https://a.test/lib-1.0.zip",
        "FROM_URL",
    ),
    "a file": (
        "1.0",
        {"url": "file:///tmp/lib-1.0-py3-none-any.whl", "archive_info": {}},
        "pip",
        "lib==1.0",
        "FROM_FILE",
    ),
    "conda": ("1.0", {"url": "file:///feedstock/work", "dir_info": {}}, "conda", "lib==1.0", ""),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_pin_says_where_it_comes_from(site: Site, tmp_path: Path, origin: str) -> None:
    version, given, installer, line, code = ORIGINS[origin]
    site.add("lib", {"lib.py": ""}, version=version, origin=given, installer=installer)

    found = inferred(model(tmp_path, "import lib\nreturn data"))

    assert lines(found) == [line.replace("@ https", "@ git+https") if COMMIT in line else line]
    assert [one.code for one in found.notes] == ([code] if code else [])


def test_a_build_of_pytorch_is_asked_for_where_it_is(site: Site, tmp_path: Path) -> None:
    site.add("torch", {"torch.py": ""}, version="2.1.0+cpu")

    found = inferred(model(tmp_path, "import torch\nreturn data"))

    assert lines(found) == [
        "--extra-index-url https://download.pytorch.org/whl/cpu",
        "torch==2.1.0+cpu",
    ]


@pytest.mark.parametrize("minor", [6, 7, 13])
def test_what_a_pickle_refers_to_is_of_the_model_by_whatever_python(
    site: Site, tmp_path: Path, minor: int
) -> None:
    found = Interpreters(config.load(root=tmp_path / "root", environ={})).found()
    pythons = [one.path for one in found if one.python.minor == f"3.{minor}"]
    if not pythons:
        pytest.skip(f"there is no Python 3.{minor}")
    site.add("deep-lib", {"deep.py": "class Deep:\n    pass\n"})
    site.add("used-lib", {"used.py": "import deep\n"}, "deep-lib")
    folder = model(tmp_path, head="import pickle, used", body="return data")
    loads = "    with open(path + '/model.pkl', 'rb') as file:\n        pickle.load(file)\n"
    loader = folder / "code" / "its_loader.py"
    loader.write_text(
        loader.read_text().replace("    return Model()", loads + "    return Model()")
    )
    (folder / "model.pkl").write_bytes(b"\x80\x03cdeep\nDeep\n)\x81.")

    done = inferred(folder, str(pythons[0]))

    assert lines(done) == ["deep-lib==1.0", "used-lib==1.0"]
    assert done.lines[0].why == "imported by its pickle"
    assert done.python.startswith(f"3.{minor}.")


def test_a_model_that_was_not_asked_is_said_to_be_half_seen(site: Site, tmp_path: Path) -> None:
    site.add("used-lib", {"used.py": ""})

    found = inferred(model(tmp_path, "import used\nreturn data"), payload="")

    assert lines(found) == []
    assert [one.code for one in found.notes] == ["NOT_ASKED"]


@pytest.mark.usefixtures("site")
def test_a_model_that_does_not_work_where_it_was_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EnvdError, match="No module named 'nowhere'"):
        inferred(model(tmp_path, "import nowhere"))


def test_the_python_is_the_one_given_or_that_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    monkeypatch.setenv("PATH", "")

    assert python_of(None) == tmp_path / "bin" / "python"
    assert python_of(sys.executable) == Path(sys.executable)
    with pytest.raises(RequestInvalidError, match="there is no Python `python4`"):
        python_of("python4")


@pytest.fixture
def envctl(tmp_path: Path, home: Path, site: Site) -> Called:
    assert os.environ["PYTHONPATH"] == str(site.folder)
    names = ("PYTHONPATH", "PYTHONNOUSERSITE", "VIRTUAL_ENV")
    variables = {name: os.environ[name] for name in names}
    return Called(tmp_path / "root", environment(tmp_path / "root", home, **variables))


def test_the_command_prints_lines_and_writes_them_into_the_model(
    envctl: Called, site: Site, tmp_path: Path
) -> None:
    site.add("used-lib", {"used.py": "import deep\n"}, "deep-lib")
    site.add("deep-lib", {"deep.py": ""})
    folder = model(tmp_path, "import used\nreturn data")
    (folder / "requirements.txt").write_text("mlflow==2.9.2\nUsed_Lib==0.9  # old\nunused\n")
    (tmp_path / "input.json").write_text('{"inputs": [1]}')
    asked = ("requirements", "infer", "-m", folder)

    refused = envctl(*asked, "--write")
    done = envctl(*asked, "-i", tmp_path / "input.json", "--write", "--json")

    assert refused.returncode == 2
    assert "give -i" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lines"] == [
        {
            "text": "used-lib==1.0",
            "name": "used-lib",
            "why": "imported by its_loader",
            "held_by": [],
        }
    ]
    assert (folder / "requirements.txt").read_text() == "mlflow==2.9.2\nused-lib==1.0  # old\n"


def test_the_command_prints_what_a_requirement_file_holds(
    envctl: Called, site: Site, tmp_path: Path
) -> None:
    site.add("used-lib", {"used.py": ""})
    folder = model(tmp_path, "import used\nreturn data")
    (tmp_path / "rows.csv").write_text("a\n1\n")

    asked = envctl("requirements", "infer", "-m", folder, "-i", "-", stdin='{"inputs": [1]}')
    done = envctl("requirements", "infer", "-m", folder)
    wrong = envctl("requirements", "infer", "-m", folder, "-i", "nowhere")

    assert (asked.stdout, asked.returncode) == ("used-lib==1.0\n", 0), asked.stderr
    assert done.stdout == ""
    assert "it has no example of an input" in done.stderr
    assert wrong.returncode == 2


def test_a_python_that_lacks_what_the_model_imports_is_named(
    envctl: Called, tmp_path: Path
) -> None:
    ran = envctl("requirements", "infer", "-m", model(tmp_path, head="import nowhere"))

    assert ran.returncode == 1
    python = Path(os.environ["VIRTUAL_ENV"]) / "bin" / "python"
    assert f"`{python}` does not have what the model was made with" in ran.stderr
    assert "--python" in ran.stderr
