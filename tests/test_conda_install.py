"""Conda packages are installed as they were locked, whatever became of the cache."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from envd import config, process
from envd.build import conda
from envd.errors import (
    BuildInterruptedError,
    IndexUnreachableError,
    InstallFailedError,
    SettingsInvalidError,
)
from envd.lock.rattler import Rattler
from envd.spec.conda_package import CondaPackage
from tests.conda_channel import GREETER, PURE, Channel, File, Link, Package
from tests.conda_forge import CondaForge
from tests.conda_root import FORGE, CondaRoot, files, locked
from tests.conftest import wait_for
from tests.mirror import Mirror, hang, trickle

WORD = Package("word", files={"share/word": "hello\n", "share/again": Link("word")})
# A Python only by name: what is for any Python is installed beside it all the same.
NO_PYTHON = Package(
    "python",
    "3.9.18",
    "0_cpython",
    files={
        "bin/python3.9": File(b"#!/bin/sh\n", is_executable=True),
        "bin/python": Link("python3.9"),
        "etc/where": File(b"/opt/placeholder\n", prefix="/opt/placeholder"),
    },
    noarch="",
)
_WHERE = """
import json, sys, sysconfig
print(json.dumps([sys.version.split()[0], sys.prefix, sysconfig.get_config_var("prefix")]))
"""
_INSTALL = """
import json, sys
from pathlib import Path
from envd import config
from envd.build import conda
from envd.events import ignore
from envd.spec.conda_package import conda_package
from envd.lock.rattler import Rattler

asked = json.loads(sys.argv[1])
packages = [conda_package(one) for one in asked["packages"]]
settings = config.from_document(asked["settings"])
conda.install(packages, Path(asked["prefix"]), Rattler(settings), ignore)
"""


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home that stays empty."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    yield
    assert list(home.iterdir()) == []


@pytest.fixture
def root(tmp_path: Path, mirror: Mirror) -> CondaRoot:
    return CondaRoot.at(tmp_path / "root", mirror)


def start(root: CondaRoot, packages: list[CondaPackage], name: str) -> subprocess.Popen[bytes]:
    """Install *packages* in a process of its own."""
    asked = {
        "packages": [asdict(one) for one in packages],
        "settings": config.document(root.settings),
        "prefix": str(root.settings.root / name),
    }
    return subprocess.Popen([sys.executable, "-c", _INSTALL, json.dumps(asked)])


def assert_nothing_half_made(root: CondaRoot) -> None:
    assert [one.name for one in root.packages.parent.iterdir()] == ["pkgs"]
    # What a killed one has left there is swept by whoever comes next.
    scratch = [one.name for one in (root.settings.root / "scratch").iterdir()]
    assert [one for one in scratch if not process.is_stamp_of_the_dead(one)] == []


def run(program: Path, *arguments: str) -> str:
    argv = [program, *arguments]
    return subprocess.run(argv, env={}, capture_output=True, text=True, check=True).stdout


def test_a_python_runs_with_a_command_of_a_package_and_nothing_is_written_elsewhere(
    conda_forge: CondaForge, channel: Channel, root: CondaRoot, tmp_path: Path
) -> None:
    channel.add(*conda_forge.archives("3.9.18"), GREETER, WORD)
    packages = locked(channel)
    before = set(tmp_path.iterdir())

    prefix = root.install(packages)

    python = conda.python_of(prefix)
    assert python == prefix / "bin" / "python3.9"
    assert run(prefix / "bin/greet") == "hello\n"
    where = json.loads(run(python, "-c", _WHERE))
    assert where == ["3.9.18", str(prefix), str(prefix)]
    assert (prefix / "bin/greet").read_text().startswith(f"#!{prefix}/bin/python3.9\n")
    (built,) = prefix.glob("lib/python3.9/_sysconfigdata*.py")
    assert f"{prefix}/lib" in built.read_text()
    (record,) = prefix.glob("conda-meta/greeter-*.json")
    assert json.loads(record.read_text())["url"] == f"{FORGE}/noarch/greeter-1.0-{PURE}.conda"
    assert " + python 3.9.18 0_cpython (conda-forge)" in root.lines
    assert set(tmp_path.iterdir()) == before
    assert {one.name for one in root.settings.root.iterdir()} == {
        "cache", "env", "held", "scratch"
    }  # fmt: skip
    assert_nothing_half_made(root)


def test_environments_share_files_unless_they_are_to_be_copies(
    channel: Channel, root: CondaRoot
) -> None:
    channel.add(NO_PYTHON, WORD)
    packages = locked(channel)
    word, where = "share/word", "etc/where"

    first, second = (root.install(packages, name) for name in ("first", "second"))
    copies, clones = (
        root.changed("build", link_mode=mode).install(packages, mode) for mode in ("copy", "clone")
    )

    assert (first / word).samefile(second / word)
    assert not (first / where).samefile(second / where)
    for other in (copies, clones):
        assert files(other) == files(first)
        assert not (other / word).samefile(first / word)
    assert (copies / "bin/python").readlink() == Path("python3.9")
    with pytest.raises(SettingsInvalidError, match=r"link_mode.*hardlink"):
        root.changed("build", link_mode="symlink").install(packages, "links")


def test_four_that_begin_at_once_with_an_empty_cache_download_everything_once(
    channel: Channel, mirror: Mirror, root: CondaRoot
) -> None:
    many = [Package(f"p{one}", files={f"share/p{one}": f"{one}\n" * 50_000}) for one in range(8)]
    channel.add(NO_PYTHON, GREETER, WORD, *many)
    packages = locked(channel)

    started = [start(root, packages, f"env{one}") for one in range(4)]

    assert [one.wait(60) for one in started] == [0] * 4
    found = [files(root.settings.root / f"env{one}") for one in range(4)]
    assert found == [found[0]] * 4
    assert {f"share/p{one}" for one in range(8)} <= found[0].keys()
    assert found[0]["share/p7"] == b"7\n" * 50_000 + b"0o100644"
    assert mirror.asked("*.conda") == len(packages)


def test_a_download_that_hangs_holds_up_who_needs_it_alone_and_ends_with_who_wanted_it(
    channel: Channel, mirror: Mirror, root: CondaRoot
) -> None:
    channel.add(NO_PYTHON)
    python = locked(channel)
    channel.add(Package("other"))
    others = locked(channel)
    channel.add(WORD)
    mirror.faults["*/word-*"] = hang
    hanging = start(root, [one for one in locked(channel) if one.name != "other"], "hanging")
    wait_for(lambda: mirror.asked("*/word-*"))

    root.install(python, "cached")
    root.install(others, "uncached")
    waiting = CondaRoot(root.settings)
    with ThreadPoolExecutor() as threads:
        installed = threads.submit(waiting.install, locked(channel), "waiting")
        wait_for(lambda: waiting.lines)
        was_asked, is_hanging = mirror.asked("*/word-*"), hanging.poll() is None
        mirror.faults.clear()
        hanging.kill()
        hanging.wait()
        prefix = installed.result(20)

    assert waiting.lines[0] == "waiting for another build, which fetches `word-1.0-0`"
    assert (was_asked, is_hanging) == (1, True)
    assert (prefix / "share/word").read_text() == "hello\n"
    assert mirror.asked("*.conda") == len(locked(channel)) + 1
    assert_nothing_half_made(root)


def slowly(channel: Channel, mirror: Mirror) -> list[CondaPackage]:
    """Return packages that take half a second to come."""
    many = [Package(f"p{one}", files={f"share/p{one}": f"{one}\n" * 50_000}) for one in range(8)]
    channel.add(NO_PYTHON, GREETER, WORD, *many)
    packages = locked(channel)
    mirror.faults["*.conda"] = trickle(2 * max(one.size for one in packages))
    return packages


def child() -> int | None:
    """Return the process that an installation in this one has started, if there is one now."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for one in found for pid in one.read_text().split()]
    return next(iter(pids), None)


@pytest.mark.parametrize(
    "moment_s",
    [pytest.param(0.1 * one, marks=[] if one == 5 else pytest.mark.slow)
     for one in range(1, 11)],
)  # fmt: skip
def test_what_is_killed_at_any_moment_is_installed_rightly_the_next_time(
    moment_s: float, channel: Channel, mirror: Mirror, root: CondaRoot, tmp_path: Path
) -> None:
    packages = slowly(channel, mirror)
    undisturbed = CondaRoot.at(tmp_path / "undisturbed", mirror).install(packages)
    begun = time.monotonic()

    with ThreadPoolExecutor() as threads:
        killed = threads.submit(CondaRoot(root.settings).install, packages, "killed")
        time.sleep(max(0.0, begun + moment_s - time.monotonic()))
        wait_for(lambda: killed.done() or child(), 10)
        with contextlib.suppress(ProcessLookupError):
            if (pid := child()) is not None:
                os.killpg(pid, signal.SIGKILL)
        error = killed.exception(30)
    again = root.install(packages, "again")

    assert error is None or isinstance(error, BuildInterruptedError)
    assert files(again) == files(undisturbed)
    assert_nothing_half_made(root)


@pytest.mark.parametrize(
    "moment_s",
    [0.2, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.0, 0.4, 0.6, 0.8))],
)
def test_what_a_killed_envd_leaves_is_installed_rightly_the_next_time(
    moment_s: float, channel: Channel, mirror: Mirror, root: CondaRoot, tmp_path: Path
) -> None:
    packages = slowly(channel, mirror)
    undisturbed = CondaRoot.at(tmp_path / "undisturbed", mirror).install(packages)
    mirror.requests.clear()
    killed = start(root, packages, "killed")

    wait_for(lambda: mirror.requests)
    time.sleep(moment_s)
    killed.kill()
    killed.wait()
    again = root.install(packages, "again")

    assert files(again) == files(undisturbed)
    assert_nothing_half_made(root)


def change(path: Path) -> None:
    """Change a byte of *path*, and leave its size and its date as they are."""
    status, content = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes([content[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/bin/false")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "deleted": lambda package: (package / "share/deleted").unlink(),
    "changed": lambda package: change(package / "share/changed"),
    "truncated": lambda package: os.truncate(package / "share/truncated", 1),
    "emptied": lambda package: shutil.rmtree(package / "share"),
    "gone": shutil.rmtree,
    "relinked": lambda package: replace_link(package / "share/link"),
    "unlinked": lambda package: (package / "share/link").unlink(),
    "locked": lambda package: (package / "share/locked").chmod(0o400),
    "unlisted": lambda package: (package / "info/paths.json").unlink(),
    "unnamed": lambda package: os.truncate(package / "info/index.json", 0),
    "uncommanded": lambda package: (package / "info/link.json").unlink(),
    "unsealed": lambda package: (package / "info/envd-seal").unlink(),
    "a_file": lambda package: (shutil.rmtree(package), package.write_text("x")),  # type: ignore[func-returns-value]
}


def test_whatever_is_damaged_in_the_cache_the_next_environment_is_right(
    channel: Channel, mirror: Mirror, root: CondaRoot
) -> None:
    made = [
        Package(
            name,
            build=PURE,
            entry_points=[f"run-{name} = {name}:main"],
            files={f"site-packages/{name}.py": "def main(): ...\n"}
            | {f"share/{name}": f"{name} and more\n", "share/link": Link(name)},
            noarch="python",
        )
        for name in DAMAGE
    ]
    channel.add(NO_PYTHON, *made)
    packages = [replace(one, noarch="python") for one in locked(channel)]
    first = root.install(packages, "first")
    expected = files(first)
    for package, (name, damage) in zip(made, DAMAGE.items(), strict=True):
        assert package.name == name
        damage(root.cached(package))

    second = root.install(packages, "second")

    assert files(second) == expected
    assert mirror.asked("*/python-*") == 1
    assert mirror.asked("*.conda") == 2 * len(packages) - 1


def test_what_is_written_through_one_environment_is_in_no_other_that_follows(
    channel: Channel, mirror: Mirror, root: CondaRoot
) -> None:
    channel.add(NO_PYTHON, WORD)
    packages = locked(channel)
    first = root.install(packages, "first")
    change(first / "share/word")

    second = root.install(packages, "second")

    assert (second / "share/word").read_text() == "hello\n"
    assert mirror.asked("*/word-*") == 2
    assert mirror.asked("*/python-*") == 1


def test_packages_of_one_name_are_not_taken_for_each_other(
    channel: Channel, mirror: Mirror, root: CondaRoot
) -> None:
    channel.add(WORD)
    ours = locked(channel)
    other = Channel(channel.folder.with_name("other"))
    other.add(replace(WORD, files={"share/word": "bonjour\n"}))
    theirs = locked(other, f"{mirror.url}/other")
    assert [one.stem for one in ours] == [one.stem for one in theirs]

    said = [
        (root.install(packages, f"env{number}") / "share/word").read_text()
        for number, packages in enumerate([ours, theirs, ours])
    ]

    assert said == ["hello\n", "bonjour\n", "hello\n"]
    assert mirror.asked("*/word-*") == 2


def test_what_is_cached_is_installed_offline_and_what_is_not_is_named(
    channel: Channel, mirror: Mirror, root: CondaRoot
) -> None:
    channel.add(NO_PYTHON, WORD)
    packages = locked(channel)
    offline = root.changed("index", offline=True)
    with pytest.raises(IndexUnreachableError, match=r"offline.*`python-3\.9\.18.*`word-1\.0-0`"):
        offline.install(packages, "cold")
    root.install(packages, "warm")
    mirror.stop()

    prefix = offline.install(packages, "offline")

    assert (prefix / "share/word").read_text() == "hello\n"
    change(root.cached(WORD) / "share/word")
    with pytest.raises(IndexUnreachableError, match=r"lacks the conda packages `word-1\.0-0`$"):
        offline.install(packages, "damaged")
    mirror.start()


def test_a_channel_in_a_folder_needs_no_network_and_is_checked_as_well(
    channel: Channel, root: CondaRoot
) -> None:
    channel.add(NO_PYTHON, WORD)
    packages = locked(channel, channel.folder.as_uri())
    offline = root.changed("index", offline=True)

    assert (offline.install(packages) / "share/word").read_text() == "hello\n"

    shutil.rmtree(root.packages)
    channel.add(replace(WORD, files={"share/word": "another\n"}))
    with pytest.raises(InstallFailedError, match="not the one that was locked"):
        offline.install(packages, "changed")
    (channel.folder / "noarch" / "word-1.0-0.conda").unlink()
    with pytest.raises(IndexUnreachableError, match="/conda-forge/` does not have it"):
        offline.install(packages, "gone")


def test_no_script_of_a_package_is_run(channel: Channel, root: CondaRoot, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = File(f"#!/bin/sh\ntouch {ran}\n".encode(), is_executable=True)
    scripts = {f"bin/.word-{when}.sh": script for when in ("pre-link", "post-link", "pre-unlink")}
    channel.add(replace(WORD, files=dict(WORD.files) | scripts))

    prefix = root.install(locked(channel))

    assert (prefix / "bin/.word-post-link.sh").exists()
    assert not ran.exists()


def test_the_installer_imports_nothing_that_it_has_no_use_for() -> None:
    # Each of these takes as long as linking a thousand files.
    program = (
        "import sys; from importlib.machinery import SourceFileLoader as Loader; "
        "Loader('installer', sys.argv[1]).load_module(); "
        "print({'asyncio', 'ssl', 'typing', 'traceback', 'rattler.solver'} & {*sys.modules})"
    )
    path = Path(conda.__file__).with_name("conda_installer.py")

    done = subprocess.run(
        [sys.executable, "-I", "-c", program, path], capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"


def test_without_a_python_that_is_said(channel: Channel, root: CondaRoot) -> None:
    channel.add(WORD, GREETER)
    word, greeter = sorted(locked(channel), key=lambda one: one.name != "word")

    with pytest.raises(InstallFailedError, match="bring no Python"):
        conda.python_of(root.install([word]))
    with pytest.raises(InstallFailedError, match="no python version"):
        root.install([word, greeter], "noarch")


def test_the_variables_are_those_that_activating_sets(channel: Channel, root: CondaRoot) -> None:
    scripts = {
        "a.sh": 'export ROOTED="$CONDA_PREFIX/share" FROM_FILE="$FROM_FILE, changed"; UNSET=1',
        "b.sh": "export LINES=$'one\\ntwo' AFTER=\"$ROOTED\"; unset FROM_PACKAGE; echo hi; false",
        "c.sh": "export NEVER=1; exit 3",
        "d.sh": 'export LONG="$(head -c 70000 /dev/zero | tr "\\0" x)"',
        "e.sh": 'export PATH=/nowhere HOME=/nowhere LATIN="$(printf "\\351")"',
        "f.csh": "setenv C shell",
    }
    state = {"env_vars": {"FROM_FILE": "state", "GONE": "***unset***", "a-b": "no name"}}
    channel.add(
        replace(
            WORD,
            files={f"etc/conda/activate.d/{name}": text for name, text in scripts.items()}
            | {
                "etc/conda/env_vars.d/word.json": json.dumps({"FROM_PACKAGE": "1", "GONE": "1"}),
                "etc/conda/env_vars.d/odd.json": "[" * 100_000,
                "conda-meta/state": json.dumps(state),
            },
        )
    )
    prefix = root.install(locked(channel))

    found = conda.variables(prefix, Rattler(root.settings), root.events.append)

    assert found == {
        "CONDA_PREFIX": str(prefix),
        "ROOTED": f"{prefix}/share",
        "FROM_FILE": "state, changed",
        "LINES": "one\ntwo",
        "AFTER": f"{prefix}/share",
    }
    said = "\n".join(root.lines)
    assert "b.sh: hi" in root.lines
    assert "b.sh: activation script b.sh: status 1" in root.lines
    assert "`c.sh` is passed over: it ended with status 3" in said
    assert "`d.sh` is passed over" in said
    assert "odd.json` is passed over" in said
    assert not list((root.settings.root / "scratch").iterdir())
