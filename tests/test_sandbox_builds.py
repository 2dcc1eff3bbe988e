"""What a build cannot do in a sandbox, tried for real from where its code runs."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envd.errors import LimitReachedError
from envd.events import Line
from envd.lock.uv import Uv
from tests import house as houses
from tests import inmate
from tests import tiny as tinies
from tests.conftest import Envctl, wait_for
from tests.house import House, installed
from tests.inmate import Outside
from tests.tiny import Tiny

_BUILD = (
    "global MODULE; import inmate, json; "
    "MODULE = 'FOUND = %r' % {key: inmate.tried(code) for key, code in "
    "json.load(open('attempts.json')).items()}"
)
_NOTHING = ("ENOENT", "ESRCH", "ECONNREFUSED")
_REFUSED = ("EACCES", "EPERM", "EROFS", "EINVAL")


@pytest.fixture(params=["2", pytest.param("1", marks=pytest.mark.slow)])
def confined(house: House, request: pytest.FixtureRequest) -> House:
    """A house whose builds are in a sandbox, and which has built an environment already."""
    houses.wheel(house.wheels, "other", "1.0")
    return house.with_security(profile="standard", sandbox=request.param)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    with inmate.outside(tmp_path / "outside") as found:
        yield found


def _tier(house: House) -> int:
    return int(house.settings.security.sandbox)


def _sdist(house: House, name: str, attempts: dict[str, str], build: str = _BUILD) -> None:
    files = tinies.source(name, "1.0", build)
    files |= {"inmate.py": inmate.HELPERS, "attempts.json": json.dumps(attempts)}
    houses.sdist(house.wheels, name, "1.0", files)


def _attempts(house: House, outside: Outside, prefix: Path) -> dict[str, str]:
    root = house.root
    names = {
        "locks": "held", "manifests": "environments", "downloads of models": "models",
        "logs": "logs", "records": "specs",
    }  # fmt: skip
    found = outside.attempts(root) | {
        name: f"os.listdir({str(root / folder)!r})" for name, folder in names.items()
    }
    (module,) = prefix.glob("lib/python*/site-packages/other.py")
    found |= {
        "environment": f"read({str(module)!r})",
        "module": f"write({str(module)!r})",
        "new module": f"write({str(module.with_name('more.py'))!r})",
        "wheels": f"write({str(root / 'wheels' / 'new')!r})",
        "manifest": f"read({str(prefix.parent / 'ready.json')!r})",
        "daemon": f"write({str(root / 'daemon.json')!r})",
        "mode of the root": f"os.chmod({str(root)!r}, 0o777)",
        "mode of the manifests": f"os.chmod({str(root / 'environments')!r}, 0o777)",
        "mode of a socket": f"os.chmod({str(root / 'admin.sock')!r}, 0o666)",
    }
    # It may end itself: in one domain of landlock's are all processes of one program.
    return {name: code for name, code in found.items() if name not in {"model", "everybody"}}


@pytest.mark.parametrize("confined", ["2", "1"], indirect=True)
def test_what_is_built_reaches_the_network_and_nothing_else(
    confined: House, outside: Outside
) -> None:
    before = confined.ready(confined.ask("other", name="before")).environment
    (confined.root / "admin.sock").touch(0o600)
    attempts = _attempts(confined, outside, before.prefix)
    mark = Path("/tmp", uuid.uuid4().hex)
    own = {
        "files": "descriptors()",
        "variables": "dict(os.environ)",
        "home": "os.path.expanduser('~')",
        "at home": "write(os.path.expanduser('~/new'))",
        "tmp": f"write({str(mark)!r})",
        "child": "subprocess.run([sys.executable, '-c', 'pass']).returncode",
    }
    _sdist(confined, "prober", attempts | own)
    ready = confined.ready(confined.ask("prober"))
    found = ast.literal_eval(installed(ready, "prober").partition("=")[2].strip())

    assert {found.pop("tcp"), found.pop("udp")} == {11}
    assert outside.got == [b"from inside"] * 2
    _assert_nothing_else(confined, found)
    assert not mark.exists()
    assert (confined.root / "admin.sock").stat().st_mode & 0o777 == 0o600
    assert ready.environment.manifest.sandbox == before.manifest.sandbox == _tier(confined)
    assert installed(replace(ready, environment=before), "other")


def _assert_nothing_else(house: House, found: dict[str, Any]) -> None:
    files, variables = found.pop("files"), found.pop("variables")
    leads = [one for one in files.values() if one.startswith(str(house.root))]
    # Of the root it has open what it builds in; and of the indexes' credentials nothing is left.
    assert not [one for one in leads if "/held/" in one or "/logs/" in one], files
    assert not [one for one in files.values() if "memfd" in one or "socket" in one], files
    assert not [name for name in variables if "TOKEN" in name or name.startswith("ENVD_I")]
    assert found.pop("child") == 0
    home = found.pop("home")
    # The root of this test lies below /tmp.
    assert home == "/build" if _tier(house) == 2 else home.startswith(f"{house.root}/scratch/")
    assert found.pop("at home") == 1
    # The network, which is no way to another process.
    assert found.pop("netlink") == "done"
    assert {name: one for name, one in found.items() if one not in _NOTHING + _REFUSED} == {}


_IMPORTED = """
import json, sys
sys.path.insert(0, {folder!r})
HELPERS = {helpers!r}
exec(HELPERS)
print('FOUND', json.dumps({{key: tried(code) for key, code in {attempts!r}.items()}}))
"""


def test_what_is_imported_once_changes_no_file_and_asks_nobody(
    confined: House, outside: Outside
) -> None:
    attempts = outside.attempts(confined.root) | {
        "own module": "write(__file__)",
        "bytecode": "write(os.path.join(os.path.dirname(__file__), '__pycache__', 'mine'))",
        "new module": "write(os.path.join(os.path.dirname(__file__), 'new.py'))",
        "wheels": f"os.listdir({str(confined.root / 'wheels')!r})",
        "cache": f"os.listdir({str(confined.root / 'cache')!r})",
    }
    text = _IMPORTED.format(folder="/", helpers=inmate.HELPERS, attempts=attempts)
    houses.wheel_file(confined.wheels, "prober", "1.0", module=text)
    ready = confined.ready(confined.ask("prober"))
    lines = [one.text for one in confined.events if isinstance(one, Line)]
    (line,) = [one for one in lines if one.startswith("FOUND ")]
    found = json.loads(line.removeprefix("FOUND "))

    assert outside.got == []
    assert installed(ready, "prober") == text
    # Only for bytecode there is room, and it is there.
    assert found.pop("bytecode") == 1
    assert list(ready.environment.prefix.glob("lib/python*/site-packages/__pycache__/prober.*"))
    for name in ("model", "environment", "module"):
        found.pop(name)
    if _tier(confined) == 1:
        assert found.pop("everybody") == "done"
    assert {name: one for name, one in found.items() if one not in _NOTHING + _REFUSED} == {}


def test_a_python_of_a_virtualenv_elsewhere_can_be_asked(confined: House) -> None:
    """As envd's own is, to lock for other platforms."""
    lines: list[str] = []
    uv = Uv(confined.settings)
    finished = uv.run(["pip", "list", "--python", sys.executable], on_line=lines.append)

    assert finished.status == 0
    assert any(line.startswith("pytest ") for line in lines)


def test_files_are_shared_with_the_cache_all_the_same(confined: House) -> None:
    ready = confined.ready(confined.ask("other"))
    (path,) = ready.environment.prefix.glob("lib/python*/site-packages/other.py")

    assert path.stat().st_nlink > 1
    assert path.stat().st_uid == os.getuid()


def test_a_build_takes_no_more_than_it_may(confined: House) -> None:
    limits = {"memory_limit": 200 << 20, "process_limit": 60, "cpu_limit": 1.5}
    build = replace(confined.settings.build, **limits)  # type: ignore[arg-type]
    confined.settings = replace(confined.settings, build=build)
    _sdist(confined, "forking", {"many": "children(80)"})
    forking = confined.ready(confined.ask("forking"))
    _sdist(confined, "growing", {"much": "len(bytearray(400 << 20))"})
    with pytest.raises(LimitReachedError, match=r"build\.memory_limit"):
        confined.ready(confined.ask("growing"))

    assert "EAGAIN" in installed(forking, "forking")


def test_a_stricter_envd_builds_again_what_a_laxer_one_built(house: House) -> None:
    houses.wheel(house.wheels, "other", "1.0")
    asked = house.ask("other")
    lax = house.ready(asked)
    house.with_security(sandbox="1")
    found = house.environments.find(asked)
    middle = house.ready(asked)
    house.with_security(sandbox="2")
    strict = house.ready(asked)
    house.with_security()

    assert found is None
    assert [one.cached for one in (lax, middle, strict)] == [False] * 3
    assert [one.environment.manifest.sandbox for one in (lax, middle, strict)] == [0, 1, 2]
    assert len({one.environment.id for one in (lax, middle, strict)}) == 1
    again = house.environments.find(asked)
    assert again is not None
    assert again.prefix == strict.environment.prefix


_LEAVING = "import inmate; inmate.left_behind({mark!r}); {then}"


def test_nothing_is_left_of_a_build_that_ended(confined: House, tmp_path: Path) -> None:
    mark = f"left-{tmp_path.name}-{_tier(confined)}"
    _sdist(confined, "leaving", {}, _LEAVING.format(mark=mark, then="pass"))
    confined.ready(confined.ask("leaving"))

    assert not inmate.is_anywhere(mark)


def test_nothing_is_left_of_a_build_whose_envd_is_killed(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    """In namespaces, at once; elsewhere whoever comes next ends it first."""
    mark = f"left-{tmp_path.name}"
    then = "import time; time.sleep(600)"
    sdist = tinies.sdist(tmp_path, "slow", "1.0", _LEAVING.format(mark=mark, then=then))
    with tarfile.open(sdist, "r:gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "slow-1.0" / "inmate.py").write_text(inmate.HELPERS)
    model = tiny.model(tmp_path / "model", "./own/slow-1.0")
    shutil.copytree(tmp_path / "slow-1.0", model / "own" / "slow-1.0")
    process = subprocess.Popen(
        envctl.argv("build", model),
        env=envctl.env | {"ENVD_SECURITY__SANDBOX": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: inmate.is_anywhere(mark), 30)
    finally:
        process.kill()
        process.wait()

    wait_for(lambda: not inmate.is_anywhere(mark), 10)
