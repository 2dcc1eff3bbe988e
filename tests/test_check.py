"""`envctl check`: models that are broken in one way each, made of wheels of a few bytes."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from envd.mend import code, installed, made_up, report
from envd.mend.fixing import _exact
from envd.model import read
from tests.conftest import Envctl, environment, launch, stop
from tests.house import PURE, wheel_file
from tests.tiny import ECHO, Tiny, sdist, wheel

ASKS = '{"inputs": [1, 2]}'


@dataclass(frozen=True)
class Bench:
    """envctl over wheels that are called as real distributions, and models for it."""

    envctl: Envctl
    tiny: Tiny
    folder: Path

    def model(self, name: str, body: str = ECHO, *, top: str = "", example: str = ASKS) -> Path:
        """Write a model whose `predict` runs *body* and whose module begins with *top*."""
        path = self.tiny.model(self.folder / name, body=body)
        code = path / "code" / "tiny_loader.py"
        code.write_text(f"{top}\n{code.read_text()}")
        if example:
            with (path / "MLmodel").open("a") as file:
                file.write("saved_input_example_info:\n  artifact_path: example.json\n")
            (path / "example.json").write_text(example)
        return path

    def check(self, model: Path, *options: object, **changed: str) -> dict[str, object]:
        """Check a model, and see that the status is that of the verdict."""
        ran = self.envctl("check", "-m", model, "--json", *options, **changed)
        found: dict[str, object] = json.loads(ran.stdout)
        assert ran.returncode == {"ok": 0, "trouble": 1, "unchecked": 4}[str(found["verdict"])]
        return found


def made(folder: Path, home: Path) -> Bench:
    tiny = Tiny.make(folder)
    wheel(tiny.wheels, "beautifulsoup4", "4.0", bs4="VERSION = 'soup'\n")
    wheel(tiny.wheels, "PyYAML", "6.0", yaml="VERSION = 'yaml'\n")
    wheel(tiny.wheels, "my-lib", "1.0", obscure="VERSION = 'mine'\n")
    wheel(tiny.wheels, "obscure", "1.0", obscure="raise SystemExit('the wrong one')\n")
    wheel(tiny.wheels, "odd", "1.0", odd="import unheard_of\n")
    wheel(tiny.wheels, "jinja2", "3.1", jinja2="")
    wheel(tiny.wheels, "jinja2", "3.0", jinja2="escape = str\n")
    root = folder / "root"
    return Bench(Envctl(root, environment(root, home, **tiny.settings)), tiny, folder / "models")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Bench:
    return made(tmp_path_factory.mktemp("alone"), home)


@pytest.fixture
def bench_of_a_daemon(tmp_path: Path, home: Path) -> Iterator[Bench]:
    found = made(tmp_path, home)
    daemon = launch(found.envctl.root, home, **found.tiny.settings)
    yield found
    stop(daemon)


def codes(found: dict[str, object]) -> list[tuple[str, str]]:
    findings = found["findings"]
    assert isinstance(findings, list)
    return [(one["code"], one["subject"]) for one in findings]


def states(found: dict[str, object]) -> dict[str, str]:
    steps = found["steps"]
    assert isinstance(steps, list)
    return {one["name"]: one["state"] for one in steps}


def test_a_model_that_does_what_it_should_is_well(bench: Bench) -> None:
    path = bench.model("well")
    (path / "output_example.json").write_text('{"predictions": ["2.0", [1, 2.0000000001]]}')

    found = bench.check(path)

    assert found["verdict"] == "ok"
    assert states(found) == dict.fromkeys(
        ("environment", "dependencies", "code", "load", "predict", "answer"), "ok"
    )
    assert found["answer"] == {"predictions": ["2.0", [1, 2]]}


RAISES = "        raise {}"
# Each model, by its predict and by what stands at the top of its module, and what is found.
BROKEN = {
    "a module at prediction": ("        import bs4", "", "MODULE_MISSING", "bs4"),
    "a module at loading": (ECHO, "import yaml", "MODULE_MISSING", "yaml"),
    "a module nobody knows": ("        import obscure", "", "CODE_MISSING", "obscure"),
    "a module of several": ("        import pdfminer", "", "MODULE_MISSING", "pdfminer"),
    "its own module": (ECHO, "import my_features", "CODE_MISSING", "my_features"),
    "an older module": (
        "        from jinja2 import escape", "import jinja2", "VERSION_DIFFERS", "jinja2"
    ),
    "other syntax": (ECHO, "print 'two'", "PYTHON_DIFFERS", "tiny_loader.py"),
    "a module of another Python": (ECHO, "import _bootlocale", "PYTHON_DIFFERS", "_bootlocale"),
    "a library": (
        "        import ctypes; ctypes.CDLL('libzbar.so.99')",
        "", "LIBRARY_MISSING", "libzbar.so.99",
    ),
    "a GPU": (
        "        import ctypes; ctypes.CDLL('libcudart.so.99')",
        "", "GPU_MISSING", "libcudart.so.99",
    ),
    "a file": ("        open('/nothing/train.csv')", "", "FILE_MISSING", "/nothing/train.csv"),
    "a variable": ("        import os; os.environ['MY_TOKEN']", "", "VARIABLE_MISSING", "MY_TOKEN"),
    "what a package imports": (
        "        import odd", "", "MODULE_MISSING", "unheard_of"
    ),
    "itself": (RAISES.format("ValueError('no')"), "", "MODEL_FAILS", "ValueError"),
    "a worker that dies": ("        import os; os.kill(os.getpid(), 9)", "", "MODEL_FAILS", ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "top", "code", "subject"), BROKEN.values(), ids=BROKEN)
def test_what_a_model_lacks_is_named(
    bench: Bench, request: pytest.FixtureRequest, body: str, top: str, code: str, subject: str
) -> None:
    path = bench.model(request.node.name, body, top=top)
    (path / "requirements.txt").write_text("tiny-a\njinja2==3.1\nodd\n")

    found = bench.check(path)

    assert found["verdict"] == "trouble"
    ((one_code, one_subject),) = codes(found)
    assert one_code == code
    assert one_subject.endswith(subject)


def test_what_it_was_pickled_with_is_missing(bench: Bench) -> None:
    loads = "import pathlib, pickle\nHERE = pathlib.Path(__file__).parent.parent / 'model.pkl'"
    path = bench.model("pickled", "        pickle.loads(HERE.read_bytes())", top=loads)
    code = (path / "code" / "tiny_loader.py").read_text()
    (path / "code" / "tiny_loader.py").write_text(
        code.replace(
            "    return Model()", "    pickle.loads(HERE.read_bytes())\n    return Model()"
        )
    )
    (path / "model.pkl").write_bytes(
        pickle.dumps(Bench).replace(b"tests.test_check", b"their_own_module"[:16])
    )

    found = bench.check(path)

    assert codes(found) == [("CODE_MISSING", "their_own_module")]


def test_a_loader_that_is_not_there_is_code_that_is_missing(bench: Bench) -> None:
    path = bench.model("loaderless")
    mlmodel = (path / "MLmodel").read_text().replace("tiny_loader", "their_loader")
    (path / "MLmodel").write_text(mlmodel)

    assert codes(bench.check(path)) == [("CODE_MISSING", "their_loader")]


def test_what_cannot_be_resolved_is_trouble_and_an_index_that_is_away_is_not(
    bench: Bench, tmp_path: Path
) -> None:
    path = bench.model("unresolved")
    (path / "requirements.txt").write_text("tiny-a==7\n")

    found = bench.check(path)

    assert (found["verdict"], codes(found)[0][0]) == ("trouble", "SOLVE_FAILED")
    missing = bench.check(tmp_path / "nowhere")
    assert (missing["verdict"], codes(missing)) == ("unchecked", [("MODEL_NOT_FOUND", "")])
    (path / "MLmodel").write_text("flavors: {}")
    broken = bench.check(path)
    assert (broken["verdict"], codes(broken)) == ("trouble", [("MODEL_INVALID", "")])


@pytest.mark.slow
def test_a_lock_of_packages_that_do_not_fit_together_is_trouble(bench: Bench) -> None:
    wheels = [
        wheel_file(bench.tiny.wheels, "needy", "1.0", PURE, "tiny-a<2; python_version>'3'"),
        bench.tiny.wheels / "tiny_a-2.0-py3-none-any.whl",
    ]
    path = bench.model("conflicting")
    (path / "requirements.txt").write_text("tiny-a\nneedy\n")
    lock = ["lock-version = '1.0'"]
    for name, version, file in (("needy", "1.0", wheels[0]), ("tiny-a", "2.0", wheels[1])):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lock.append(
            f"[[packages]]\nname = '{name}'\nversion = '{version}'\n[[packages.wheels]]\n"
            f"url = '{file.as_uri()}'\nhashes = {{sha256 = '{digest}'}}"
        )
    (path / "pylock.toml").write_text("\n".join(lock))

    found = bench.check(path)

    assert (found["verdict"], codes(found)) == ("trouble", [("DEPENDENCY_CONFLICT", "needy")])
    assert states(found) == {
        "environment": "ok", "dependencies": "trouble", "code": "ok", "load": "ok",
        "predict": "ok", "answer": "skipped",
    }  # fmt: skip


def test_an_input_and_an_answer_may_be_given(bench: Bench, tmp_path: Path) -> None:
    path = bench.model("asked", example="")
    (tmp_path / "in.json").write_text(ASKS)
    (tmp_path / "bad.json").write_text('{"nothing": []}')
    (tmp_path / "out.json").write_text('{"predictions": ["2.0", [1, 3]]}')

    assert bench.check(path)["verdict"] == "unchecked"
    loaded = bench.check(path, "--only-load")
    assert (loaded["verdict"], states(loaded)["predict"]) == ("ok", "skipped")
    assert bench.check(path, "-i", tmp_path / "in.json")["verdict"] == "ok"
    refused = bench.check(path, "-i", tmp_path / "bad.json")
    assert codes(refused) == [("INPUT_REFUSED", "")]
    other = bench.check(path, "-i", tmp_path / "in.json", "--expect", tmp_path / "out.json")
    assert codes(other) == [("ANSWER_DIFFERS", "")]


def signed(path: Path, *columns: dict[str, object]) -> Path:
    """Give a model a signature with *columns*."""
    with (path / "MLmodel").open("a") as file:
        file.write(f"signature: {{inputs: '{json.dumps(columns)}'}}\n")
    return path


def test_a_model_without_an_example_is_asked_what_its_signature_says(bench: Bench) -> None:
    column = {"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1, 2]}}
    well = signed(bench.model("signed", example=""), column)
    lacking = signed(bench.model("lacking", "        import bs4", example=""), column)
    picky = signed(bench.model("picky", RAISES.format("ValueError(data)"), example=""), column)

    assert bench.check(well)["answer"] == {"predictions": ["2.0", [[1, 1]]]}
    assert codes(bench.check(lacking)) == [("MODULE_MISSING", "bs4")]
    # That may be the input's fault.
    assert (bench.check(picky)["verdict"], codes(bench.check(picky))) == ("unchecked", [])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            [{"name": "x", "type": "double"}, {"name": "s", "type": "string", "required": False}],
            {"dataframe_split": {"columns": ["x", "s"], "data": [[1.0, "a"]]}},
        ),
        (
            [{"name": "t", "type": "tensor", "tensor-spec": {"dtype": "bool", "shape": [-1]}}],
            {"inputs": {"t": [True]}},
        ),
        ([{"type": "array", "items": {"type": "long", "required": True}}], {"inputs": [[1]]}),
        ([{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [math.inf]}}], None),
        (
            [{"name": "o", "type": "object", "properties": {"a": {"type": "boolean"}}}],
            {"dataframe_split": {"columns": ["o"], "data": [[{"a": True}]]}},
        ),
        ([{"type": "tensor", "tensor-spec": {"dtype": "f", "shape": [9999, 9999]}}], None),
        ([{"type": "unheard"}], None),
        ([{"type": "double"}, {"type": "double"}], None),
        ([], None),
        ([{"type": "array", "items": 1}], None),
        ([{"type": "tensor"}], None),
    ],
)
def test_an_input_is_made_up_by_the_signature(
    tmp_path: Path, tiny: Tiny, columns: list[dict[str, object]], expected: object
) -> None:
    path = signed(tiny.model(tmp_path / "m"), *columns)

    found = made_up.payload(read(path))

    assert (None if found is None else json.loads(found)) == expected


@pytest.mark.parametrize("source", ["-" * 200_000 + "1", "(" * 100_000, "a\0", "print 'two'"])
def test_code_that_cannot_be_read_is_left_to_whoever_loads_it(
    tmp_path: Path, tiny: Tiny, source: str
) -> None:
    path = tiny.model(tmp_path / "m")
    (path / "code" / "odd.py").write_text(f"import unheard_of\n{source}")
    (path / "code" / "plain.py").write_text("import bs4\n")

    found = list(code.missing(read(path), Path(sys.prefix)))

    assert [one.module for one in found if one.file != "code/tiny_loader.py"] == ["bs4"]


def test_fix_puts_there_what_is_known_until_the_model_predicts(bench: Bench) -> None:
    body = "        import bs4\n        return [bs4.VERSION, yaml.VERSION]"
    path = bench.model("two", body, top="import yaml")
    before = {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}

    found = bench.check(path, "--fix")

    assert found["verdict"] == "ok"
    assert found["answer"] == {"predictions": ["soup", "yaml"]}
    assert found["added"] == ["PyYAML==6.0", "beautifulsoup4==4.0"]
    assert {one: one.read_bytes() for one in before} == before
    shown = bench.envctl("check", "-m", path, "--fix")
    assert shown.stdout.endswith('{"predictions": ["soup", "yaml"]}\n')
    assert f"envctl requirements add -m {path} PyYAML==6.0 beautifulsoup4==4.0" in shown.stderr
    assert 'extra_pip_requirements=["PyYAML==6.0", "beautifulsoup4==4.0"]' in shown.stderr
    override = "--pip-requirements-override PyYAML==6.0"
    assert f"envctl predict -m {path} {override}" in shown.stderr


def test_what_fix_finds_is_written_where_that_is_asked_for(bench: Bench) -> None:
    path = bench.model("written", "        import bs4\n        return bs4.VERSION")

    found = bench.check(path, "--fix", "--write")

    assert found["written"] == ["requirements.txt"]
    assert (path / "requirements.txt").read_text() == "tiny-a\nbeautifulsoup4==4.0"
    assert (path / "requirements.txt.orig").read_text() == "tiny-a"
    assert bench.check(path)["verdict"] == "ok"


@pytest.mark.slow
def test_a_daemon_is_asked_where_one_runs(bench_of_a_daemon: Bench) -> None:
    bench = bench_of_a_daemon
    path = bench.model("asked", "        import bs4\n        return bs4.VERSION", example="")
    (path / "in.json").write_text(ASKS)

    assert bench.check(path, "--only-load")["verdict"] == "ok"
    assert codes(bench.check(path, "-i", path / "in.json")) == [("MODULE_MISSING", "bs4")]
    found = bench.check(path, "-i", path / "in.json", "--fix", "--write")
    assert found["answer"] == {"predictions": "soup"}
    assert bench.check(path, "-i", path / "in.json")["verdict"] == "ok"


def test_nothing_is_installed_because_of_its_name(bench: Bench) -> None:
    path = bench.model("named", "        import obscure\n        return obscure.VERSION")

    found = bench.check(path, "--fix")
    wrong = bench.check(path, "--fix", "--yes", "tiny-b")
    absent = bench.envctl("check", "-m", path, "--fix", "--yes", "absent")
    right = bench.check(path, "--fix", "--yes", "my-lib")

    assert (found["verdict"], found["added"]) == ("trouble", [])
    # The index has one of that name, which nobody has said is meant.
    assert found["findings"][0]["candidates"] == ["obscure"]  # type: ignore[index]
    assert (wrong["verdict"], codes(wrong)) == ("trouble", [("CODE_MISSING", "obscure")])
    # What does not help is not recommended.
    assert wrong["added"] == wrong["because"] == []
    assert "trying with `absent`" in absent.stderr
    assert "helped" not in absent.stderr
    assert (right["verdict"], right["added"]) == ("ok", ["my-lib==1.0"])
    # It is there now for others to see, and is not taken all the same.
    again = bench.envctl("check", "-m", path, "--fix")
    assert again.returncode == 1
    assert "trying with" not in again.stderr
    assert "`obscure` may come from my-lib: see whose that is" in again.stderr


def test_nothing_is_built_to_see_what_it_brings(bench: Bench, tmp_path: Path) -> None:
    sdist(bench.tiny.wheels, "sourced", "1.0", f"open({str(tmp_path / 'built')!r}, 'w')")
    path = bench.model("sourced", "        import sourced")

    found = bench.check(path, "--fix")

    assert found["findings"][0]["candidates"] == []  # type: ignore[index]
    assert not (tmp_path / "built").exists()


@pytest.mark.slow
def test_what_a_newer_version_has_no_more_is_had_by_an_older(bench: Bench) -> None:
    path = bench.model("older", "        from jinja2 import escape\n        return escape(1)")
    (path / "requirements.txt").write_text("tiny-a\njinja2==3.1\n")

    found = bench.check(path, "--fix", "--write")

    assert (found["verdict"], found["added"]) == ("ok", ["jinja2==3.0"])
    assert (path / "requirements.txt").read_text() == "tiny-a\njinja2==3.0\n"


def test_what_cannot_be_written_is_shown_all_the_same(bench: Bench) -> None:
    path = bench.model("unwritable", "        import bs4\n        return bs4.VERSION")
    (path / ".envd-changes.json").write_text("somebody else's")

    shown = bench.envctl("check", "-m", path, "--fix", "--write")

    assert shown.returncode == 1
    assert f"envctl requirements add -m {path} beautifulsoup4==4.0" in shown.stderr
    assert shown.stdout.endswith('{"predictions": "soup"}\n')
    assert "it was not written: " in shown.stderr
    assert "is not what envd wrote; remove it" in shown.stderr


def test_a_dead_end_is_shown_with_what_helped_so_far(bench: Bench) -> None:
    body = "        import bs4\n        raise ValueError(bs4.VERSION)"
    path = bench.model("dead", body)

    shown = bench.envctl("check", "-m", path, "--fix", "--write")

    assert shown.returncode == 1
    assert "this helped, and not enough" in shown.stderr
    assert "the model raised ValueError: soup" in shown.stdout
    assert not (path / "requirements.txt.orig").exists()


@pytest.mark.parametrize(
    "options",
    [["--write"], ["--yes", "six"], ["-i", "x", "--only-load"], ["--expect", "nothing"],
     ["--fix", "--yes", "six=1"], ["--fix", "--pip-requirements-override", "six=1"]],
)  # fmt: skip
def test_options_that_do_not_go_together_are_usage(bench: Bench, options: list[str]) -> None:
    path = bench.folder / "usage"
    if not path.exists():
        bench.model("usage")

    assert bench.envctl("check", "-m", path, *options).returncode == 2


def test_an_input_that_is_not_json_is_no_fault_of_the_model(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"inputs": [1')

    ran = bench.envctl("check", "-m", bench.model("unasked"), "-i", tmp_path / "in.json")

    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"the input `{tmp_path / 'in.json'}` is not JSON: " in ran.stderr
    # Nobody has to wait for a build to hear it.
    assert "installing" not in ran.stderr


# What is installed.


def site(folder: Path, **requires: list[str]) -> dict[str, installed.Distribution]:
    """Write distributions, `NAME_VERSION`, and read them back."""
    for key, needs in requires.items():
        name, _, version = key.partition("_")
        info = folder / "lib/python3.11/site-packages" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Name: {name}", f"Version: {version.replace('_', '.')}"]
        lines += [f"Requires-Dist: {one}" for one in needs]
        (info / "METADATA").write_text("\n".join(lines) + "\n\nRequires-Dist: not-this\n")
    return installed.read(folder)


def test_what_does_not_fit_together_is_found(tmp_path: Path) -> None:
    found = site(
        tmp_path,
        a_1=["b>=2", 'gone; python_version<"3"', "c", 'd; extra == "x"', "a b c"],
        b_1=[],
        Web_1=["a[x]>=1"],
    )

    conflicts = list(installed.conflicts(found, "3.11.7"))

    assert [one.message for one in conflicts] == [
        "a 1 needs `b>=2`, and b 1 is installed",
        "a 1 needs `c`, and it is not installed",
        'a 1 needs `d; extra == "x"`, and it is not installed',
    ]


def test_extras_that_the_model_asks_for_count(tmp_path: Path) -> None:
    found = site(tmp_path, a_1=['b; extra == "x"'])

    assert list(installed.conflicts(found, "3.11.7")) == []
    assert len(list(installed.conflicts(found, "3.11.7", ["a[x]==1"]))) == 1


def test_pip_check_says_the_same_of_this_environment() -> None:
    found = list(installed.conflicts(installed.read(Path(sys.prefix)), sys.version.split()[0]))
    ran = subprocess.run(
        [f"{sys.prefix}/bin/uv", "pip", "check", "--python", sys.executable],
        capture_output=True, check=False,
    )  # fmt: skip

    assert (ran.returncode == 0) == (found == [])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, {"a": None}], [1.00000001, {"a": None}], True),
        ([1.0], [1.001], False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1], [1, 2], False),
        (True, 1, True),
        ("a", "b", False),
    ],
)
def test_answers_are_the_same_but_for_the_last_digits(
    one: object, other: object, *, expected: bool
) -> None:
    assert report.is_same(one, other) is expected


def test_what_is_put_there_is_pinned_with_its_extras() -> None:
    assert _exact("uvicorn[standard]<1", "0.30.0") == "uvicorn[standard]==0.30.0"
    assert _exact("six", "") == "six"
    assert _exact("mine @ https://host/mine.whl", "1.0") == "mine @ https://host/mine.whl"
