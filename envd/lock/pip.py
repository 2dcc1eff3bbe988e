"""Locks a virtualenv spec with uv: one artifact per distribution, chosen as pip chooses.

Build dependencies are resolved first and their versions preferred afterwards, as
MLflow's two installs in a row do: a bare `setuptools` among the requirements keeps the
version that the build dependencies pin.
"""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging import tags, utils

from envd import process
from envd.errors import InstallFailedError, SolveFailedError
from envd.events import Line, OnEvent
from envd.lock.lock import Lock, Package
from envd.lock.uv import Uv, explanation
from envd.process import Finished
from envd.spec import Python, Requirement, Spec


def resolve(spec: Spec, interpreter: Path, uv: Uv, on_event: OnEvent) -> Lock:
    """Resolve *spec* for *interpreter*.

    Raises:
        SolveFailedError: no set of versions satisfies the spec.
        InstallFailedError: a source distribution could not be asked for its metadata.
        IndexUnreachableError: an index did not answer.
        CacheFullError: the disk is full.
    """
    scratch = uv.settings.root / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    # Named by its process, as all scratch is: so it is swept if that is killed.
    with tempfile.TemporaryDirectory(prefix=f"{process.stamp()}.lock.", dir=scratch) as folder:
        work = Path(folder)
        output = work / "pylock.toml"
        _write(work / "constraints.txt", spec.constraints)
        build = _compile(spec.build, output, interpreter, uv, on_event)
        main = _compile(spec.requirements, output, interpreter, uv, on_event)
    # One name may stand there several times, each time under another marker.
    allowed: dict[str, tuple[str, ...]] = {}
    for one in (*spec.build, *spec.requirements, *spec.constraints):
        allowed[one.name] = allowed.get(one.name, ()) + one.hashes
    ranks = _tag_ranks(spec.python)
    chosen = build | main
    return Lock(tuple(sorted(_package(one, ranks, allowed) for one in chosen.values())))


def _write(path: Path, requirements: Iterable[Requirement]) -> None:
    path.write_text("".join(f"{one.text}\n" for one in requirements))


def _compile(
    requirements: Iterable[Requirement],
    output: Path,
    interpreter: Path,
    uv: Uv,
    on_event: OnEvent,
) -> dict[str, dict[str, Any]]:
    """Resolve *requirements*, preferring the versions *output* already holds."""
    source = output.with_name("requirements.txt")
    constraints = output.with_name("constraints.txt")
    _write(source, requirements)
    finished = uv.run(
        [
            "pip", "compile", str(source), "--constraints", str(constraints),
            "--python", str(interpreter), "--format", "pylock.toml", "--output-file", str(output),
            "--quiet", "--no-header",
        ],
        on_line=lambda line: on_event(Line(line)),
    )  # fmt: skip
    if finished.status != 0:
        raise _failure(finished, requirements)
    packages = tomllib.loads(output.read_text()).get("packages", [])
    return {one["name"]: one for one in packages}


def _failure(finished: Finished, requirements: Iterable[Requirement]) -> Exception:
    why = explanation(finished)
    asked = ", ".join(one.text for one in requirements)
    if "No solution found" in why or "not found in the" in why:
        message = f"no set of packages satisfies the model's requirements. {why}"
        return SolveFailedError(message, requirements=asked)
    message = f"the model's requirements could not be resolved. {why}"
    return InstallFailedError(message, requirements=asked)


def _package(
    one: Mapping[str, Any], ranks: Mapping[tags.Tag, int], allowed: Mapping[str, tuple[str, ...]]
) -> Package:
    name, hashes = one["name"], allowed.get(one["name"], ())
    ranked = [
        (rank, _filename(wheel), wheel["hashes"]["sha256"])
        for wheel in one.get("wheels", ())
        if (rank := _rank(_filename(wheel), ranks)) is not None
    ]
    if sdist := one.get("sdist"):
        ranked.append((len(ranks), _filename(sdist), sdist["hashes"]["sha256"]))
    fitting = [found for found in ranked if not hashes or f"sha256:{found[2]}" in hashes]
    if not fitting:
        why = "none of its files has a hash the model allows" if ranked else "no file of it fits"
        message = f"`{name}=={one.get('version')}` cannot be installed on this Python: {why}"
        raise SolveFailedError(message, package=name)
    _, filename, sha256 = min(fitting)
    return Package(name, one["version"], sha256, filename)


def _filename(artifact: Mapping[str, Any]) -> str:
    place = artifact.get("name") or artifact.get("url") or artifact.get("path") or ""
    return unquote(urlsplit(place).path.rpartition("/")[2])


def _rank(filename: str, ranks: Mapping[tags.Tag, int]) -> int | None:
    _, _, _, wheel_tags = utils.parse_wheel_filename(filename)
    return min((ranks[tag] for tag in wheel_tags if tag in ranks), default=None)


def _tag_ranks(python: Python) -> dict[tags.Tag, int]:
    """Return the tags *python* accepts with their rank, the best first (PEP 425)."""
    # The ABI of CPython 3.7 is called cpython-37m in its files and cp37m in wheels.
    abi = "cp" + python.abi.removeprefix("cpython-").split("-")[0]
    platforms = list(tags.platform_tags())
    supported = [
        *tags.cpython_tags(python.release[:2], [abi], platforms),
        *tags.compatible_tags(python.release[:2], "cp{}{}".format(*python.release), platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(supported)))}
