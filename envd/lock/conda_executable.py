"""Solves conda packages with a conda, mamba or micromamba, which a site may prefer.

conda-lock asks it as ever, and it goes by its own configuration (`.condarc`) besides what
envd's settings say.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from envd.errors import (
    EnvdError,
    IndexUnreachableError,
    NotLockedOfflineError,
    SettingsInvalidError,
    SolveFailedError,
)
from envd.lock import conda_lock_api
from envd.lock.conda import CondaQuestion
from envd.lock.conda_explanation import cut
from envd.lock.conda_lock_api import Action, Virtual
from envd.secrets import without_token
from envd.spec import channels
from envd.spec.conda_package import CondaPackage
from envd.spec.mirrors import channel_url

# What taking an answer apart ends in that is none; RuntimeError is conda-lock's.
_NO_ANSWER = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)
_UNREACHABLE = ("HTTP", "SSL", "Proxy", "Connection", "UnavailableInvalidChannel", "Offline")


def solve(
    exe: str,
    question: CondaQuestion,
    places: Mapping[str, Sequence[str]],
    platform: str,
    virtual: Virtual,
) -> list[CondaPackage]:
    """Return the packages of *question* for *platform*, which has the *virtual* ones.

    Raises:
        SolveFailedError: there are none.
        IndexUnreachableError: a channel does not answer.
        NotLockedOfflineError: it would have to ask a channel.
        SettingsInvalidError: *exe* is not there, does not work, or is none of these; or it cannot
            be told of a mirror.
    """
    if question.offline:
        message = (
            "envd is offline (`index.offline`), and `conda.exe` asks the channels every time; "
            "lock it while there is a network"
        )
        raise NotLockedOfflineError(message)
    os.environ["CONDARC"] = str(_configuration(question.channels, places))
    try:
        # What it prints on failure has the channels in it, with what is secret in them.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = conda_lock_api.with_executable(exe, question, platform, virtual)
        # The platform itself is among them with some.
        real = [one for one in found if not one["name"].startswith("__")]
        return [_package(one, question.channels) for one in real]
    except subprocess.CalledProcessError as error:
        raise _failure(exe, error.stdout, platform) from error
    except OSError as error:
        message = f"`{exe}` (`conda.exe`) cannot be run: {error.strerror or error}"
        raise SettingsInvalidError(message, setting="conda.exe", file=exe) from error
    except _NO_ANSWER as error:
        message = (
            f"`{exe}` (`conda.exe`) does not answer as a conda does; give a conda, mamba or "
            "micromamba, or none: then rattler solves"
        )
        raise SettingsInvalidError(message, setting="conda.exe", file=exe) from error


def _configuration(asked: Iterable[str], places: Mapping[str, Sequence[str]]) -> Path:
    """Write what the settings say of channels where conda and its like look for it.

    Not into their arguments or variables: those are seen by others.
    """
    found: dict[str, Any] = {"channel_priority": "strict"}
    for name in asked:
        url = channel_url(name)
        place = places[f"{url}noarch/"][0].removesuffix("noarch/")
        if place == url:
            continue
        if "://" not in name and place.endswith(f"/{name}/"):
            found.setdefault("custom_channels", {})[name] = place.removesuffix(f"/{name}/")
        else:
            message = (
                f"`conda.mirrors`: with `conda.exe` only channels with a name have mirrors, whose "
                f"URLs end in it; that of `{name}` does not"
            )
            raise SettingsInvalidError(message, setting="conda.mirrors")
    path = Path(tempfile.mkdtemp()) / "condarc"
    path.write_text(yaml.safe_dump(found))
    return path


def _package(action: Action, asked: Iterable[str]) -> CondaPackage:
    name = action["name"]
    if not action.get("sha256"):
        message = f"the channel of `{name}` has no sha256 of it; take it from another"
        raise SolveFailedError(message, packages=name)
    above, subdir, file = action["url"].rsplit("/", 2)
    return CondaPackage(
        name=name,
        version=action["version"],
        build=action.get("build") or action["build_string"],
        build_number=action["build_number"],
        subdir=subdir,
        url=f"{_canonical(above, asked)}{subdir}/{file}",
        sha256=action["sha256"],
        md5=action.get("md5") or "",
        size=action.get("size") or 0,
        noarch=action.get("noarch") or "" if subdir == "noarch" else "",
        depends=tuple(action.get("depends") or ()),
        constrains=tuple(action.get("constrains") or ()),
        site_packages=action.get("python_site_packages_path") or "",
    )


def _canonical(url: str, asked: Iterable[str]) -> str:
    """Return what the channel goes by that is at *url*, by the configuration of the machine."""
    for one in asked:
        if "://" not in one and url.endswith(f"/{one}"):
            return channel_url(one)
    return channel_url(channels.parse(url).name)


def _failure(exe: str, output: str, platform: str) -> EnvdError:
    try:
        answer = json.loads(output)
    except ValueError:
        answer = None
    found = answer if isinstance(answer, dict) else {}
    kind, said = str(found.get("exception_name", "")), str(found.get("message", ""))
    names = _names(found)
    if names or kind == "UnsatisfiableError" or found.get("solver_problems"):
        why = _explained(found) or said
        message = f"no set of conda packages satisfies what is asked for on {platform}: {cut(why)}"
        return SolveFailedError(message, packages=", ".join(names), platform=platform)
    shown = cut(without_token(said.partition("\n\n")[0] or kind or "it says nothing"))
    if any(one in kind for one in _UNREACHABLE):
        channel = str(found.get("channel_name") or "") or None
        advice = ""
        if re.search(r"\b40[13]\b", shown):
            advice = "; `conda.exe` has credentials of its own, or of `conda.mirrors`"
        return IndexUnreachableError(f"a channel cannot be read: {shown}{advice}", channel=channel)
    message = f"`{exe}` (`conda.exe`) does not work: {shown}"
    return SettingsInvalidError(message, setting="conda.exe", file=exe)


def _explained(failure: Mapping[str, Any]) -> str:
    """Return what conda or micromamba says of packages that cannot be had together."""
    missing = failure.get("packages") or []
    chains = failure.get("unsatisfiable") or []
    return "; ".join(
        [
            *(f"there is no {one}" for one in missing),
            *(" needs ".join(chain) for chain in chains),
            *(failure.get("solver_problems") or []),
        ]
    )


def _names(failure: Mapping[str, Any]) -> list[str]:
    chains = [failure.get("packages") or [], *(failure.get("unsatisfiable") or [])]
    specs = [one.rpartition("::")[2] for chain in chains for one in chain]
    return sorted({re.split(r"[\s\[=<>!~]", one)[0] for one in specs})
