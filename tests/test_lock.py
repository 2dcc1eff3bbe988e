"""Locks: real resolutions over a wheelhouse of files of a few bytes."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from packaging import tags

from envd import lock as locks
from envd.build.interpreters import Interpreter, Interpreters
from envd.config import Index, Settings
from envd.errors import IndexUnreachableError, InstallFailedError, SolveFailedError
from envd.events import Event, Line
from envd.lock import Lock, Package
from envd.lock.lock import from_document
from envd.lock.pip import _package, _tag_ranks
from envd.lock.uv import Uv
from envd.spec import Dependencies, Python, of, requirements
from envd.spec.requirements import Requirements

PURE = "py3-none-any"
CPYTHON = "cp{}{}".format(*sys.version_info)
HERE = f"{CPYTHON}-{CPYTHON}-{next(tags.platform_tags())}"
PYTHON = Python("cpython", "3.9.18", "cpython-39-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")


def wheel(folder: Path, name: str, version: str, tag: str = PURE, requires: str = "") -> str:
    """Write a wheel and return its SHA-256."""
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"TAG = {tag!r}\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sdist(folder: Path, name: str, version: str, files: dict[str, str] | None = None) -> str:
    """Write a source distribution and return its SHA-256."""
    path = folder / f"{name}-{version}.tar.gz"
    metadata = f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in ({"PKG-INFO": metadata} | (files or {})).items():
            entry = tarfile.TarInfo(f"{name}-{version}/{file}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class House:
    """A folder of wheels, and a root that resolves over nothing else."""

    def __init__(self, folder: Path, interpreter: Interpreter) -> None:
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.interpreter = interpreter
        (folder / "empty").mkdir()
        self.settings = Settings(
            folder / "root",
            index=Index(
                # Were the setting forgotten, nothing would be asked of the real index.
                urls=((folder / "empty").as_uri(),),
                find_links=(str(self.wheels),),
                no_index=True,
            ),
        )

    def resolve(
        self, *lines: str, build: tuple[str, ...] = (), constraints: tuple[str, ...] = ()
    ) -> Lock:
        found = Dependencies(
            None,
            self._read(build).requirements,
            Requirements(self._read(lines).requirements, self._read(constraints).requirements),
            (),
        )
        spec = of(found, self.interpreter.python, self.settings.index)
        self.events: list[Event] = []
        return locks.resolve(spec, self.interpreter.path, Uv(self.settings), self.events.append)

    def _read(self, lines: tuple[str, ...]) -> Requirements:
        return requirements.read_entries(self.wheels, "file", lines)


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """The Python that runs the tests, as envd finds it."""
    folder = tmp_path_factory.mktemp("pythons")
    (folder / "home" / "bin").mkdir(parents=True)
    (folder / "home" / "bin" / "python3").symlink_to(sys._base_executable)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder / "home" / "bin"))
        patch.setenv("HOME", str(folder))
        patch.delenv("PYENV_ROOT", raising=False)
        (found,) = Interpreters(Settings(folder / "root")).found()
        yield found


@pytest.fixture
def house(tmp_path: Path, interpreter: Interpreter) -> House:
    return House(tmp_path, interpreter)


def versions(lock: Lock) -> list[str]:
    return [f"{one.name}=={one.version}" for one in lock.packages]


def test_a_lock_holds_every_artifact_with_its_hash(house: House) -> None:
    wheel(house.wheels, "tiny_b", "1.0")
    digest_b = wheel(house.wheels, "tiny_b", "1.5")
    wheel(house.wheels, "tiny_b", "2.0")
    digest_a = wheel(house.wheels, "tiny_a", "1.0", requires="tiny.b<2")

    lock = house.resolve("Tiny_A")

    assert lock.packages == (
        Package("tiny-a", "1.0", digest_a, "tiny_a-1.0-py3-none-any.whl"),
        Package("tiny-b", "1.5", digest_b, "tiny_b-1.5-py3-none-any.whl"),
    )
    assert lock.requirements() == (
        f"tiny-a==1.0 --hash=sha256:{digest_a}\ntiny-b==1.5 --hash=sha256:{digest_b}\n"
    )


def test_nothing_is_left_of_a_resolution(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")

    house.resolve("tiny-a")

    root = house.settings.root
    assert {path.name for path in root.iterdir()} == {"cache", "empty", "scratch"}
    assert not [*(root / "empty").iterdir(), *(root / "scratch").iterdir()]


def test_a_spec_without_requirements_has_an_empty_lock(house: House) -> None:
    assert house.resolve() == Lock(())


def test_of_several_wheels_the_most_special_that_fits_is_taken(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    wheel(house.wheels, "tiny_a", "1.0", "cp36-cp36m-manylinux1_x86_64")
    wheel(house.wheels, "tiny_a", "1.0", f"{CPYTHON}-{CPYTHON}-win_amd64")
    special = wheel(house.wheels, "tiny_a", "1.0", HERE)
    sdist(house.wheels, "tiny_a", "1.0")

    (package,) = house.resolve("tiny-a").packages

    assert (package.filename, package.sha256) == (f"tiny_a-1.0-{HERE}.whl", special)


def test_a_source_distribution_is_taken_where_no_wheel_is(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0", "cp36-cp36m-manylinux1_x86_64")
    digest = sdist(house.wheels, "tiny_a", "1.0")

    lock = house.resolve("tiny-a")

    assert lock.packages == (Package("tiny-a", "1.0", digest, "tiny_a-1.0.tar.gz"),)


def test_a_hash_chooses_among_the_files_of_a_version(house: House) -> None:
    pure = wheel(house.wheels, "tiny_a", "1.0")
    wheel(house.wheels, "tiny_a", "1.0", HERE)

    (package,) = house.resolve(f"tiny-a==1.0 --hash=sha256:{pure.upper()}").packages

    assert (package.filename, package.sha256) == ("tiny_a-1.0-py3-none-any.whl", pure)


@pytest.mark.parametrize("where", ["lines", "build", "constraints"])
def test_a_file_with_another_hash_is_refused(house: House, where: str) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    asked = {"lines": ("tiny-a",), where: ("tiny-a==1.0 --hash=sha256:00",)}

    with pytest.raises(SolveFailedError, match="none of its files has a hash the model") as caught:
        house.resolve(*asked.pop("lines"), **asked)

    assert caught.value.metadata == {"package": "tiny-a"}


def test_the_hashes_of_a_name_that_stands_there_twice_are_all_allowed(house: House) -> None:
    old = wheel(house.wheels, "tiny_a", "1.0")
    new = wheel(house.wheels, "tiny_a", "2.0")

    lock = house.resolve(
        f"tiny-a==1.0 --hash=sha256:{old} ; python_version < '3'",
        f"tiny-a==2.0 --hash=sha256:{new} ; python_version >= '3'",
    )

    assert versions(lock) == ["tiny-a==2.0"]


def test_an_unknown_package_is_named(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")

    with pytest.raises(SolveFailedError, match="nowhere-to-be-found was not found") as caught:
        house.resolve("tiny-a", "nowhere-to-be-found")

    assert caught.value.metadata == {"requirements": "nowhere-to-be-found, tiny-a"}
    assert any("nowhere" in event.text for event in house.events if isinstance(event, Line))


@pytest.mark.parametrize("line", ["tiny-a==2.0", "tiny-a>1", "tiny-a<1"])
def test_a_version_that_is_not_there_is_named(house: House, line: str) -> None:
    wheel(house.wheels, "tiny_a", "1.0")

    with pytest.raises(SolveFailedError, match=r"tiny-a[<>=]"):
        house.resolve(line)


def test_requirements_that_contradict_each_other_are_told(house: House) -> None:
    wheel(house.wheels, "tiny_b", "1.0")
    wheel(house.wheels, "tiny_b", "2.0")
    wheel(house.wheels, "tiny_a", "1.0", requires="tiny-b<2")

    with pytest.raises(SolveFailedError, match="tiny-a depend on tiny-b<2"):
        house.resolve("tiny-a", "tiny-b==2")


def test_a_constraint_limits_what_others_ask_for_and_asks_for_nothing(house: House) -> None:
    for version in ("1.0", "2.0"):
        wheel(house.wheels, "tiny_a", version)
        wheel(house.wheels, "tiny_b", version)

    lock = house.resolve("tiny-a", constraints=("tiny-a<2", "tiny-b<2"))

    assert versions(lock) == ["tiny-a==1.0"]


def test_the_version_of_a_build_dependency_is_kept(house: House) -> None:
    for version in ("58.1.0", "80.0.0"):
        wheel(house.wheels, "setuptools", version)
    wheel(house.wheels, "tiny_a", "1.0", requires="setuptools")

    lock = house.resolve("tiny-a", "setuptools", build=("setuptools==58.1.0",))

    assert versions(lock) == ["setuptools==58.1.0", "tiny-a==1.0"]


def test_a_build_dependency_is_installed_though_nothing_else_asks_for_it(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    wheel(house.wheels, "tiny_b", "1.0")

    lock = house.resolve("tiny-b", build=("tiny-a",))

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]


def test_a_requirement_goes_before_a_build_dependency(house: House) -> None:
    # As with MLflow's two installs in a row, the second has its way.
    for version in ("58.1.0", "80.0.0"):
        wheel(house.wheels, "setuptools", version)

    lock = house.resolve("setuptools>=60", build=("setuptools==58.1.0",))

    assert versions(lock) == ["setuptools==80.0.0"]


def test_a_marker_that_does_not_hold_asks_for_nothing(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")

    lock = house.resolve("tiny-a", "tiny-b; python_version < '3'", "tiny-c; sys_platform=='win32'")

    assert versions(lock) == ["tiny-a==1.0"]


def test_a_source_distribution_that_cannot_say_what_it_is_fails_the_installation(
    house: House,
) -> None:
    files = {
        "PKG-INFO": "Metadata-Version: 1.0\nName: tiny_a\nVersion: 1.0\n",
        "pyproject.toml": (
            "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
        ),
        "backend.py": "raise SystemExit('no such luck')",
    }
    sdist(house.wheels, "tiny_a", "1.0", files)

    with pytest.raises(InstallFailedError, match="no such luck"):
        house.resolve("tiny-a")


class Silent(http.server.BaseHTTPRequestHandler):
    """An index that has nothing, and counts who asks."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def silent_index() -> Iterator[tuple[str, list[str]]]:
    Silent.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple", Silent.asked
        server.shutdown()
        thread.join()


def with_index(house: House, **changed: object) -> House:
    index = replace(house.settings.index, **changed)  # type: ignore[arg-type]
    house.settings = replace(house.settings, index=index)
    return house


def test_an_index_is_asked_for_what_is_not_in_the_wheelhouse(
    house: House, silent_index: tuple[str, list[str]]
) -> None:
    url, asked = silent_index

    with pytest.raises(SolveFailedError):
        with_index(house, urls=(url,), no_index=False).resolve("tiny-a")

    assert asked == ["/simple/tiny-a/"]


def test_with_no_index_no_index_is_asked(house: House, silent_index: tuple[str, list[str]]) -> None:
    url, asked = silent_index

    with pytest.raises(SolveFailedError):
        with_index(house, urls=(url,)).resolve("tiny-a")

    assert asked == []


@pytest.mark.slow  # uv tries for ten seconds
def test_an_index_that_does_not_answer_is_unreachable(house: House) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        closed = f"http://user:s3cret@127.0.0.1:{server.server_port}/simple"

    with pytest.raises(IndexUnreachableError) as caught:
        with_index(house, urls=(closed,), no_index=False).resolve("tiny-a")

    assert "s3cret" not in json.dumps(caught.value.document())


def test_offline_no_index_is_asked(house: House, silent_index: tuple[str, list[str]]) -> None:
    url, asked = silent_index
    wheel(house.wheels, "tiny_a", "1.0")

    lock = with_index(house, urls=(url,), no_index=False, offline=True).resolve("tiny-a")

    assert versions(lock) == ["tiny-a==1.0"]
    assert asked == []


def test_an_old_python_has_the_tags_of_its_own_time() -> None:
    old = replace(PYTHON, version="3.7.16", abi="cpython-37m-x86_64-linux-gnu")

    ranks = {str(tag): rank for tag, rank in _tag_ranks(old).items()}

    platform = next(tags.platform_tags())
    best = [f"cp37-cp37m-{platform}", f"cp37-abi3-{platform}", f"cp37-none-{platform}"]
    assert [ranks[tag] for tag in best] == sorted(ranks[tag] for tag in best)
    assert ranks[best[0]] == 0
    assert ranks[best[-1]] < ranks["py37-none-any"] < ranks[PURE]
    assert f"cp38-cp38-{platform}" not in ranks


def artifact(filename: str, digest: str) -> dict[str, object]:
    return {"url": f"https://host/{filename.replace('+', '%2B')}?a=b", "hashes": {"sha256": digest}}


def test_the_name_of_a_file_is_read_from_its_url() -> None:
    one = {
        "name": "a",
        "version": "1.0+cpu",
        "wheels": [artifact("a-1.0+cpu-py3-none-any.whl", "11")],
        "sdist": artifact("a-1.0+cpu.tar.gz", "22"),
    }

    assert _package(one, _tag_ranks(PYTHON), {}) == Package(
        "a", "1.0+cpu", "11", "a-1.0+cpu-py3-none-any.whl"
    )


def test_a_package_without_a_file_that_fits_is_refused() -> None:
    one = {"name": "a", "version": "1.0", "wheels": [artifact("a-1.0-cp27-cp27m-any.whl", "11")]}

    with pytest.raises(SolveFailedError, match=r"`a==1\.0` cannot be .* no file of it fits"):
        _package(one, _tag_ranks(PYTHON), {})


A = Package("a", "1.0", "11", "a-1.0-py3-none-any.whl")
B = Package("b", "2.0", "22", "b-2.0-py3-none-any.whl")


def test_the_id_of_an_environment_is_its_artifacts_and_its_python() -> None:
    one = Lock((A, B)).env_id(PYTHON)

    assert len(one) == 32
    assert int(one, 16)
    assert Lock((B, A)).env_id(PYTHON) == one
    assert Lock((replace(A, filename="elsewhere.whl"), B)).env_id(PYTHON) == one


@pytest.mark.parametrize(
    "other",
    [
        (A,),
        (A, replace(B, version="2.1")),
        (A, replace(B, sha256="33")),
        (A, replace(B, name="c")),
        (A, B, replace(A, name="c")),
    ],
)
def test_other_artifacts_are_another_environment(other: tuple[Package, ...]) -> None:
    assert Lock(other).env_id(PYTHON) != Lock((A, B)).env_id(PYTHON)


@pytest.mark.parametrize("field", ["implementation", "version", "abi", "platform", "libc"])
def test_another_python_is_another_environment(field: str) -> None:
    other = replace(PYTHON, **{field: "other"})

    assert Lock((A, B)).env_id(other) != Lock((A, B)).env_id(PYTHON)


def test_requirements_that_resolve_alike_share_an_environment(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    python = house.interpreter.python

    one = house.resolve("tiny-a==1.0")
    other = house.resolve("Tiny.A>=0.5", constraints=("tiny-a<2",))

    assert one.env_id(python) == other.env_id(python)


def test_a_lock_survives_its_document() -> None:
    lock = Lock((A, B))

    assert from_document(json.loads(json.dumps(lock.document()))) == lock
