"""The tests' own conda-forge: its packages are real ones, as rattler sees them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from tests.conda_channel import GREETER, Channel, Package, pack
from tests.conda_forge import SKLEARN, TOOLS, CondaForge
from tests.mirror import Mirror, tamper

# What is used by all tests of conda is tested by them.
pytestmark = pytest.mark.slow

FORGE = "https://conda.anaconda.org/conda-forge"
PYTHONS = ["3.7.16", "3.9.18", "3.11.7"]
WORD = Package("word", files={"share/word": "hello\n"}, suffix=".tar.bz2")
_WHERE = """
import bz2, ctypes, curses, json, lzma, sqlite3, ssl, sys, sysconfig, uuid, venv, zlib
(library, *_) = [one for one in open("/proc/self/maps").read().split() if "libpython" in one]
print(json.dumps(["%d.%d.%d" % sys.version_info[:3], sys.prefix,
                  sysconfig.get_config_var("prefix"), library]))
"""

# It ends before the interpreter would end rattler's threads, which crashes at times.
_RATTLER = """
import asyncio, datetime, json, os, sys, traceback
import rattler
from rattler.networking import AuthenticationMiddleware, MirrorMiddleware, RetryMiddleware


async def main(mirror, cache, specs, platform="linux-64", as_of=None, prefix=None):
    canonical = "https://conda.anaconda.org/conda-forge"
    client = rattler.Client(
        [
            MirrorMiddleware({canonical: [mirror]}),
            RetryMiddleware(1),
            AuthenticationMiddleware(),
        ]
    )
    records = await rattler.solve(
        [rattler.Channel("conda-forge")],
        specs,
        gateway=rattler.Gateway(cache_dir=cache + "/repodata", client=client),
        platforms=[platform, "noarch"],
        exclude_newer=as_of and datetime.datetime.fromisoformat(as_of + "T00:00:00+00:00"),
    )
    if prefix:
        await rattler.install(
            records, prefix, cache_dir=cache + "/packages", client=client, show_progress=False
        )
    return [
        {"name": one.name.normalized, "version": str(one.version), "url": one.url,
         "sha256": one.sha256.hex()}
        for one in records
    ]


try:
    print(json.dumps(asyncio.run(main(**json.loads(sys.argv[1])))), flush=True)
except Exception:
    print(json.dumps(traceback.format_exc()), flush=True)
finally:
    os._exit(0)
"""


def rattler(mirror: Mirror, *specs: str, **more: str) -> Any:
    """Solve, and install where there is a prefix; return the packages, or the traceback."""
    cache = mirror.folder.parent / "cache"
    asked = {"mirror": f"{mirror.url}/conda-forge", "cache": str(cache), "specs": specs} | more
    argv = [sys.executable, "-c", _RATTLER, json.dumps(asked)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def versions(found: list[dict[str, str]]) -> dict[str, str]:
    return {one["name"]: one["version"] for one in found}


def run(prefix: Path, command: str, *arguments: str) -> str:
    argv = [f"{prefix}/bin/{command}", *arguments]
    return subprocess.run(argv, env={}, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("version", PYTHONS)
def test_a_python_runs_where_it_is_installed_with_a_command_of_a_package(
    version: str, conda_forge: CondaForge, channel: Channel, mirror: Mirror, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    channel.add(*conda_forge.archives(version, *TOOLS), GREETER, WORD)

    found = rattler(mirror, f"python={version}", "pip", "greeter", prefix=str(prefix))

    assert versions(found) == {
        "python": version,
        "pip": "22.3.1",
        "setuptools": "65.6.3",
        "wheel": "0.38.4",
        "greeter": "1.0",
        "word": "1.0",
    }
    assert run(prefix, "greet") == "hello\n"
    *where, library = json.loads(run(prefix, "python", "-c", _WHERE))
    assert where == [version, str(prefix), str(prefix)]
    assert Path(library).parent == prefix / "lib"
    listed = [find_uv_bin(), "pip", "list", "--no-config", "--format=json", f"--python={prefix}"]
    names = json.loads(subprocess.run(listed, capture_output=True, check=True).stdout)
    assert [one["name"] for one in names] == ["pip", "setuptools", "wheel"]


@pytest.mark.slow
def test_scikit_learn_of_the_channel_fits_and_predicts(
    conda_forge: CondaForge, channel: Channel, mirror: Mirror, tmp_path: Path
) -> None:
    channel.add(*conda_forge.archives("3.7.16", *SKLEARN))

    rattler(mirror, "python=3.7.16", "scikit-learn", prefix=str(tmp_path / "prefix"))

    program = (
        "from sklearn.linear_model import LinearRegression\n"
        "print(LinearRegression().fit([[1], [2]], [2, 4]).predict([[3]]).round())"
    )
    assert run(tmp_path / "prefix", "python", "-c", program) == "[6.]\n"
    assert run(tmp_path / "prefix", "f2py", "-v") == "1.21.6\n"


@pytest.mark.parametrize(
    ("python", "specs", "as_of"),
    [("3.7.16", ["pip", "scikit-learn=0.22.2.post1"], "2023-02-01"),
     ("3.9.18", ["pip<=23.0.1"], "2026-11-01")],
)  # fmt: skip
def test_what_the_models_ask_for_was_there_when_they_were_logged(
    python: str, specs: list[str], as_of: str, conda_forge: CondaForge, mirror: Mirror,
    channel: Channel,
) -> None:  # fmt: skip
    channel.add(*conda_forge.archives("3.7.16", "3.9.18", *TOOLS, *SKLEARN))

    found = versions(rattler(mirror, f"python={python}", *specs, as_of=as_of))

    wanted = TOOLS if python == "3.9.18" else (*TOOLS, *SKLEARN)
    pinned = {one.name: one.version for one in wanted}
    assert pinned | {"python": python} == {
        name: one for name, one in found.items() if name != "python_abi"
    }


def test_what_was_published_later_is_excluded(channel: Channel, mirror: Mirror) -> None:
    channel.add(
        Package("word", "1.0", published=date(2020, 1, 31)),
        Package("word", "2.0", published=date(2020, 2, 1)),
        Package("word", "3.0", published=date(2024, 1, 1)),
    )

    assert versions(rattler(mirror, "word")) == {"word": "3.0"}
    assert versions(rattler(mirror, "word", as_of="2020-02-02")) == {"word": "2.0"}
    assert versions(rattler(mirror, "word", as_of="2020-02-01")) == {"word": "1.0"}
    assert "Cannot solve" in rattler(mirror, "word", as_of="2019-12-01")


def test_what_a_package_needs_and_forbids_is_heeded(channel: Channel, mirror: Mirror) -> None:
    channel.add(
        Package("word", "1.0"),
        Package("word", "2.0"),
        Package("greeter", "1.0", depends=["word >=1"], constrains=["word <2"]),
    )

    assert versions(rattler(mirror, "greeter")) == {"greeter": "1.0", "word": "1.0"}
    assert "Cannot solve" in rattler(mirror, "greeter", "word=2")


def test_every_archive_is_what_the_repodata_says(
    conda_forge: CondaForge, channel: Channel, mirror: Mirror
) -> None:
    channel.add(*conda_forge.archives("3.9.18", *TOOLS), GREETER, WORD)
    channel.clone("osx-arm64")

    for subdir in ("noarch", "linux-64", "osx-arm64"):
        folder = channel.folder / subdir
        repodata = json.loads((folder / "repodata.json").read_text())
        listed = repodata["packages"] | repodata["packages.conda"]
        assert {one.name for one in folder.iterdir()} == {*listed, "repodata.json"}
        for name, record in listed.items():
            content = (folder / name).read_bytes()
            hashes = [hashlib.new(kind, content).hexdigest() for kind in ("md5", "sha256")]
            assert [record["md5"], record["sha256"], record["size"]] == [*hashes, len(content)]
            assert record["subdir"] == subdir
    # Noon of 2023-08-24, in milliseconds.
    (python,) = channel.records["osx-arm64"].values()
    assert python["timestamp"] == 1692878400000
    on_linux, on_mac = (
        {one["url"]: one["sha256"] for one in rattler(mirror, "python", platform=platform)}
        for platform in ("linux-64", "osx-arm64")
    )
    assert [*on_mac] == [f"{FORGE}/osx-arm64/python-3.9.18-0_cpython.conda"]
    assert [*on_linux] == [f"{FORGE}/linux-64/python-3.9.18-0_cpython.conda"]
    assert {*on_linux.values()}.isdisjoint(on_mac.values())


def test_the_same_packages_have_the_same_bytes_and_are_made_once(
    conda_forge: CondaForge, tmp_path: Path
) -> None:
    made = conda_forge.archives("3.9.18", *TOOLS)
    stamps = [one.path.stat().st_mtime_ns for one in made]

    again = CondaForge(conda_forge.folder).archives("3.9.18", *TOOLS)
    anew = CondaForge(tmp_path / "other").archives("3.9.18", *TOOLS)

    assert again == made
    assert [one.path.stat().st_mtime_ns for one in again] == stamps
    assert [one.record for one in anew] == [one.record for one in made]
    assert [one.path for one in anew] != [one.path for one in made]


def test_processes_that_want_a_package_at_once_get_the_one_that_was_made(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.conda_forge import CondaForge, TOOLS\n"
        "(one,) = CondaForge(Path(sys.argv[1])).archives(TOOLS[2])\n"
        "print(one.record['sha256'], one.path.stat().st_mtime_ns)"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    top = Path(__file__).parents[1]
    started = [subprocess.Popen(argv, cwd=top, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    said = {one.communicate()[0] for one in started}

    assert len(said) == 1
    assert [one.returncode for one in started] == [0, 0]


def test_what_is_tampered_with_is_not_installed(
    channel: Channel, mirror: Mirror, tmp_path: Path
) -> None:
    channel.add(WORD)
    changed = pack(replace(WORD, files={"share/word": "another"}))
    mirror.faults["*/word-*"] = tamper(changed)

    refused = rattler(mirror, "word", prefix=str(tmp_path / "prefix"))
    mirror.faults.clear()
    found = rattler(mirror, "word", prefix=str(tmp_path / "prefix"))

    assert hashlib.sha256(changed).hexdigest() in refused
    assert versions(found) == {"word": "1.0"}
    assert (tmp_path / "prefix/share/word").read_text() == "hello\n"
    assert mirror.asked("*/word-*") >= 2
