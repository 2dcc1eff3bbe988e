"""Writes a lock as a `pylock.toml` (PEP 751), for people, for other tools, for another root."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from envd.lock.lock import Lock, Package
from envd.secrets import without_login
from envd.spec import Python
from envd.spec.urls import file_name

_GIT = re.compile(r"git\+(?P<url>[^@#]*(?:git@)?[^@#]*)@(?P<commit>[0-9a-f]{40})(?P<rest>#.*)?")


def text(lock: Lock, python: Python) -> str:
    """Return *lock* as the text of a `pylock.toml` for *python*."""
    system, _, machine = python.platform.partition("-")
    marker = (
        f"python_version == '{python.minor}' and sys_platform == '{system}' "
        f"and platform_machine == '{machine}'"
    )
    lines = [
        'lock-version = "1.0"',
        f"environments = {_toml([marker])}",
        f'requires-python = "=={python.minor}.*"',
        'created-by = "envd"',
        *([] if lock.packages else ["packages = []"]),
    ]
    for one in lock.packages:
        fields = {"name": one.name, "version": one.version} | _origin(one)
        lines += ["", "[[packages]]", *(f"{key} = {_toml(value)}" for key, value in fields.items())]
    return "\n".join(lines) + "\n"


def _origin(one: Package) -> dict[str, object]:
    """Return where the package comes from: for what envd built, the source and not the wheel."""
    wheel = {"name": one.filename, "url": without_login(one.url),
             "hashes": {"sha256": one.sha256}}  # fmt: skip
    if one.origin == "index":
        return {"wheels": [wheel]}
    if one.origin == "url":
        return {"archive": {"url": wheel["url"], "hashes": wheel["hashes"]}}
    return _made_from(one)


def _made_from(one: Package) -> dict[str, object]:
    if git := _GIT.fullmatch(one.made_from):
        vcs = {"type": "git", "url": git["url"], "commit-id": git["commit"]}
        subdirectory = (git["rest"] or "").partition("=")[2]
        return {"vcs": vcs | ({"subdirectory": subdirectory} if subdirectory else {})}
    place, _, fragment = without_login(one.made_from).partition("#")
    parts = dict(parse_qsl(fragment))
    sha256, subdirectory = parts.get("sha256"), parts.get("subdirectory")
    key = "path" if place.startswith("./") else "url"
    file = {key: place, "hashes": {"sha256": sha256 or one.sha256}}
    if place.endswith(".whl"):
        return {"wheels": [{"name": one.filename} | file]}
    if key == "path" and not sha256:
        return {"directory": {"path": place}}
    if one.url:
        return {"archive": file | ({"subdirectory": subdirectory} if subdirectory else {})}
    return {"sdist": {"name": file_name(place)} | file}


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # A JSON text is a TOML text but for this character, and for the pairs of escapes that
    # JSON has for others than the first 65,536.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
