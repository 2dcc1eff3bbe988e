"""Reads `conda-lock.yml`, the lock of conda-lock (conda-lock-v1.schema.json).

A lock that lies in a model is as hostile as any file of it: what it says is checked, and
nothing of the file itself reaches an installer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name

from envd.events import Note
from envd.model import documents
from envd.model.documents import Document, line_of
from envd.model.texts import shown
from envd.secrets import without_token
from envd.spec import channels, urls
from envd.spec.channels import Channel
from envd.spec.conda_package import CondaPackage
from envd.spec.locked import MAX_PACKAGES
from envd.spec.mirrors import channel_url
from envd.spec.place import Place

FILE = "conda-lock.yml"

# A package takes about 500 bytes and 30 values.
_MAX_BYTES, _MAX_VALUES = 4 << 20, 200_000
_FORMS = {
    "manager": re.compile(r"conda|pip"),
    "name": re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,200}[A-Za-z0-9_-])?"),
    "version": re.compile(r"[A-Za-z0-9.!+_-]{1,200}"),
    "url": re.compile(r"(?:https?://|file:///)[!-~]{1,2000}"),
    "md5": re.compile(r"[0-9a-f]{32}"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
}
_NEEDED = re.compile(r"[A-Za-z0-9._+!*<>=~|,() -]{1,500}")
_ARCHIVE = re.compile(r"(?P<stem>.+-(?P<build>[\w.+]{1,200}))\.(?:conda|tar\.bz2)", re.ASCII)
_BUILD_NUMBER = re.compile(r".*_(\d{1,9})")
# A Python without a GIL has its packages apart from the usual one's.
_FREE_THREADED = re.compile(r".*_cp(\d)(\d+)t")


@dataclass(frozen=True, slots=True, order=True)
class PipPackage:
    """A file that pip installs, and the platform it is for."""

    name: str
    version: str
    url: str
    sha256: str
    platform: str


@dataclass(frozen=True, slots=True)
class CondaLock:
    """What a `conda-lock.yml` has for one platform; its `packages` and `pip` are sorted.

    `channels` are the canonical names of those that its conda packages come from.
    """

    channels: tuple[str, ...]
    packages: tuple[CondaPackage, ...]
    pip: tuple[PipPackage, ...]
    notes: tuple[Note, ...]


def read(model: Path, name: str, platform: str) -> CondaLock:
    """Return what the lock *name* of *model* has for *platform* (`linux-64`).

    Neither the kind of a noarch package nor the number of a build stands in it. They are
    taken from the name of the build, as rattler does; an installation goes by the archive.

    Raises:
        ModelInvalidError: it is no such lock, or has nothing for *platform*; the message
            has the line.
    """
    document = documents.read(model, name, limit=_MAX_BYTES, most=_MAX_VALUES)
    top = Place(model, name, 1)
    if document.get("version") != "1":
        why = f"it is a lock of version `{shown(str(document.get('version')))}`; envd reads 1"
        raise top.invalid(why)
    entries = list(_entries(top, document.get("package")))
    own = [one for one in entries if one.is_for(platform)]
    if not own:
        others = sorted({shown(str(one.values.get("platform"))) for one in entries})
        why = (
            f"it has no packages for {platform}, only for {', '.join(others[:9]) or 'nothing'}; "
            "`envctl lock --upgrade --env-manager conda --platform ...` writes another"
        )
        raise top.invalid(why, platform=platform)
    _must_differ(own)
    found = [_conda(one, platform) for one in own if one.text("manager") == "conda"]
    pip = [_pip(one, platform) for one in own if one.text("manager") == "pip"]
    return CondaLock(
        tuple(sorted({one.channel for one in found})),
        tuple(sorted(one.package for one in found)),
        tuple(sorted(package for package, _ in pip)),
        tuple(dict.fromkeys(note for notes in (
            *(one.notes for one in found), *(notes for _, notes in pip)) for note in notes)),
    )  # fmt: skip


class _Entry(NamedTuple):
    """An entry of the list of packages."""

    place: Place
    values: Mapping[str, Document]

    def is_for(self, platform: str) -> bool:
        """Whether it is for *platform*, and not only for development or an extra."""
        is_main = self.values.get("category", "main") == "main"
        return is_main and self.values.get("platform") == platform

    def text(self, key: str) -> str:
        """Return the text *key*, which is what it should be."""
        return self._checked(key, self.values.get(key), _FORMS[key])

    def digest(self, algorithm: str) -> str:
        """Return the hash by *algorithm*, empty where there is none."""
        hashes = self.values.get("hash")
        found = hashes.get(algorithm) if isinstance(hashes, dict) else None
        return self._checked(algorithm, found, _FORMS[algorithm]) if found else ""

    def sha256(self) -> str:
        """Return the hash that ties it to one file."""
        if found := self.digest("sha256"):
            return found
        why = (
            f"`{self.text('name')}` has no sha256 hash, and nothing else says which file was "
            "locked; write the lock again with channels and indexes that have them"
        )
        raise self.place.invalid(why, package=self.text("name"))

    def depends(self) -> tuple[str, ...]:
        """Return what it needs, as match specs."""
        found = self.values.get("dependencies") or {}
        pairs = found.items() if isinstance(found, dict) else [("", None)]
        return tuple(
            self._checked("dependencies", f"{name} {version or ''}".strip(), _NEEDED)
            for name, version in pairs
        )

    def _checked(self, key: str, value: Document, form: re.Pattern[str]) -> str:
        if not isinstance(value, str) or not form.fullmatch(value):
            said = f"`{shown(value)}`" if isinstance(value, str) else "missing, or no text"
            why = f"`{key}` of a package is {said}"
            raise self.place.invalid(why, key=key)
        return str(value)


class _Found(NamedTuple):
    package: CondaPackage
    channel: str
    notes: tuple[Note, ...]


def _entries(top: Place, found: Document) -> Iterator[_Entry]:
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        why = "`package` is not a list of mappings"
        raise top.invalid(why)
    if len(found) > MAX_PACKAGES:
        why = f"it holds over {MAX_PACKAGES} packages"
        raise top.invalid(why)
    for one in found:
        if isinstance(one, dict):
            yield _Entry(top._replace(line=line_of(one.get("name")) or 1), one)


def _must_differ(entries: Iterable[_Entry]) -> None:
    seen = set()
    for one in entries:
        manager, name = one.text("manager"), one.text("name")
        # conda has `ruamel.yaml` and `ruamel_yaml`, which to pip are one.
        key = (manager, name if manager == "conda" else canonicalize_name(name))
        if key in seen:
            why = f"it holds two packages `{name}` for one platform"
            raise one.place.invalid(why, package=name)
        seen.add(key)


def _conda(entry: _Entry, platform: str) -> _Found:
    name, version = entry.text("name"), entry.text("version")
    url, cut = urls.cleaned(entry.place, entry.text("url"))
    above, subdir, file = url.rsplit("/", 2)
    archive = _ARCHIVE.fullmatch(file)
    if archive is None or archive["stem"] != f"{name}-{version}-{archive['build']}":
        why = f"`{shown(url)}` is not an archive of `{name}` {version}"
        raise entry.place.invalid(why, package=name)
    if subdir not in {platform, "noarch"}:
        why = f"`{shown(url)}` is not for {platform}"
        raise entry.place.invalid(why, package=name)
    channel = _channel(entry.place, above)
    notes = channels.cut(replace(channel, had_secret=bool(cut) or channel.had_secret))
    build = archive["build"]
    number = _BUILD_NUMBER.fullmatch(build)
    free = _FREE_THREADED.fullmatch(build) if name == "python" else None
    kind = "python" if build.startswith("py") else "generic"
    package = CondaPackage(
        name=name,
        version=version,
        build=build,
        build_number=int(number[1]) if number else 0,
        subdir=subdir,
        url=f"{channel_url(channel.name)}{subdir}/{file}",
        sha256=entry.sha256(),
        md5=entry.digest("md5"),
        noarch=kind if subdir == "noarch" else "",
        depends=entry.depends(),
        site_packages=f"lib/python{free[1]}.{free[2]}t/site-packages" if free else "",
    )
    return _Found(package, channel.name, notes)


def _channel(place: Place, url: str) -> Channel:
    try:
        return channels.parse(url)
    except ValueError as error:
        why = f"`{shown(without_token(url))}` is not the URL of a channel: {error}"
        raise place.invalid(why) from error


def _pip(entry: _Entry, platform: str) -> tuple[PipPackage, tuple[Note, ...]]:
    url, notes = urls.cleaned(entry.place, entry.text("url"))
    name = canonicalize_name(entry.text("name"))
    return PipPackage(name, entry.text("version"), url, entry.sha256(), platform), notes
