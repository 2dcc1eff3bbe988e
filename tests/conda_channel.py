"""Conda packages and channels of them: what a server of conda-forge has on its disk.

The formats are conda's: package-spec.rst of conda-build's documentation, and repodata.json
as `conda index` writes it.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import zstandard

# What conda-forge calls the build of a noarch: python package; from a conda-lock.yml it is
# only known as one by these first two letters.
PURE = "pyhd8ed1ab_0"
LONG_AGO = date(2015, 1, 1)
_NOON = time(12)
_MTIME = 1577836800


@dataclass(frozen=True, slots=True)
class File:
    """A file; where `prefix` stands in it, an environment has its own path."""

    content: bytes
    is_executable: bool = False
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to a file of the same folder."""

    target: str


@dataclass(frozen=True, slots=True)
class Package:
    """A package: what index.json says of it, and its files (a text stands for its file).

    `noarch` is `generic`, or `python` (its files lie in `site-packages/`, its commands are
    the `entry_points`), or empty: then it is for `platform` alone. It was `published` at noon.
    """

    name: str
    version: str = "1.0"
    build: str = "0"
    depends: Sequence[str] = ()
    constrains: Sequence[str] = ()
    files: Mapping[str, File | Link | str] = field(default_factory=dict)
    noarch: str = "generic"
    platform: str = "linux-64"
    entry_points: Sequence[str] = ()
    published: date = LONG_AGO
    build_number: int = 0
    suffix: str = ".conda"

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.version}-{self.build}"

    @property
    def subdir(self) -> str:
        return "noarch" if self.noarch else self.platform

    @property
    def index(self) -> dict[str, Any]:
        """What stands in index.json."""
        published = datetime.combine(self.published, _NOON, UTC)
        noarch = {"noarch": self.noarch} if self.noarch else {}
        return noarch | {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": self.build_number,
            "depends": list(self.depends),
            "constrains": list(self.constrains),
            "subdir": self.subdir,
            "timestamp": int(published.timestamp() * 1000),
        }

    @property
    def contents(self) -> dict[str, File | Link]:
        return {
            path: File(one.encode()) if isinstance(one, str) else one
            for path, one in sorted(self.files.items())
        }


@dataclass(frozen=True, slots=True)
class Archive:
    """A packed package, and what repodata.json says of it."""

    path: Path
    record: dict[str, Any]


def pack(package: Package) -> bytes:
    """Return the archive of *package*; equal packages have equal bytes."""
    contents, info = package.contents, _info(package)
    if package.suffix == ".tar.bz2":
        return bz2.compress(_tar(info | contents), 1)
    # Any number of threads but none gives the same bytes.
    compress = zstandard.ZstdCompressor(level=1, threads=2).compress
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, part in (
            ("metadata.json", b'{"conda_pkg_format_version": 2}'),
            (f"pkg-{package.stem}.tar.zst", compress(_tar(contents))),
            (f"info-{package.stem}.tar.zst", compress(_tar(info))),
        ):
            # Unlike a bare name it has always the same date.
            archive.writestr(zipfile.ZipInfo(name), part)
    return packed.getvalue()


def write(folder: Path, package: Package) -> Archive:
    """Write the archive of *package* into *folder*."""
    content = pack(package)
    path = folder / f"{package.stem}{package.suffix}"
    path.write_bytes(content)
    hashes = {name: hashlib.new(name, content).hexdigest() for name in ("md5", "sha256")}
    return Archive(path, package.index | hashes | {"size": len(content)})


class Channel:
    """A folder with packages and their repodata.json, which only lacks a server.

    `records` are what the latter says: of each subdir, by the names of the archives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, dict[str, dict[str, Any]]] = {}
        for subdir in ("noarch", "linux-64"):
            self._write_repodata(subdir)

    def add(self, *packages: Package | Archive) -> None:
        """Publish *packages*; of two with one name, build and platform the latter stays."""
        for one in packages:
            archive = self._put(one)
            subdir = archive.record["subdir"]
            self.records.setdefault(subdir, {})[archive.path.name] = archive.record
        for subdir in self.records:
            self._write_repodata(subdir)

    def clone(self, platform: str) -> None:
        """Publish the packages for linux-64 for *platform* too, without their files."""
        self.add(*(_clone(one, platform) for one in self.records["linux-64"].values()))

    def _put(self, one: Package | Archive) -> Archive:
        subdir = one.record["subdir"] if isinstance(one, Archive) else one.subdir
        folder = self.folder / subdir
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(one, Package):
            return write(folder, one)
        # A copy: what a test does to it happens to no other channel.
        return Archive(Path(shutil.copy(one.path, folder)), one.record)

    def _write_repodata(self, subdir: str) -> None:
        records = self.records.get(subdir, {})
        old = {name: one for name, one in records.items() if name.endswith(".tar.bz2")}
        new = {name: one for name, one in records.items() if name not in old}
        document = {"info": {"subdir": subdir}, "packages": old, "packages.conda": new}
        (self.folder / subdir).mkdir(parents=True, exist_ok=True)
        (self.folder / subdir / "repodata.json").write_text(
            json.dumps(document | {"removed": [], "repodata_version": 1})
        )


def _clone(record: dict[str, Any], platform: str) -> Package:
    kept = ("name", "version", "build", "build_number", "depends", "constrains")
    published = datetime.fromtimestamp(record["timestamp"] / 1000, UTC).date()
    same = {key: record[key] for key in kept}
    return Package(**same, noarch="", platform=platform, published=published)


def _info(package: Package) -> dict[str, File | Link]:
    paths = [_path(path, one, package.contents) for path, one in package.contents.items()]
    link = {"noarch": {"type": "python", "entry_points": list(package.entry_points)}}
    documents = {
        "info/index.json": package.index,
        "info/paths.json": {"paths_version": 1, "paths": paths},
    }
    if package.noarch == "python":
        documents["info/link.json"] = link | {"package_metadata_version": 1}
    return {path: File(json.dumps(one).encode()) for path, one in documents.items()}


def _path(path: str, one: File | Link, contents: Mapping[str, File | Link]) -> dict[str, Any]:
    """Return the entry of a file in paths.json; a link's hash and size are its target's."""
    file = one
    while isinstance(file, Link):
        file = contents[f"{path.rpartition('/')[0]}/{file.target}"]
    entry = {
        "_path": path,
        "path_type": "softlink" if isinstance(one, Link) else "hardlink",
        "sha256": hashlib.sha256(file.content).hexdigest(),
        "size_in_bytes": len(file.content),
    }
    if file is one and file.prefix:
        entry |= {"prefix_placeholder": file.prefix, "file_mode": "text"}
    return entry


def _tar(contents: Mapping[str, File | Link]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, one in contents.items():
            entry = tarfile.TarInfo(path)
            # A zip, which a wheel is, has no dates before 1980.
            entry.mtime = _MTIME
            if isinstance(one, Link):
                entry.type, entry.linkname = tarfile.SYMTYPE, one.target
                archive.addfile(entry)
            else:
                entry.mode = 0o755 if one.is_executable else 0o644
                entry.size = len(one.content)
                archive.addfile(entry, io.BytesIO(one.content))
    return packed.getvalue()


# Its command prints what `word` says, in whatever prefix both are.
GREETER = Package(
    "greeter",
    build=PURE,
    depends=["python >=3.7", "word"],
    entry_points=["greet = greeter:main"],
    files={
        "site-packages/greeter.py": "import sys\n\n\ndef main():\n"
        "    print(open(f'{sys.prefix}/share/word').read().strip())\n"
    },
    noarch="python",
)
