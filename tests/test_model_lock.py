"""Locks that lie in models: what is taken from them, and what is refused."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envd import config
from envd.errors import EnvdError, ModelInvalidError, PolicyDeniedError
from envd.model import read as read_model
from envd.settings.sections import Index, Security
from envd.spec import model_lock, policy, requirement_file
from envd.spec import read as read_spec
from envd.spec.dependencies import Dependencies
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.python import Python
from envd.spec.requirement import Requirement
from envd.spec.spec import of
from tests.hostile.probe import _kib
from tests.tiny import wheel

UV = str(Path(sys.executable).parent / "uv")
PYTHON = Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
OLD = replace(PYTHON, version="3.8.18", abi="cpython-38-x86_64-linux-gnu")
DEV = policy.of(Security(profile="dev"))
STANDARD = policy.of(Security(profile="standard"))
HASH = "a" * 64
COMMIT = "c" * 40

WHEEL = {"url": "https://x.org/a-1-py3-none-any.whl", "hashes": {"sha256": HASH}}
UV_WHEEL = {"url": "https://x.org/a-1-py3-none-any.whl", "hash": f"sha256:{HASH}"}
PYPI = {"registry": "https://pypi.org/simple"}


def toml(value: Any) -> str:
    """Write a value as TOML, tables inline."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def document(values: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in values.items())


def pylock(*packages: dict[str, Any], **more: Any) -> str:
    """Write a pylock.toml whose n-th package begins in line 2n."""
    head = {"lock-version": "1.0", **{key.replace("_", "-"): more[key] for key in more}}
    parts = ["[[packages]]\n" + document(one) for one in packages]
    return document(head) + "".join(parts)


def uv_lock(*packages: dict[str, Any], needs: list[dict[str, Any]], **more: Any) -> str:
    root = {"name": "root", "version": "0", "source": {"virtual": "."}, "dependencies": needs}
    head = {"version": 1, **more}
    return document(head) + "".join("[[package]]\n" + document(one) for one in (root, *packages))


def a(**more: Any) -> dict[str, Any]:
    return {"name": "tiny-a", "version": "1.0", "wheels": [WHEEL]} | more


def uv(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "source": PYPI, "wheels": [UV_WHEEL]} | more


def select(
    model: Path, text: str = "", *, rules: Policy = DEV, python: Python = PYTHON
) -> tuple[Requirement, ...]:
    """Return what is installed on *python* of the lock *text*, or of the lock that is there."""
    if text:
        name = "pylock.toml" if '"lock-version"' in text else "uv.lock"
        (model / name).write_text(text)
    lock = model_lock.read(model, rules)
    assert lock is not None
    return lock.select(python)


def texts(found: tuple[Requirement, ...]) -> list[str]:
    return [one.text for one in found]


def refused(model: Path, text: str, **more: Any) -> ModelInvalidError:
    with pytest.raises(ModelInvalidError) as caught:
        select(model, text, **more)
    return caught.value


def honoured(model: Path, text: str, asked: str, rules: Policy = DEV) -> Dependencies:
    (model / "requirements.txt").write_text(asked)
    select(model, text, rules=rules)
    lock = model_lock.read(model, rules)
    assert lock is not None
    requirements = requirement_file.read(model, "requirements.txt", rules)
    return model_lock.honoured(lock, Dependencies("3.11", (), requirements, ()))


def codes(found: Dependencies) -> list[str]:
    return [note.code for note in found.notes]


def with_metadata(folder: Path, name: str, version: str, *lines: str) -> Path:
    """Write a wheel whose metadata has *lines*."""
    path = wheel(folder, name, version)
    with zipfile.ZipFile(path) as archive:
        contents = {one: archive.read(one).decode() for one in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in contents.items():
            extra = "\n".join(lines) + "\n" if key.endswith("METADATA") else ""
            archive.writestr(key, value + extra)
    return path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("tiny-b", "tiny-c", "tiny-d"):
        wheel(folder, name, "1.0")
    for version in ("1.0", "2.0"):
        wheel(folder, "tiny-a", version)
    with_metadata(
        folder, "tiny-root", "1.0",
        "Provides-Extra: fast",
        "Requires-Dist: tiny-a",
        "Requires-Dist: tiny-b; extra == 'fast'",
        "Requires-Dist: tiny-c; python_version < '3.9'",
    )  # fmt: skip
    return folder


def digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def run_uv(folder: Path, *arguments: object) -> None:
    subprocess.run(
        [UV, *map(str, arguments), "--cache-dir", folder / "cache", "--python", sys.executable],
        cwd=folder, check=True, capture_output=True, timeout=60,
    )  # fmt: skip


class _Index(http.server.SimpleHTTPRequestHandler):
    """The pages of an index (PEP 503) over a folder of wheels."""

    def do_GET(self) -> None:
        if not self.path.startswith("/simple/"):
            return super().do_GET()
        name = self.path.split("/")[2].replace("-", "_")
        links = [
            f'<a href="/{one.name}#{digest(one).replace(":", "=")}">{one.name}</a>'
            for one in sorted(Path(self.directory).glob(f"{name}-*.whl"))
        ]
        page = "".join(links).encode()
        self.send_response(200 if page else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
        return None

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def index(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Index, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def project(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project with a uv.lock of uv's, and the index it was locked with."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "own").mkdir()
    wheel(folder / "own", "tiny-own", "1.0")
    (folder / "pyproject.toml").write_text("""
        [project]
        name = "project"
        version = "0.1"
        requires-python = ">=3.8"
        dependencies = [
            "tiny-root[fast]", "tiny-own",
            "tiny-a<2; python_version<'3.10'", "tiny-a>=2; python_version>='3.10'",
        ]
        [project.optional-dependencies]
        more = ["tiny-c"]
        [dependency-groups]
        dev = ["tiny-d"]
        [tool.uv.sources]
        tiny-own = { path = "own/tiny_own-1.0-py3-none-any.whl" }
    """)
    with index(wheels) as url:
        run_uv(folder, "lock", "--default-index", url)
    shutil.rmtree(folder / "cache")
    return folder, url


def test_a_model_without_a_lock_has_none(tmp_path: Path) -> None:
    assert model_lock.read(tmp_path, DEV) is None


def test_a_pylock_of_uv_is_read(tmp_path: Path, wheels: Path) -> None:
    (tmp_path / "asked.txt").write_text("tiny-root[fast]\ntiny-c; python_version < '3.9'")
    run_uv(
        tmp_path, "pip", "compile", "asked.txt", "--universal", "--offline", "--no-index",
        "--find-links", wheels, "--python-version", "3.8",
        "--format", "pylock.toml", "-o", "pylock.toml",
    )  # fmt: skip

    found, old = select(tmp_path), select(tmp_path, python=OLD)

    assert texts(found) == ["tiny-a==2", "tiny-b==1", "tiny-root==1"]
    assert found[0].hashes == (digest(wheels / "tiny_a-2.0-py3-none-any.whl"),)
    assert texts(old) == ["tiny-a==2", "tiny-b==1", "tiny-c==1", "tiny-root==1"]


def test_a_pylock_that_uv_exports_is_what_uv_lock_says(
    tmp_path: Path, project: tuple[Path, str]
) -> None:
    shutil.copytree(project[0], tmp_path, dirs_exist_ok=True)
    from_uv_lock = select(tmp_path)
    run_uv(
        tmp_path, "export", "--frozen", "--no-dev", "--no-emit-project",
        "--format", "pylock.toml", "-o", "pylock.toml",
    )  # fmt: skip

    assert select(tmp_path) == from_uv_lock
    assert texts(select(tmp_path, python=OLD))[0] == "tiny-a==1"


def test_a_uv_lock_gives_what_the_project_depends_on(
    project: tuple[Path, str], wheels: Path
) -> None:
    folder, _ = project

    found = select(folder)

    assert texts(found) == ["tiny-a==2", "tiny-b==1", "tiny-own", "tiny-root==1"]
    assert found[0].hashes == (digest(wheels / "tiny_a-2.0-py3-none-any.whl"),)
    own = found[2]
    assert own.source == "./own/tiny_own-1.0-py3-none-any.whl"
    assert own.hashes == (digest(folder / own.source),)


def test_a_uv_lock_has_other_packages_for_another_python(project: tuple[Path, str]) -> None:
    found = texts(select(project[0], python=OLD))

    assert found == ["tiny-a==1", "tiny-b==1", "tiny-c==1", "tiny-own", "tiny-root==1"]


def test_a_foreign_registry_has_to_be_listed(project: tuple[Path, str]) -> None:
    folder, url = project
    asked = Dependencies("3.11", (), requirement_file.Requirements(), ())
    listed = policy.of(Security(profile="standard", indexes=(url,), local=True))

    with pytest.raises(PolicyDeniedError, match=r"uv\.lock`, line \d+: .*security\.indexes"):
        model_lock.read(folder, policy.of(Security(profile="standard", local=True)))
    with pytest.raises(PolicyDeniedError, match=r"security\.local"):
        model_lock.read(folder, policy.of(Security(profile="standard", indexes=(url,))))
    lock = model_lock.read(folder, listed)

    assert lock is not None
    found = model_lock.honoured(lock, asked)
    assert found.asked.options.extra_index_urls == (url,)
    assert codes(found) == ["INDEX_FROM_MODEL", "PACKAGE_FROM_MODEL", "LOCK_HONOURED"]
    assert found.on(PYTHON).closed


def test_pylock_goes_before_uv_lock(tmp_path: Path) -> None:
    (tmp_path / "uv.lock").write_text("not looked at")

    found = honoured(tmp_path, pylock(a()), "tiny-a", STANDARD)

    assert codes(found) == ["LOCK_HONOURED"]
    assert found.lock is not None
    assert found.lock.file == "pylock.toml"
    assert found.on(PYTHON).asked.requirements == (
        Requirement("tiny-a", "tiny-a==1", (f"sha256:{HASH}",)),
    )


def test_all_sha256_hashes_are_taken_and_sorted(tmp_path: Path) -> None:
    files = [{"hashes": {"sha256": one * 64, "md5": "0" * 32}} for one in "FDE"]
    (found,) = select(tmp_path, pylock(a(wheels=files[:2], sdist=files[2])))

    assert found.hashes == tuple(f"sha256:{one * 64}" for one in "def")


@pytest.mark.parametrize("hashes", [{}, {"sha512": "a" * 128}, {"sha256": "short"}])
def test_a_package_without_sha256_is_refused(tmp_path: Path, hashes: dict[str, str]) -> None:
    error = refused(tmp_path, pylock(a(), a(name="tiny-b", wheels=[{"hashes": hashes}])))

    assert f"`{tmp_path}/pylock.toml`, line 6: `tiny-b` has no sha256 hash" in error.message


def test_a_uv_lock_without_hashes_is_refused(tmp_path: Path) -> None:
    without = uv("tiny-a", wheels=[{"url": WHEEL["url"]}])

    assert "no sha256" in refused(tmp_path, uv_lock(without, needs=[{"name": "tiny-a"}])).message


def test_a_pylock_of_other_pythons_is_refused(tmp_path: Path) -> None:
    for text in (
        pylock(a(), requires_python=">=3.12"),
        pylock(a(**{"requires-python": ">=3.12"})),
        uv_lock(needs=[], **{"requires-python": ">=3.12"}),
    ):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        assert "is for Python >=3.12, and this is 3.11.7" in refused(tmp_path, text).message


def test_a_lock_of_other_environments_is_refused(tmp_path: Path) -> None:
    windows = ["sys_platform == 'win32'"]

    assert "other environments" in refused(tmp_path, pylock(a(), environments=windows)).message


def test_only_the_default_groups_of_a_pylock_are_taken(tmp_path: Path) -> None:
    packages = [
        a(),
        a(name="tiny-b", marker="'more' in extras"),
        a(name="tiny-c", marker="'dev' in dependency_groups"),
        a(name="tiny-d", marker="'base' in dependency_groups"),
    ]

    found = select(tmp_path, pylock(*packages, default_groups=["base"]))

    assert texts(found) == ["tiny-a==1", "tiny-d==1"]


def test_two_packages_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "two packages `tiny-a`" in refused(tmp_path, pylock(a(), a(version="2"))).message


def git(**more: str) -> dict[str, Any]:
    vcs = {"type": "git", "url": "https://host/repo", "commit-id": COMMIT}
    return {"name": "tiny-a", "vcs": vcs | {key.replace("_", "-"): more[key] for key in more}}


def test_a_repository_is_a_note_in_dev_and_has_to_be_listed(tmp_path: Path) -> None:
    found = honoured(tmp_path, pylock(git(subdirectory="sub")), "tiny-a>=1")

    (one,) = found.on(PYTHON).asked.requirements
    assert one.source == f"git+https://host/repo@{COMMIT}#subdirectory=sub"
    assert codes(found) == ["SOURCE_FROM_MODEL", "LOCK_HONOURED"]
    with pytest.raises(PolicyDeniedError, match=r"security\.sources"):
        select(tmp_path, rules=STANDARD)


def test_a_repository_of_a_uv_lock(tmp_path: Path) -> None:
    source = {"git": f"https://host/repo?subdirectory=sub&rev=main#{COMMIT}"}
    text = uv_lock({"name": "tiny-a", "source": source}, needs=[{"name": "tiny-a"}])

    (found,) = select(tmp_path, text)

    assert found.source == f"git+https://host/repo@{COMMIT}#subdirectory=sub"


def test_a_repository_in_a_uv_lock_of_uv(tmp_path: Path) -> None:
    (tmp_path / "repository" / "sub").mkdir(parents=True)
    (tmp_path / "repository" / "sub" / "pyproject.toml").write_text(
        "[project]\nname = 'tiny-git'\nversion = '1.0'\n"
    )
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run(["git", *who, *command], cwd=tmp_path / "repository", check=True)
    url = f"git+file://{tmp_path}/repository"
    (tmp_path / "pyproject.toml").write_text(
        "[project]\nname = 'project'\nversion = '0'\nrequires-python = '>=3.8'\n"
        f"dependencies = ['tiny-git @ {url}#subdirectory=sub']\n"
    )
    run_uv(tmp_path, "lock", "--offline", "--no-index")
    shutil.rmtree(tmp_path / "cache")

    with pytest.raises(PolicyDeniedError, match=r"security\.sources"):
        select(tmp_path)
    (found,) = select(tmp_path, rules=policy.of(Security(sources=(url,))))

    head = (tmp_path / "repository/.git/HEAD").read_text().removeprefix("ref: ").strip()
    commit = (tmp_path / "repository/.git" / head).read_text().strip()
    assert found == Requirement("tiny-git", "tiny-git", (), f"{url}@{commit}#subdirectory=sub")


def test_the_spec_of_a_locked_model_is_closed(project: tuple[Path, str]) -> None:
    folder, url = project
    lock = model_lock.read(folder, DEV)
    assert lock is not None
    asked = requirement_file.read_lines([(Place(folder, "r.txt", 1), "tiny-root>=1")])(DEV)
    found = model_lock.honoured(lock, Dependencies("3.11", asked.requirements, asked, ()))

    spec = of(found, PYTHON, Index())

    assert spec.closed
    assert (spec.build, spec.constraints) == ((), ())
    assert spec.requirements == lock.select(PYTHON)
    assert spec.indexes.urls[-1] == url
    assert of(found, OLD, Index()).key != spec.key


@pytest.mark.parametrize(
    "package",
    [
        git(commit_id="main"),
        git(commit_id=COMMIT[:12]),
        git(type="hg"),
        git(url="https://host/repo#egg=tiny-a"),
        git(url="https://host/repo#egg=tiny-a&sha256=x"),
        git(url="https://host/repo?x=1"),
        git(url="https://host/repo ; python_version<'3'"),
        git(url="ext::sh -c id"),
        git(url="https://[/repo"),
        git(subdirectory="../.."),
        {"name": "tiny-a", "vcs": {"type": "git", "path": ".", "commit-id": COMMIT}},
    ],
)
def test_a_repository_that_is_not_one_commit_is_refused(
    tmp_path: Path, package: dict[str, Any]
) -> None:
    assert refused(tmp_path, pylock(package)).metadata["path"] == "pylock.toml"


def test_an_archive_of_a_url(tmp_path: Path) -> None:
    url = "https://host/tiny_a-1.0.tar.gz"
    archive = {"url": url, "hashes": {"sha256": HASH}}
    expected = (Requirement("tiny-a", "tiny-a", (f"sha256:{HASH}",), url),)

    assert select(tmp_path, pylock({"name": "tiny-a", "archive": archive})) == expected
    (tmp_path / "pylock.toml").unlink()
    uv_archive = uv("tiny-a", source={"url": url}, wheels=[], sdist={"hash": f"sha256:{HASH}"})
    assert select(tmp_path, uv_lock(uv_archive, needs=[{"name": "tiny-a"}])) == expected
    with pytest.raises(PolicyDeniedError, match=r"security\.sources"):
        select(tmp_path, rules=STANDARD)


def test_a_url_may_not_bring_a_marker(tmp_path: Path) -> None:
    archive = {"url": "https://host/a-1.tar.gz ; os_name == 'nt'", "hashes": {"sha256": HASH}}

    error = refused(tmp_path, pylock({"name": "a", "archive": archive}))

    assert "white space or `;`" in error.message


@pytest.mark.parametrize(
    ("package", "why"),
    [
        (a(wheels=[WHEEL, {"path": "b.whl", "hashes": {"sha256": HASH}}]), "several files"),
        (a(wheels=[]), "from nowhere"),
        (a() | git(), "from vcs and wheels"),
        ({"name": "a", "wheels": [WHEEL]}, "no version"),
    ],
)
def test_a_package_comes_from_one_place(tmp_path: Path, package: dict[str, Any], why: str) -> None:
    assert why in refused(tmp_path, pylock(package)).message


def test_a_wheel_in_the_model_is_what_was_locked(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    path = wheel(tmp_path / "dist", "tiny-a", "1.0")
    hashes = {"sha256": digest(path).removeprefix("sha256:")}
    name = f"dist/{path.name}"
    expected = (Requirement("tiny-a", "tiny-a", (digest(path),), f"./{name}"),)

    for key in ("archive", "wheels"):
        file = {"path": name, "hashes": hashes}
        package = {"name": "tiny-a", key: [file] if key == "wheels" else file}
        assert select(tmp_path, pylock(package)) == expected
    path.write_bytes(b"another")
    assert "is not the file that was locked" in refused(tmp_path, pylock(package)).message


def test_a_source_tree_in_the_model(tmp_path: Path) -> None:
    (tmp_path / "code" / "sub").mkdir(parents=True)
    (tmp_path / "code" / "sub" / "pyproject.toml").write_text("")
    directory = {"path": "code", "subdirectory": "sub", "editable": True}

    found = honoured(tmp_path, pylock({"name": "tiny-a", "directory": directory}), "tiny-a")

    (one,) = found.on(PYTHON).asked.requirements
    assert (one.name, one.source, len(one.hashes)) == ("tiny-a", "./code/sub", 1)
    assert codes(found) == ["PACKAGE_FROM_MODEL", "EDITABLE_BUILT", "LOCK_HONOURED"]


@pytest.mark.parametrize(
    "path",
    ["../a-1-py3-none-any.whl", "/etc/passwd", "absent.whl", "", "x ; y", "a#egg=b", "http://x/a",
     "a\0b", "\n-r /etc/shadow", "link", "x" * 5000],
)  # fmt: skip
def test_a_path_that_is_not_in_the_model_is_refused(tmp_path: Path, path: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    wheel(tmp_path, "a", "1")
    (model / "link").symlink_to(tmp_path)

    for key in ("archive", "directory"):
        table = {"path": path, "hashes": {"sha256": HASH}}
        error = refused(model, pylock({"name": "a", key: table}))
        assert f"`{model}/pylock.toml`, line 2: " in error.message
    (model / "pylock.toml").unlink()
    package = uv("a", source={"directory": path})
    error = refused(model, uv_lock(package, needs=[{"name": "a"}]))
    assert f"`{model}/uv.lock`, line 7: " in error.message


def test_extras_are_taken_where_an_edge_asks_for_them(tmp_path: Path) -> None:
    more = {"fast": [{"name": "c", "extra": ["deep"]}], "slow": [{"name": "d"}]}
    packages = [
        uv("b", **{"optional-dependencies": more}),
        uv("c", **{"optional-dependencies": {"deep": [{"name": "e"}, {"name": "b"}]}}),
        uv("d"),
        uv("e"),
    ]

    assert texts(select(tmp_path, uv_lock(*packages, needs=[{"name": "b"}]))) == ["b==1"]
    needs = [{"name": "b", "extra": ["Fast"]}]
    assert texts(select(tmp_path, uv_lock(*packages, needs=needs))) == ["b==1", "c==1", "e==1"]
    needs = [{"name": "b", "extra": ["fast"], "marker": "os_name == 'nt'"}]
    assert select(tmp_path, uv_lock(*packages, needs=needs)) == ()


def test_an_edge_of_conflicting_extras_is_not_taken(tmp_path: Path) -> None:
    needs = [
        {"name": "b", "marker": "extra == 'extra-4-root-gpu'"},
        {"name": "c", "marker": "extra != 'extra-4-root-gpu'"},
    ]

    assert texts(select(tmp_path, uv_lock(uv("b"), uv("c"), needs=needs))) == ["c==1"]


def test_a_virtual_member_is_left_out_and_what_it_needs_is_not(tmp_path: Path) -> None:
    member = {"name": "m", "source": {"virtual": "m"}, "dependencies": [{"name": "b"}]}

    text = uv_lock(member, uv("b"), needs=[{"name": "m"}, {"name": "root"}])

    assert texts(select(tmp_path, text)) == ["b==1"]


def test_what_the_project_does_not_reach_is_not_judged(tmp_path: Path) -> None:
    foreign = uv("b", source={"registry": "https://evil.org/simple"}, wheels=[])

    assert texts(select(tmp_path, uv_lock(foreign, uv("c"), needs=[{"name": "c"}]))) == ["c==1"]


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        ([{"name": "absent"}], "no package"),
        ([{"name": "b"}], "several packages"),
        ([{"name": "b", "version": "3"}], "no package"),
        ([{"name": "b", "marker": "nonsense"}, {"name": "c", "marker": "x"}], "several packages"),
        ([{"name": "c", "marker": "nonsense"}], "not a marker"),
        ([{"name": "c", "marker": "(" * 3000}], "not a marker"),
        ([{"name": "-r /etc/shadow"}], "not the name"),
    ],
)
def test_an_edge_that_leads_nowhere_is_refused(
    tmp_path: Path, needs: list[dict[str, str]], why: str
) -> None:
    text = uv_lock(uv("b"), uv("b", version="2"), uv("c"), needs=needs)

    error = refused(tmp_path, text)

    assert f"`{tmp_path}/uv.lock`, line 2: " in error.message
    assert why in error.message


def test_a_path_for_a_registry_is_refused(tmp_path: Path) -> None:
    package = uv("b", source={"registry": "../wheels"})

    error = refused(tmp_path, uv_lock(package, needs=[{"name": "b"}]))

    assert "line 7: `../wheels` is not the URL of an index" in error.message


def test_a_stale_pylock_is_refused(tmp_path: Path) -> None:
    found = honoured(tmp_path, pylock(a()), "tiny-a>=2\nsix; python_version < '3'\ntiny-b")

    with pytest.raises(
        ModelInvalidError, match=r"pylock\.toml.*tiny-a>=2, tiny-b; write a new one"
    ):
        found.on(PYTHON)


def test_a_uv_lock_that_differs_is_a_note(tmp_path: Path) -> None:
    text = uv_lock(uv("tiny-a"), needs=[{"name": "tiny-a"}])

    found = honoured(tmp_path, text, "tiny-a\nsix").on(PYTHON)

    assert codes(found) == ["LOCK_HONOURED", "LOCK_DIFFERS"]
    assert texts(found.asked.requirements) == ["tiny-a==1"]


def test_a_uv_lock_without_the_mlflow_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    text = uv_lock(uv("tiny-a"), needs=[{"name": "tiny-a"}])
    found = honoured(tmp_path, text, "tiny-a\nmlflow>=2")

    with pytest.raises(ModelInvalidError, match=r"uv\.lock.*mlflow>=2; write a new one"):
        found.on(PYTHON)


def test_a_uv_lock_with_another_mlflow_than_is_asked_for_is_a_note(tmp_path: Path) -> None:
    text = uv_lock(uv("mlflow"), needs=[{"name": "mlflow"}])

    assert "LOCK_DIFFERS" in codes(honoured(tmp_path, text, "mlflow>=2").on(PYTHON))


def test_an_old_source_in_a_lock_is_built_as_outside_of_one(tmp_path: Path) -> None:
    (tmp_path / "pylock.toml").write_text(pylock(a(name="pyyaml", version="5.4.1")))
    (tmp_path / "requirements.txt").write_text("pyyaml==5.4.1")
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {loader_module: own}}")
    loaded = config.load(root=tmp_path / "root", environ={})

    found = of(read_spec(read_model(tmp_path), loaded), PYTHON, loaded.index)

    assert found.closed
    assert found.build_constraints == ("cython<3", "setuptools<66")


@pytest.mark.parametrize(
    "text",
    [
        pylock(*[a(name=f"p{number}") for number in range(6_000)]),
        uv_lock(*[uv(f"p{number}") for number in range(6_000)], needs=[]),
    ],
)
def test_six_thousand_packages_are_refused(tmp_path: Path, text: str) -> None:
    assert "over 5000 packages" in refused(tmp_path, text).message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"a = " + b"[" * 100_000,
        b"a = " + b"{a=" * 100_000,
        b"a = " + b"1" * 10_000,
        b"version = 0x" + b"f" * 10_000,
        b".".join([b"a"] * 500_000) + b" = 1",
        b".".join([b"'#'"] * 500_000) + b" = 1",
        b'a = {b=""" " """, ' + b".".join([b"c"] * 500_000) + b'=1, d="""x"""}',
        b"[" + b".".join([b"a"] * 50_000) + b"]",
        b"#" * (9 << 20),
        b"a = [" + b"1," * (2 << 20) + b"]",
        b"a = 1\na = 2",
        b"lock-version = '2.0'",
        b"version = 2",
        b"version = 1",
        b"version = 1\n[[package]]\nname='a'\nsource={virtual='.'}\n" * 2,
    ],
    ids=lambda content: f"{content[:20]!r}",
)
@pytest.mark.parametrize("name", ["pylock.toml", "uv.lock"])
def test_what_is_no_lock_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ModelInvalidError, match=name):
        select(tmp_path)


def test_the_line_of_an_error_of_toml_is_told(tmp_path: Path) -> None:
    (tmp_path / "uv.lock").write_text("version = 1\n\nname = nothing")

    assert "line 3: it is not TOML" in refused(tmp_path, "").message


def test_a_lock_of_two_mebibytes_is_read(tmp_path: Path) -> None:
    padding = "# nothing\n" * 200_000

    assert texts(select(tmp_path, pylock(a()) + padding)) == ["tiny-a==1"]


@pytest.mark.parametrize("text", ['x = "{}"', 'x = "{}', "# {}"])
@pytest.mark.parametrize("escapes", ["\\\\" * 1_200_000, '\\"' * 1_200_000])
def test_a_lock_of_escapes_takes_little_memory_and_time(
    tmp_path: Path, text: str, escapes: str
) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak, of all the tests so far
    before, started = _kib("VmRSS"), time.process_time()

    refused(tmp_path, f'"lock-version" = "9"\n{text.format(escapes)}\n')

    assert _kib("VmHWM") - before < 64 << 10
    assert time.process_time() - started < 2


def _marker(number: int, size: int) -> str:
    return f"os_name != '{number:0{size - 13}}'"


@pytest.mark.parametrize("lock", ["packages", "environments", "uv.lock", "supported-markers"])
@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ([4_000], None),
        ([4_001], "is over 4000 characters"),
        ([3_900] * 33, None),
        ([3_900] * 34, "its markers are over 4096 different ones or 131072 characters"),
        ([20] * 4_000, None),
        ([20] * 4_097, "its markers are over 4096 different ones or 131072 characters"),
    ],
    ids=str,
)
def test_the_markers_of_a_lock_are_short_and_few(
    tmp_path: Path, lock: str, sizes: list[int], why: str | None
) -> None:
    found = [_marker(number, size) for number, size in enumerate(sizes)]
    needs = [{"name": "b", "marker": one} for one in found]
    text = {
        "packages": lambda: pylock(*[a(name=f"p{n}", marker=one) for n, one in enumerate(found)]),
        "environments": lambda: pylock(a(), environments=found),
        "uv.lock": lambda: uv_lock(uv("b"), needs=needs),
        "supported-markers": lambda: uv_lock(
            uv("b"), needs=[{"name": "b"}], **{"supported-markers": found}
        ),
    }[lock]()

    if why is None:
        assert select(tmp_path, text)
    else:
        assert why in refused(tmp_path, text).message


def test_a_marker_that_is_over_the_limit_is_told_by_its_line(tmp_path: Path) -> None:
    text = pylock(a(), a(name="b", marker=_marker(1, 5_000)))

    assert refused(tmp_path, text).metadata["line"] == "6"


@pytest.mark.parametrize(
    ("specifiers", "why"),
    [
        ([">=3" + ",!=2.*" * 82], None),
        ([">=3" + ",!=2.*" * 83], "is over 500 characters"),
        ([f">=3,!=2.{number}" + ",!=2.*" * 50 for number in range(60)],
         "its `requires-python` are over 4096 different ones or 16384 characters"),
    ],
    ids=lambda one: str(len(one or "")),
)  # fmt: skip
def test_what_a_lock_says_of_pythons_is_short(
    tmp_path: Path, specifiers: list[str], why: str | None
) -> None:
    packages = [a(name=f"p{n}", **{"requires-python": one}) for n, one in enumerate(specifiers)]

    if why is None:
        assert select(tmp_path, pylock(*packages))
    else:
        assert why in refused(tmp_path, pylock(*packages)).message


PYLOCK: dict[str, Any] = {
    "lock-version": "1.0",
    "created-by": "envd",
    "requires-python": ">=3.8",
    "environments": ["sys_platform == 'linux'"],
    "default-groups": ["base"],
    "packages": [
        a(marker="'base' in dependency_groups", index="https://host/simple", sdist=WHEEL),
        git(subdirectory="sub"),
        {"name": "b", "archive": {"url": "https://host/b-1.tar.gz", "hashes": {"sha256": HASH}}},
        {"name": "c", "directory": {"path": "code", "editable": True}},
    ],
}
UV_LOCK: dict[str, Any] = {
    "version": 1,
    "requires-python": ">=3.8",
    "supported-markers": ["sys_platform == 'linux'"],
    "package": [
        {
            "name": "root",
            "source": {"virtual": "."},
            "dependencies": [
                {"name": "b", "extra": ["fast"], "marker": "python_version > '3'"},
                {"name": "c", "version": "1.0", "source": PYPI},
            ],
        },
        uv("b", **{"optional-dependencies": {"fast": [{"name": "d"}, {"name": "e"}]}}),
        uv("c", sdist=UV_WHEEL),
        {"name": "d", "source": {"git": f"https://host/repo?rev=main#{COMMIT}"}},
        {"name": "e", "source": {"editable": "code"}},
    ],
}
SCALARS = (
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from([
        "", ".", "..", "/", "code", "https://[/a", "https://host/a-1.whl", "file:///etc/passwd",
        "git+ssh://a@b/c", "1.0.*", "==1", ">=4", "extra == 'a'", "'a' in extras", "extras == 'a'",
        "python_version < 'x'", "'x' not in python_version", "dependency_groups in 'a'", "\0",
        "python_version === '3.11'", "'3' ~= python_version", "x" * 70_000, "a@b", "sha256:",
    ])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "source", "url", "path", "hashes", "git", "x"]), inner
        )
    ),
    max_leaves=6,
)


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a document."""
    items: Any = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in items:
        yield (*path, key)
        yield from spots(one, (*path, key))


def changed(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a document with another value in one spot."""
    if not path:
        return value
    copy = whole.copy()
    copy[path[0]] = changed(whole[path[0]], path[1:], value)
    return copy


def only_own_errors(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        (model / "code").mkdir()
        (model / name).write_bytes(content)
        try:
            select(model)
            select(model, rules=STANDARD, python=OLD)
        except EnvdError as error:
            assert name in error.message  # noqa: PT017


LOCKS = [("pylock.toml", PYLOCK), ("uv.lock", UV_LOCK)]


@pytest.mark.parametrize(("name", "whole"), LOCKS)
def test_the_locks_that_are_changed_below_are_right(
    tmp_path: Path, name: str, whole: dict[str, Any]
) -> None:
    (tmp_path / "code").mkdir()
    unique = changed(whole, ("packages", 1, "name"), "x") if name == "pylock.toml" else whole
    (tmp_path / name).write_text(document(unique))

    assert len(select(tmp_path)) == 4


@pytest.mark.parametrize(("name", "whole"), LOCKS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_values_of_any_type_raise_nothing_but_own_errors(
    name: str, whole: dict[str, Any], data: st.DataObject
) -> None:
    for path in data.draw(st.lists(st.sampled_from(list(spots(whole))), min_size=1, max_size=2)):
        if path in list(spots(whole)):
            whole = changed(whole, path, data.draw(VALUES))

    only_own_errors(name, document(whole).encode(errors="replace"))


@pytest.mark.parametrize(("name", "whole"), LOCKS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_bytes_raise_nothing_but_own_errors(
    name: str, whole: dict[str, Any], data: st.DataObject
) -> None:
    content = document(whole).encode()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    put = data.draw(st.binary(max_size=10) | st.sampled_from([b'"', b"[", b"{", b"}", b"#", b"."]))

    only_own_errors(name, content[:start] + put + content[end:])
