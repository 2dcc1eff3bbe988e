"""What keeps models and builds to themselves on this machine: the tier in force.

2 is namespaces of their own, landlock and seccomp; 1 is landlock and seccomp; 0 is limits
and a process group. What there can be is tried once, in a throw-away process.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.sandbox import cgroups
from envd.spec import policy

# The program that confines, and is confined.
PROGRAM = str(Path(__file__).parent.parent / "run" / "envd_worker")
FULL = 2
# Below it, landlock keeps no process from signalling another.
SCOPED_SINCE = 6
_PROBE_S = 30
_ADVICE = 'see `docs/security.md`, or set `security.profile = "standard"`'


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The tier in force, the best there can be if that was tried, and what is `missing` for more.

    Workers are the `user`, a uid and a gid, where envd is root and that is given; `groups`
    is the version of cgroups that limits them.
    """

    tier: int
    best: int | None = None
    missing: tuple[str, ...] = ()
    user: tuple[int, int] | None = None
    groups: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as JSON values, as `daemon.json` has it."""
        return {
            "tier": self.tier,
            "best": self.best,
            "missing": list(self.missing),
            "user": list(self.user) if self.user else None,
            "cgroups": self.groups,
        }

    def sentence(self) -> str:
        """Say it in one line."""
        limits = f"cgroups {self.groups}" if self.groups else "resource limits only"
        lack = f"; for more it lacks {', '.join(self.missing)}" if self.missing else ""
        chosen = f" of {self.best} possible" if self.best not in {None, self.tier} else ""
        return f"sandbox {self.tier}{chosen}, {limits}{lack}"


OPEN = Sandbox(0)
# What was tried in this process, or for it.
_known: dict[tuple[str, ...], Sandbox] = {}


def is_wanted(settings: Settings) -> bool:
    """Whether it matters what there can be."""
    is_open = _profile(settings) == "dev" and settings.security.sandbox == "auto"
    return not is_open or _shuts_off(settings)


def user(settings: Settings) -> tuple[int, int] | None:
    """Return who workers are to be where this is root.

    Raises:
        SettingsInvalidError: there is no such user, or it is root.
    """
    if os.getuid() != 0:
        return None
    name = settings.security.user
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        found = None
    if found is None or found.pw_uid == 0:
        message = f"`security.user` cannot be `{name}`: give a user of this machine, not root"
        raise SettingsInvalidError(message, setting="security.user")
    return found.pw_uid, found.pw_gid


def judge(settings: Settings, found: Mapping[str, Any]) -> Sandbox:
    """Return the tier in force, where a probe has *found* that.

    Raises:
        SettingsInvalidError: it is lower than the settings want.
    """
    missing = tuple(_missing(found))
    has_files = found["landlock_abi"] >= SCOPED_SINCE and found["seccomp"]
    best = FULL if found["all"] and has_files else 1 if has_files else 0
    wanted = _wanted(settings, best)
    if wanted > best:
        why = ", ".join(missing) or "what it needs at once"
        message = (
            f"sandbox {wanted} is wanted (`security.profile`, `security.sandbox`), and this "
            f"machine has {best}: it lacks {why}; {_ADVICE}"
        )
        raise SettingsInvalidError(message, setting="security.sandbox", missing=why)
    check(settings, wanted)
    who = user(settings) if wanted == FULL else None
    return Sandbox(wanted, best, missing, who, cgroups.name(cgroups.tree()))


def _shuts_off(settings: Settings) -> bool:
    """Whether some model may not use the network by what is said of it, and not by the tier."""
    own = any(one.network is False for one in settings.served)
    return own or settings.workers.network == "off"


def check(settings: Settings, tier: int) -> None:
    """See that *tier* can do what *settings* say of single models.

    Raises:
        SettingsInvalidError: it cannot keep one from the network.
    """
    if tier == 0 and _shuts_off(settings):
        message = (
            "models are to be without a network (`workers.network`, or `network` of one), which "
            "takes sandbox 1 or 2 (`security.sandbox`)"
        )
        raise SettingsInvalidError(message, setting="workers.network")


def _wanted(settings: Settings, best: int) -> int:
    chosen, strict = settings.security.sandbox, _profile(settings) == "strict"
    if strict and chosen not in {"auto", str(FULL)}:
        message = f'`security.profile = "strict"` is sandbox 2; `security.sandbox` is {chosen}'
        raise SettingsInvalidError(message, setting="security.sandbox")
    if chosen != "auto":
        return int(chosen)
    if strict:
        return FULL
    return 0 if _profile(settings) == "dev" else best


def _profile(settings: Settings) -> str:
    return policy.of(settings.security).profile


def _missing(found: Mapping[str, Any]) -> list[str]:
    """Say what is not there of all that a tier needs."""
    spaces = [name for name, is_there in sorted(found["namespaces"].items()) if not is_there]
    things = {
        f"landlock {SCOPED_SINCE} (it has {found['landlock_abi']})": found["landlock_abi"]
        >= SCOPED_SINCE,
        "seccomp": found["seccomp"],
        f"namespaces ({', '.join(spaces)})": not spaces,
        "a /proc within another": found["nested_proc"],
        "mounts handed over": found["detached_mounts"] or found["brokered_mounts"],
        "all of it together": found["all"],
    }
    lacking = [name for name, is_there in things.items() if not is_there]
    return lacking[:-1] if len(lacking) > 1 else lacking


def probe_argv(settings: Settings, descriptor: str) -> list[str]:
    """Return the command that tries what there is, and writes it to *descriptor*."""
    who = json.dumps(user(settings))
    return [sys.executable, "-I", "-S", "-B", PROGRAM, "probe", descriptor, who]


def from_document(given: Mapping[str, Any]) -> Sandbox:
    """Return the sandbox that `Sandbox.document` described."""
    who = given["user"]
    user = (who[0], who[1]) if who else None
    return Sandbox(given["tier"], given["best"], tuple(given["missing"]), user, given["cgroups"])


def know(settings: Settings, found: Sandbox) -> Sandbox:
    """Remember for this process that *found* is in force by *settings*, and return it."""
    _known[_choice(settings)] = found
    return found


def of(settings: Settings) -> Sandbox:
    """Return what is in force by *settings*, trying what there is unless that is known.

    Raises:
        SettingsInvalidError: it is lower than they want.
    """
    if found := _known.get(_choice(settings)):
        return found
    if not is_wanted(settings):
        return OPEN
    return know(settings, judge(settings, look(settings)))


def _choice(settings: Settings) -> tuple[str, ...]:
    """Return what the tier depends on, of settings of which others may change meanwhile."""
    security = settings.security
    return security.profile, security.sandbox, security.user, settings.workers.network


def look(settings: Settings) -> Mapping[str, Any]:
    """Return what a probe finds that is run for this: for no process with gRPC in it."""
    answer = subprocess.run(
        probe_argv(settings, "1"),
        capture_output=True,
        check=False,
        env={},
        cwd="/",
        timeout=_PROBE_S,
    )
    return parsed(answer.stdout)


def parsed(answer: bytes) -> Mapping[str, Any]:
    """Return what a probe wrote; of one that failed, that there is nothing."""
    try:
        found: Mapping[str, Any] = json.loads(answer)
    except ValueError:
        nothing = dict.fromkeys(("nested_proc", "detached_mounts", "brokered_mounts"), False)
        return {"landlock_abi": 0, "seccomp": False, "namespaces": {}, "all": False, **nothing}
    return found
