"""Installs a lock into a new virtualenv.

uv creates it as well as filling it: `uv venv` takes 0.01 s where virtualenv takes 0.2 to
0.5 s, which is as long as the installation itself, and it serves Python 3.6 to 3.14.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from envd.build.installation import Installation
from envd.errors import IndexUnreachableError, InstallFailedError
from envd.events import Line, OnEvent, Stage
from envd.lock import Lock, Sources, Wheels, wheel_records
from envd.lock.uv import Uv, explanation
from envd.sandbox.bounds import Room, interpreter

_WARMING_S = 300
# Python 3.6 grammar: the environment's own Python runs it.
_WARM = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print("import %s: %s: %s" % (name, type(error).__name__, error))
"""


def create(interpreter: Path, prefix: Path, uv: Uv, on_event: OnEvent) -> None:
    """Make the virtualenv *prefix*, empty, on *interpreter*.

    Raises:
        InstallFailedError: it could not be made.
        CacheFullError: the disk is full.
    """
    # It is to be written into, and nothing beside it.
    prefix.mkdir(parents=True, exist_ok=True)
    _uv(uv.in_rooms(prefix), on_event, ["venv", "--python", str(interpreter), str(prefix)])


def install(lock: Lock, sources: Sources, prefix: Path, uv: Uv, on_event: OnEvent) -> None:
    """Install *lock* into the virtualenv *prefix*, with packages of *sources*.

    About twice a second it is told how far that is, to whoever waits as well.

    Raises:
        InstallFailedError: a package could not be installed.
        IndexUnreachableError: an index did not answer.
        CacheFullError: the disk is full.
    """
    source = prefix / "lock.txt"
    source.write_text(lock.requirements(Wheels(uv.settings.root).path))
    arguments = [
        "pip", "install", "--python", str(prefix / "bin" / "python"),
        "--no-deps", "--no-build", "--require-hashes", "--requirement", str(source),
    ]  # fmt: skip
    uv = _watched(uv.in_rooms(prefix), Installation(lock.packages, uv.cache, prefix), on_event)
    try:
        # What is cached needs no index: asking it again costs ten times the installation.
        _uv(uv, lambda _: None, arguments, sources, offline=True, links=True)
    except IndexUnreachableError:
        _uv(uv, on_event, arguments, sources, links=True)


def warm(
    prefix: Path,
    modules: Sequence[str],
    scratch: Path,
    written: Sequence[Path],
    uv: Uv,
    on_event: OnEvent,
) -> None:
    """Import *modules* once, so that their bytecode is written before the prefix is sealed.

    Importing is 2.8 times faster with it, and workers never write. A module that cannot
    be imported is a line in the log: the model's worker will say it better. What the
    modules write goes to *scratch*. In a sandbox they write nowhere else but in the folders
    *written*, which are for bytecode: files of packages are shared with other environments.

    Raises:
        BuildTimedOutError: the build has no time left.
    """
    on_event(Stage("warming", "importing the packages once"))
    limits, python = uv.limited(), prefix / "bin" / "python"
    uv.start(
        [str(python), "-I", "-c", _WARM, *modules],
        Room((prefix, *interpreter(python, uv.settings)), (scratch, *written)),
        env={"PATH": os.defpath, "HOME": str(scratch), "LANG": "C.UTF-8"},
        cwd=scratch,
        limits=replace(limits, deadline=min(limits.deadline, time.monotonic() + _WARMING_S)),
        on_line=lambda line: on_event(Line(line)),
    )
    uv.check_time()


def modules_of(prefix: Path, names: Collection[str]) -> list[str]:
    """Return the top-level modules that the distributions *names* installed into *prefix*."""
    found = set()
    for site in prefix.glob("lib/python*/site-packages"):
        for name, record in wheel_records.records(site).items():
            if name in names:
                found |= set(_top_level(record))
    return sorted(found)


def _top_level(record: Path) -> Iterator[str]:
    for name in wheel_records.files(record):
        if found := re.fullmatch(r"([A-Za-z]\w*)(?:/__init__)?\.py", name):
            yield found[1]


def _watched(uv: Uv, installation: Installation, on_event: OnEvent) -> Uv:
    """Return *uv* that tells about *installation* while it runs."""
    limits = uv.limited()

    def watch(size: int) -> None:
        limits.watch(size)
        progress = installation.progress(size)
        if uv.held:
            uv.held.tell(progress)
        on_event(progress)

    return replace(uv, limits=replace(limits, watch=watch))


def _uv(
    uv: Uv,
    on_event: OnEvent,
    arguments: list[str],
    sources: Sources | None = None,
    *,
    offline: bool = False,
    links: bool = False,
) -> None:
    finished = uv.run(
        arguments,
        on_line=lambda line: on_event(Line(line)),
        offline=offline,
        sources=sources,
        links=links,
    )
    if finished.status != 0:
        why = explanation(finished)
        found = re.search(r"`([A-Za-z0-9._-]+==[^`\s]+)`", why)
        message = f"the packages could not be installed. {why}"
        raise InstallFailedError(message, package=found[1] if found else None)
