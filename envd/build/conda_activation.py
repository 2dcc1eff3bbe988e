"""Finds the variables that activating a conda environment sets.

They are found once, when it is built, so that no shell runs when a worker starts. The order
is conda's (conda/activate.py): `etc/conda/env_vars.d`, `conda-meta/state`, then the scripts
of `etc/conda/activate.d`, each of which sees what those before it have set.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from envd import process
from envd.events import Line, OnEvent
from envd.lock.rattler import Rattler
from envd.sandbox.bounds import Room
from envd.scratch import scratch

_PATIENCE_S = 30
# In all, in bytes; a process can be given no more than 128 KiB in one text.
_LONGEST = 1 << 16
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# What the shell sets for itself, and what every worker is given.
_OTHERS = {
    process.WORK, "_", "SHLVL", "PWD", "OLDPWD", "PATH", "HOME", "TMPDIR", "LANG",
}  # fmt: skip
# How conda-meta/state says that a variable of a file before it is not set.
_UNSET = "***unset***"


def variables(prefix: Path, rattler: Rattler, on_event: OnEvent) -> dict[str, str]:
    """Return the variables that activating *prefix* sets; its scripts run for that.

    A file that cannot be read and a script that fails are lines in the log; a script that
    does not come to its end counts for nothing, and so does one that sets more than 64 KiB.

    Raises:
        BuildTimedOutError: the build has no time left.
    """
    always = {"CONDA_PREFIX": str(prefix)}
    found = always | dict(_of_files(prefix, on_event))
    scripts = sorted((prefix / "etc" / "conda" / "activate.d").glob("*.sh"))
    for script in scripts:
        with scratch(rattler.settings.root, "conda") as home:
            found = _after(script, found | always, prefix, home, rattler, on_event)
        rattler.check_time()
    return found | always


def _of_files(prefix: Path, on_event: OnEvent) -> Iterator[tuple[str, str]]:
    """Yield what the files of packages set, and then what `conda env config vars` has set."""
    found: dict[str, str] = {}
    for path in sorted((prefix / "etc" / "conda" / "env_vars.d").glob("*.json")):
        found |= _texts(_read(path, on_event))
    found |= _texts(_read(prefix / "conda-meta" / "state", on_event).get("env_vars"))
    yield from ((name, value) for name, value in found.items() if value != _UNSET)


def _read(path: Path, on_event: OnEvent) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_LONGEST))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        on_event(Line(f"`{path}` is passed over: {error}"))
        return {}
    return document if isinstance(document, dict) else {}


def _texts(given: object) -> dict[str, str]:
    """Return what of *given* a process can be given."""
    items = given.items() if isinstance(given, dict) else ()
    return {
        name: value
        for name, value in items
        if isinstance(value, str) and _NAME.fullmatch(name) and "\0" not in value
    }


def _after(
    script: Path,
    before: Mapping[str, str],
    prefix: Path,
    home: Path,
    rattler: Rattler,
    on_event: OnEvent,
) -> dict[str, str]:
    """Return the variables *before*, as they are after *script*."""
    name = script.name
    limits = rattler.limited()
    descriptor = os.memfd_create("variables")
    try:
        finished = rattler.start(
            _argv(script, descriptor),
            Room((prefix,), (home,)),
            env={
                **before,
                "PATH": f"{prefix / 'bin'}:{os.defpath}",
                "HOME": str(home),
                "TMPDIR": str(home),
                "LANG": "C.UTF-8",
            },
            cwd=home,
            limits=replace(limits, deadline=min(limits.deadline, time.monotonic() + _PATIENCE_S)),
            on_line=lambda line: on_event(Line(f"{name}: {line}")),
            given=[descriptor],
        )
        said = os.pread(descriptor, _LONGEST + 1, 0)
    finally:
        os.close(descriptor)
    if not said or len(said) > _LONGEST:
        why = f"it ended with status {finished.status}" if not said else "it sets too much"
        on_event(Line(f"the activation script `{name}` is passed over: {why}"))
        return dict(before)
    return dict(_set_ones(said))


def _argv(script: Path, descriptor: int) -> list[str]:
    """Return what runs *script*, and writes the variables there are then to *descriptor*."""
    shell = shutil.which("bash", path=os.defpath) or "/bin/sh"
    env = shutil.which("env", path=os.defpath) or "/usr/bin/env"
    quoted, name = shlex.quote(str(script)), shlex.quote(script.name)
    # As conda does it: nothing that fails within it ends it.
    run = f". {quoted} || echo activation script {name}: status $?"
    return [shell, "-c", f"{run}\nexec {env} -0 >/proc/self/fd/{descriptor}"]


def _set_ones(said: bytes) -> Iterator[tuple[str, str]]:
    for one in said.split(b"\0"):
        try:
            name, _, value = one.decode().partition("=")
        except UnicodeDecodeError:
            continue
        if name not in _OTHERS and _NAME.fullmatch(name):
            yield name, value
