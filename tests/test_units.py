"""What a service manager is given: the units, the user, the directories, the settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from envd import config
from envd.cli import example
from envd.config import Settings
from envd.settings.served import Served

PROJECT = Path(__file__).parent.parent
UNITS = PROJECT / "systemd"
GUIDE = (PROJECT / "docs" / "operating.md").read_text()
# In tenths; the least a unit is exposed is 0.
MOST_EXPOSED = 35

with_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd is not installed"
)


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@with_systemd
@pytest.mark.parametrize("unit", ["envd.service", "envd-gc.service", "envd-gc.timer"])
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, unit: str) -> None:
    programs = Path(sys.executable).parent
    for path in UNITS.glob("envd*.[st]*r*"):
        text = path.read_text().replace("=/usr/bin/env", f"={programs}/env")
        (tmp_path / path.name).write_text(text)

    done = analyze("verify", "--man=no", tmp_path / unit)

    # What systemd does not know it ignores, and says so.
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@with_systemd
@pytest.mark.parametrize("unit", ["envd.service", "envd-gc.service"])
def test_a_unit_is_exposed_little(unit: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", UNITS / unit)

    assert done.returncode == 0, done.stdout
    assert "exposure level" in done.stdout


# What workers and builds call to be confined, and what must be left alone for that.
NEEDED = {
    "unshare", "setns", "clone", "clone3", "mount", "umount2", "pivot_root", "open_tree",
    "move_mount", "mount_setattr", "prctl", "seccomp", "landlock_create_ruleset",
    "landlock_add_rule", "landlock_restrict_self", "capset", "setresuid", "setgroups", "chroot",
    "pidfd_open", "pidfd_send_signal", "memfd_create", "flock", "prlimit64",
}  # fmt: skip
IN_THE_WAY = {
    "RestrictNamespaces", "PrivateUsers", "ProtectKernelTunables", "ProtectKernelLogs",
    "ProtectProc", "ProcSubset", "MemoryDenyWriteExecute", "PrivateNetwork", "RootDirectory",
    "ProtectControlGroups",
}  # fmt: skip


@with_systemd
def test_the_unit_leaves_what_sandboxes_are_made_of() -> None:
    text = (UNITS / "envd.service").read_text()
    settings = {line.partition("=")[0] for line in text.splitlines()}

    assert NEEDED - _allowed() == set()
    assert settings & IN_THE_WAY == set()
    assert "Delegate" in settings


@with_systemd
@pytest.mark.skipif(os.getuid() != 0, reason="only root can do what systemd does")
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no compiler to ask for system calls")
def test_sandboxes_are_as_good_under_the_unit_as_without() -> None:
    numbers = _numbers()
    calls = sorted(numbers[name] for name in _allowed() & set(numbers))
    folder = Path(tempfile.mkdtemp(prefix="envd-unit.", dir="/dev/shm"))
    try:
        folder.chmod(0o755)
        shutil.copytree(PROJECT / "envd" / "run" / "envd_worker", folder / "envd_worker")
        without = _probed(folder, "all")
        under = _probed(folder, json.dumps({"calls": calls, "socket": numbers["socket"]}))
        # The filter is there: nothing can be done with too little.
        few = [number for number in calls if number != numbers["unshare"]]
        starved = _probed(folder, json.dumps({"calls": few, "socket": numbers["socket"]}))
    finally:
        shutil.rmtree(folder)

    assert under == without
    assert not any(starved["namespaces"].values())


def _probed(folder: Path, allowed: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-I", "-B", Path(__file__).parent / "under_unit.py", folder, allowed],
        capture_output=True, text=True, check=True, timeout=60, cwd="/", env={},
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _numbers() -> dict[str, int]:
    """Return the system calls of this machine."""
    done = subprocess.run(
        ["cc", "-dM", "-E", "-"],
        input="#include <sys/syscall.h>\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.findall(r"#define __NR_(\w+) (\d+)", done.stdout)
    return {name: int(number) for name, number in found}


def _allowed() -> set[str]:
    """Return what the filter of the unit names, the members of its groups among it."""
    text = (UNITS / "envd.service").read_text()
    lines = re.findall(r"^SystemCallFilter=(.*)$", text, re.MULTILINE)
    words, found = " ".join(lines).split(), set[str]()
    while words:
        found.add(word := words.pop())
        if word.startswith("@"):
            group = analyze("syscall-filter", word).stdout.splitlines()
            words += [line.strip() for line in group[1:] if line[:1] == " " and "#" not in line]
    return found | {"execve", "exit", "exit_group"}


@with_systemd
def test_the_install_section_fills_an_empty_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (block,) = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    commands = [line[2:] for line in block.splitlines()]
    for name in ("envd", "envctl"):
        (root / "usr" / "bin").mkdir(parents=True, exist_ok=True)
        (root / "usr" / "bin" / name).touch(mode=0o755)

    done = subprocess.run(
        ["bash", "-c", "set -eux\n" + "\n".join(commands)],
        cwd=PROJECT,
        env={"PATH": f"{os.defpath}:/usr/sbin:/sbin", "DESTDIR": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    (user,) = [one for one in (root / "etc" / "passwd").read_text().splitlines() if "envd" in one]
    _, _, uid, gid, *_, home, shell = user.split(":")
    assert (home, shell.rpartition("/")[2]) == ("/var/lib/envd", "nologin")
    state, file = root / "var" / "lib" / "envd", root / "etc" / "envd" / "envd.toml"
    assert _state(state) == (0o700, int(uid), int(gid))
    assert _state(file.parent) == (0o750, 0, int(gid))
    assert _state(file) == (0o640, 0, int(gid))
    wanted = root / "etc" / "systemd" / "system"
    assert (wanted / "multi-user.target.wants" / "envd.service").is_symlink()
    assert (wanted / "timers.target.wants" / "envd-gc.timer").is_symlink()


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


@pytest.mark.slow
def test_the_programs_of_the_install_section_are_built(tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh\n(uv build.*?)```", GUIDE, re.DOTALL)
    script = block.replace(" dist", f" {tmp_path}/dist").replace("/opt/", f"{tmp_path}/")
    script = script.replace("/usr/bin/", f"{tmp_path}/bin/")
    (tmp_path / "bin").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    subprocess.run(
        ["bash", "-c", "set -eu\n" + script],
        cwd=PROJECT, env={**os.environ, "PATH": path}, check=True, timeout=280,
    )  # fmt: skip

    done = subprocess.run(
        [tmp_path / "bin" / "envctl", "--root", tmp_path / "none", "doctor"],
        capture_output=True, text=True, check=False, env={"PATH": path, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# the settings file


def test_the_example_has_every_setting_as_it_is_by_default(tmp_path: Path) -> None:
    text = (UNITS / "envd.toml").read_text()
    file = tmp_path / "envd.toml"

    assert text == example.text()
    file.write_text(text)
    assert config.load(root=tmp_path, file=file, environ={}) == Settings(tmp_path)

    file.write_text(re.sub(r"^#(?=[\[a-z])", "", text, flags=re.MULTILINE))
    found = config.load(root=tmp_path, file=file, environ={})
    (chat,) = found.served
    assert found == Settings(tmp_path, served=(chat,))
    for row in config.fields():
        assert re.search(rf"^#{row.name} = ", text, re.MULTILINE)
    same = [name for name in Served.__slots__ if getattr(chat, name) == getattr(Served(""), name)]
    assert same == ["preload"]


def test_the_settings_of_the_guide_are_settings() -> None:
    names = {row.name for row in config.fields()}
    quoted = re.findall(r"`(?:daemon|workers|http|build|gc)\.([a-z_]+)", GUIDE)

    assert set(quoted) <= names
    for link in re.findall(r"\]\(([^)]+)\)", GUIDE):
        assert (PROJECT / "docs" / link).exists(), link
