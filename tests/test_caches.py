"""The caches: what nothing uses can go, what goes comes again, and no build notices."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from uv import find_uv_bin

from envd import config, durable, held, model
from envd.environments.environments import Environments
from envd.model.location import lock_of
from envd.store import Environment
from envd.store.caches import Caches, Download, unused
from envd.store.layout import Layout
from envd.store.uvcache import UvCache
from tests.conftest import one_python
from tests.house import Repository
from tests.tiny import Tiny, sdist, tree

HOUR = 3600.0


class Root:
    """A root, and what its environments leave in its caches."""

    def __init__(self, folder: Path, tiny: Tiny, **more: str) -> None:
        self.path = folder / "root"
        self._folder, self._tiny = folder, tiny
        # No setuptools beside what is asked for.
        environ = tiny.settings | {"ENVD_RESOLVE__REPAIR": "false"} | more
        settings = config.load(root=self.path, environ=environ)
        self.environments = Environments(settings)
        self.layout = Layout(self.path)
        self.caches = Caches(self.layout)

    def build(self, *requirements: str) -> Environment:
        path = self._folder / "-".join(requirements).replace("=", "")
        if not path.exists():
            self._tiny.model(path, *requirements)
        asked = self.environments.ask(model.read(path))
        return self.environments.ready(asked).environment

    def remove(self, environment: Environment) -> None:
        durable.remove_tree(self.layout.environment(environment.id), self.layout.trash)

    def unused(self, *staying: Environment, grace_s: float = 0.0) -> list[Download]:
        return unused(
            self.caches.downloads(),
            [package for one in staying for package in one.manifest.lock.packages],
            locked=(),
            grace_s=grace_s,
            models_s=HOUR,
        )

    def subjects(self) -> list[str]:
        return sorted(one.subject for one in self.caches.downloads() if one.kind == "uv")


@pytest.fixture(autouse=True)
def _one_python(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in one_python(tools).items():
        monkeypatch.setenv(name, text)


@pytest.fixture
def root(tmp_path: Path, tiny: Tiny) -> Root:
    return Root(tmp_path, tiny)


def imports(environment: Environment, name: str = "tiny_a") -> str:
    program = f"import {name}; print({name}.VERSION)"
    return subprocess.check_output([environment.python, "-I", "-c", program], text=True).strip()


def test_what_no_environment_uses_goes_and_comes_again(root: Root) -> None:
    stays, goes = root.build("tiny-a==1.0"), root.build("tiny-a==2.0", "tiny-b")
    root.remove(goes)

    doomed = root.unused(stays)
    evicted = root.caches.evict(doomed)

    assert {one.kind for one in doomed} == {"uv", "bytecode"}
    assert {one.subject for one in doomed if one.kind == "uv"} == {"tiny-a==2", "tiny-b==1"}
    assert evicted.left == ()
    assert evicted.freed == sum(one.size for one in doomed) > 0
    assert not any(one.path.exists() for one in doomed)
    assert root.subjects() == ["tiny-a==1"]
    assert imports(stays) == "1.0"
    again = root.build("tiny-a==2.0", "tiny-b")
    assert again.id == goes.id
    assert imports(again) == "2.0"
    assert root.unused() == []


def test_what_only_the_trash_uses_goes(root: Root) -> None:
    stays, goes = root.build("tiny-a==1.0"), root.build("tiny-b")

    assert root.unused(stays, goes) == []
    durable.discard(root.layout.environment(goes.id), root.layout.trash)
    doomed = root.unused(stays)

    assert {one.subject for one in doomed if one.kind == "uv"} == {"tiny-b==1"}
    assert len(doomed) == 2


def test_what_is_young_or_linked_stays(root: Root) -> None:
    found = root.build("tiny-a")
    (archive,) = [one for one in root.caches.downloads() if one.kind == "uv"]

    assert 0 < archive.linked < archive.size
    root.remove(found)
    assert root.unused(grace_s=HOUR) == []
    later = Caches(root.layout, lambda: time.time() + HOUR)
    assert len(unused(later.downloads(), (), locked=(), grace_s=HOUR, models_s=HOUR)) == 2


@pytest.mark.parametrize("mode", ["copy", "symlink"])
def test_without_hardlinks_the_locks_say_what_is_used(
    tmp_path: Path, tiny: Tiny, mode: str
) -> None:
    root = Root(tmp_path, tiny, ENVD_BUILD__LINK_MODE=mode)
    stays, goes = root.build("tiny-a==1.0"), root.build("tiny-a==2.0")
    root.remove(goes)

    root.caches.evict(root.unused(stays))

    assert root.subjects() == ["tiny-a==1"]
    assert imports(stays) == "1.0"
    assert imports(root.build("tiny-a==2.0")) == "2.0"


def test_nothing_of_uv_goes_while_an_installer_runs(
    root: Root, tmp_path: Path, uv: Callable[..., subprocess.Popen[str]]
) -> None:
    root.remove(root.build("tiny-a"))
    sdist(tmp_path, "tiny-slow", "1.0", "time.sleep(0.7)")
    doomed = root.unused()
    installer = uv("tiny-slow", "--find-links", str(tmp_path))
    held = root.path / "cache" / "uv" / ".lock"
    while "READ" not in _locks(held):
        time.sleep(0.01)

    evicted = root.caches.evict(doomed)

    assert {one.kind for one in evicted.left} == {"uv"}
    assert root.subjects().count("tiny-a==2") == 1
    assert installer.communicate()[0].count("Installed 1 package") == 1
    assert root.caches.evict(list(evicted.left)).left == ()
    assert "tiny-a==2" not in root.subjects()


def test_an_installer_waits_for_an_eviction(
    root: Root, uv: Callable[..., subprocess.Popen[str]]
) -> None:
    root.build("tiny-a")
    with (root.path / "cache" / "uv" / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        installer = uv("tiny-b")
        time.sleep(0.5)
        is_waiting = installer.poll() is None

    assert is_waiting
    assert "Installed 1 package" in installer.communicate()[0]


def test_what_has_found_a_user_since_stays(root: Root) -> None:
    root.remove(root.build("tiny-a"))
    doomed = [one for one in root.unused() if one.kind == "uv"]
    found = root.build("tiny-a")

    evicted = root.caches.evict(doomed)

    assert evicted.freed == 0
    assert list(evicted.left) == doomed
    assert imports(found) == "2.0"


def test_an_archive_that_is_gone_is_forgotten(root: Root) -> None:
    found, other = root.build("tiny-a"), root.build("tiny-b")
    root.remove(found)
    root.remove(other)
    lost, rest = [one for one in root.unused() if one.kind == "uv"]
    shutil.rmtree(lost.path)

    root.caches.evict([rest])

    assert not list((root.path / "cache" / "uv").glob("wheels-v*/**/*.rev"))
    assert imports(root.build("tiny-a")) == "2.0"
    assert imports(root.build("tiny-b"), "tiny_b") == "1.0"


def test_references_to_archives_that_stay_stay(tmp_path: Path) -> None:
    cache = UvCache(tmp_path)
    names = ["goes", "3p3OBpR0Q3PIACTr", "another-of_21_letters"]
    for name in names:
        (tmp_path / "archive-v0" / name).mkdir(parents=True)
    wheels = tmp_path / "wheels-v8" / "pypi"
    wheels.mkdir(parents=True)
    for number, name in enumerate([*names, "gone", ""]):
        (wheels / f"{number}.rev").write_bytes(b"\x95\xb0a" + name.encode() + b"b\x91")
        (wheels / f"{number}.http").write_bytes(name.encode())
        (wheels / f"{number}.msgpack").write_bytes(b"")
        (wheels / f"{number}").symlink_to(tmp_path / "archive-v0" / (name or "none"))

    cache.forget([tmp_path / "archive-v0" / "goes"])

    kept = [f"{one}{suffix}" for one in (1, 2) for suffix in ("", ".http", ".msgpack", ".rev")]
    rest = [f"{one}.msgpack" for one in (0, 3, 4)]
    assert sorted(one.name for one in wheels.iterdir()) == sorted(kept + rest)


@pytest.mark.parametrize("kind", ["eio", "kill"])
def test_an_eviction_that_fails_halfway_harms_nobody(root: Root, kind: str) -> None:
    root.remove(root.build("tiny-a"))
    program = textwrap.dedent(f"""
        import pathlib
        from envd.store.caches import Caches, unused
        from envd.store.layout import Layout
        caches = Caches(Layout(pathlib.Path({str(root.path)!r})))
        doomed = unused(caches.downloads(), (), locked=(), grace_s=0, models_s=0)
        doomed = [one for one in doomed if one.kind == "uv"]
        print(caches.evict(doomed).freed)
    """)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"ENVD_FAILPOINT": f"gc.evict:{kind}", "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stdout) == ((0, "0\n") if kind == "eio" else (-9, ""))
    assert root.subjects() == ["tiny-a==2"]
    assert imports(root.build("tiny-a")) == "2.0"


def test_environments_come_and_go_beside_evictions(root: Root) -> None:
    names = ["tiny-a==1.0", "tiny-a==2.0", "tiny-b"]
    for name in names:
        root.build(name)
    done = threading.Event()
    failures: list[BaseException] = []

    def evict() -> None:
        try:
            while not done.is_set():
                root.caches.evict(root.unused())
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    evicting = threading.Thread(target=evict)
    evicting.start()
    try:
        for name in names:
            found = root.build(name)
            assert imports(found, name[:6].replace("-", "_"))
            root.remove(found)
    finally:
        done.set()
        evicting.join()

    assert failures == []


def test_sources_repositories_and_leftovers_go(
    root: Root, tmp_path: Path, uv: Callable[..., subprocess.Popen[str]]
) -> None:
    wheels = tmp_path / "sources"
    wheels.mkdir()
    sdist(wheels, "tiny-s", "1.0")
    repository = Repository(tmp_path / "repository")
    tree(repository.folder, "tiny-g", "1.0")
    commit = repository.commit()
    wanted = ("tiny-s", f"tiny-g @ {repository.url}@{commit}", "--find-links", str(wheels))
    assert "Installed 2 packages" in uv(*wanted).communicate()[0]
    left = root.path / "cache" / "uv" / "builds-v0" / ".tmpabc" / "bin"
    left.mkdir(parents=True)
    (left / "python").write_text("text")

    doomed = [one for one in root.unused() if not one.subject]
    evicted = root.caches.evict(doomed)

    kinds = {one.path.relative_to(root.path / "cache" / "uv").parts[0] for one in doomed}
    assert {kind.partition("-")[0] for kind in kinds} == {"sdists", "git", "builds"}
    assert evicted.left == ()
    assert root.subjects() == ["tiny-g==1", "tiny-s==1"]
    assert "Installed 2 packages" in uv(*wanted).communicate()[0]


def test_a_kept_wheel_stays_while_a_lock_names_it(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "sources").mkdir()
    sdist(tmp_path / "sources", "tiny-s", "1.0", "global MODULE; MODULE = 'VERSION = 7'")
    links = f"{tiny.wheels},{tmp_path / 'sources'}"
    root = Root(tmp_path, tiny, ENVD_INDEX__FIND_LINKS=links)
    found = root.build("tiny-s")
    (kept,) = [one for one in found.manifest.lock.packages if one.origin == "kept"]
    root.remove(found)
    downloads = root.caches.downloads()

    def wheels(locked: set[str]) -> list[Download]:
        doomed = unused(downloads, (), locked=locked, grace_s=0, models_s=0)
        return [one for one in doomed if one.kind == "wheel"]

    assert wheels({kept.sha256}) == []
    (doomed,) = wheels(set())
    root.caches.evict([doomed])

    assert doomed.subject == kept.sha256
    assert list((root.path / "wheels").rglob("*.*")) == []
    assert imports(root.build("tiny-s"), "tiny_s") == "7"


def test_a_model_goes_when_nobody_asks_for_it_any_more(root: Root) -> None:
    old, fresh, fetched, renewed = (_download(root, age) for age in (99, 1, 99, 99))
    downloads = root.caches.downloads()

    doomed = unused(downloads, (), locked=(), grace_s=0, models_s=HOUR)
    os.utime(renewed / "current.json")
    with held.exclusively(lock_of(fetched), lambda _: None):
        evicted = root.caches.evict(doomed)

    assert {one.path for one in doomed} == {old, fetched, renewed}
    assert {one.path for one in evicted.left} == {fetched, renewed}
    assert evicted.freed == next(one.size for one in downloads if one.path == old) > 1000
    assert not old.exists()
    assert fresh.exists()


def test_a_changed_file_is_found_and_does_not_come_again(root: Root) -> None:
    found, other = root.build("tiny-a"), root.build("tiny-b")
    module = next(found.prefix.glob("lib/python*/site-packages/tiny_a.py"))
    compiled = next(found.prefix.glob("lib/python*/site-packages/__pycache__/tiny_a.*"))
    module.write_text("VERSION = 'poison'\n")
    inodes = [(one.stat().st_dev, one.stat().st_ino) for one in (module, compiled)]

    holding = root.caches.holding(inodes)
    root.remove(found)
    evicted = root.caches.evict(holding)

    assert [(one.kind, one.linked > 0) for one in holding] == [("uv", True), ("bytecode", True)]
    assert evicted.left == ()
    assert imports(root.build("tiny-a")) == "2.0"
    assert imports(other, "tiny_b") == "1.0"


def test_every_byte_is_counted_once(root: Root) -> None:
    root.remove(root.build("tiny-a"))
    found = root.build("tiny-b")
    twice = root.path / "cache" / "uv" / "git-v9"
    for name in ("db", "checkouts"):
        (twice / name / "digest").mkdir(parents=True)
    (twice / "db" / "digest" / "pack").write_bytes(bytes(1000))
    (twice / "checkouts" / "digest" / "pack").hardlink_to(twice / "db" / "digest" / "pack")
    (root.path / "scratch").mkdir(exist_ok=True)
    (root.path / "scratch" / "file").write_bytes(bytes(500))

    downloads = root.caches.downloads()

    inodes = {
        status.st_ino: status.st_size
        for path in root.path.rglob("*")
        if not path.is_dir() or path.is_symlink()
        if (status := path.lstat()) and path.relative_to(root.path).parts[0] != "environments"
    }
    assert sum(one.size for one in downloads) + root.caches.other_bytes() == sum(inodes.values())
    assert [one.size for one in downloads if "git-v9" in one.path.parts] == [1000, 0]
    assert {one.linked for one in downloads if "git-v9" in one.path.parts} == {0}
    assert {one.subject for one in downloads if one.linked and one.kind == "uv"} == {"tiny-b==1"}
    assert imports(found, "tiny_b") == "1.0"


def test_rubbish_in_the_caches_is_survived(tmp_path: Path, tiny: Tiny) -> None:
    root = Root(tmp_path, tiny)
    assert root.caches.downloads() == []
    assert root.caches.evict([]).freed == 0
    for name in (
        "cache/uv/archive-v0/half/a.dist-info/METADATA/x", "cache/uv/sdists-v11", "cache/bytecode",
        "cache/uv/wheels-v8/a.rev", "models/file", "wheels/file", "wheels/made/a.json", "trash",
    ):  # fmt: skip
        (root.path / name).parent.mkdir(parents=True, exist_ok=True)
        (root.path / name).write_text("[]")
    (root.path / "cache/uv/archive-v0/loop").symlink_to("loop")
    found = root.unused()

    evicted = root.caches.evict(found)

    assert found
    assert evicted.freed == 0
    assert root.caches.other_bytes() > 0


@pytest.fixture
def uv(root: Root, tiny: Tiny, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start installers on the cache of the root."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        folder = tmp_path / f"target{len(started)}"
        argv = [
            find_uv_bin(), "pip", "install", "--no-config", "--no-index", "--no-deps",
            "--find-links", str(tiny.wheels), "--python", sys.executable,
            "--target", str(folder), *arguments,
        ]  # fmt: skip
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "UV_CACHE_DIR": str(root.path / "cache" / "uv"),
        }
        started.append(
            subprocess.Popen(
                argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        return started[-1]

    yield start
    for one in started:
        one.wait()


def _locks(path: Path) -> str:
    inode = path.stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return "\n".join(line for line in lines if f":{inode} " in line)


def _download(root: Root, age_h: float) -> Path:
    """Make what a download of a model leaves, asked for *age_h* hours ago."""
    home = root.path / "models" / os.urandom(8).hex()
    (home / "attempt").mkdir(parents=True)
    (home / "attempt" / "model.pkl").write_bytes(bytes(1000))
    (home / "current.json").write_text(json.dumps({"attempt": "attempt"}))
    moment = time.time() - (age_h * HOUR if age_h > 1 else 0)
    os.utime(home / "current.json", (moment, moment))
    return home
