"""What conda brings into an environment, as uv is told of it: it is there, and stays as it is.

uv resolves for nothing that is installed. Each distribution of conda's is a constraint with
the URL of a wheel that has no files: whoever needs it gets that one, whether or not an index
has it, and nobody gets another.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Parsed
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidName, canonicalize_name
from packaging.version import Version

from envd.errors import SolveFailedError
from envd.lock import conda_meta
from envd.spec import Requirement
from envd.spec.conda_names import pypi_name, pypi_version
from envd.spec.conda_package import CondaPackage

_METADATA = re.compile(
    r"(lib/python[^/]+/site-packages/[^/]+(?:\.dist-info(?=/METADATA$)|\.egg-info(?=$|/PKG-INFO$)))"
    r"(?:/\w[\w-]*)?"
)
_EXTRA = re.compile(r"""extra == ["']([^"']+)["']""")
# As uv writes what is needed of a package, and says that it comes from two places.
_NEEDED = re.compile(
    r"(?<![\w.-])(?P<name>[a-z0-9][a-z0-9-]*)(?:\[[\w,-]+\])?"
    r"(?P<versions>(?:[=<>!~]=?=?[\w.!+*]+,?)+)"
)
_TWO_PLACES = re.compile(r"conflicting URLs for package `([^`]+)`")


@dataclass(frozen=True, slots=True)
class Provided:
    """A distribution that a conda `package` (`pytorch 2.1.0`) brings.

    `extras` is what the extras of it need (`rich>=10; extra == "cli"`).
    """

    name: str
    version: str
    package: str
    extras: tuple[str, ...] = ()


def installed(packages: Iterable[CondaPackage], prefix: Path) -> tuple[Provided, ...]:
    """Return what *packages* have brought into *prefix*, sorted by name."""
    found = {}
    for package in packages:
        for file in conda_meta.files(prefix, package):
            folder = _METADATA.fullmatch(file)
            if folder and (one := _read(prefix / folder[1], package)):
                found[one.name] = one
    return tuple(found[name] for name in sorted(found))


def expected(packages: Iterable[CondaPackage]) -> tuple[Provided, ...]:
    """Return what *packages* will bring, as far as their names say so, sorted by name."""
    names = {name: one for one in packages if _is_of_python(one) and (name := pypi_name(one.name))}
    return tuple(Provided(name, names[name].version, _title(names[name])) for name in sorted(names))


def constraints(provided: Iterable[Provided], folder: Path) -> list[str]:
    """Return the constraints by which uv takes *provided* as it is; writes into *folder*."""
    folder.mkdir(exist_ok=True)
    return [f"{one.name} @ {_stand_in(one, folder).as_uri()}" for one in provided]


def conflict(
    provided: Sequence[Provided], asked: Sequence[Requirement], why: str
) -> SolveFailedError | None:
    """Return the failure that *why*, uv's explanation, comes to if *provided* has a part in it.

    *asked* is what pip was asked for.
    """
    ours = [one for one in provided if one.name in _wrong(provided, why)]
    if not ours:
        return None
    said = set(re.findall(r"[a-z0-9][a-z0-9-]*", why))
    theirs = [one for one in asked if one.name in said] or list(asked)
    what = ", ".join(f"`{_asked(one)}`" for one in theirs)
    have = ", ".join(f"`{one.name}` {one.version} (conda's `{one.package}`)" for one in ours)
    message = (
        f"the pip requirements {what} do not go with what conda installs, which pip must not "
        f"replace: {have}. Name a version that fits among the conda packages of the model, or "
        f"change the pip requirement. {why[max(why.find('Because'), 0) :]}"
    )
    names = {one.name for one in theirs} | {one.package.partition(" ")[0] for one in ours}
    return SolveFailedError(
        message,
        packages=", ".join(sorted(names - {""})),
        requirements=", ".join(map(_asked, theirs)),
    )


def _wrong(provided: Sequence[Provided], why: str) -> set[str]:
    """Return the names of which *why* says that another version is needed, or another source."""
    versions = {one.name: pypi_version(one.version) for one in provided}
    needed = [(one["name"], one["versions"].rstrip(",")) for one in _NEEDED.finditer(why)]
    wrong = {name for name, text in needed if name in versions and _lacks(text, versions[name])}
    return wrong | (set(_TWO_PLACES.findall(why)) & set(versions))


def _lacks(versions: str, version: Version) -> bool:
    try:
        return not SpecifierSet(versions).contains(version, prereleases=True)
    except InvalidSpecifier:
        return False


def _asked(one: Requirement) -> str:
    return f"{one.text} @ {one.source}" if one.source else one.text


def _read(folder: Path, package: CondaPackage) -> Provided | None:
    found = _Distribution(folder)
    try:
        name = canonicalize_name(_field(found, "Name"), validate=True)
    except InvalidName:
        return None
    return Provided(name, _field(found, "Version"), _title(package), tuple(_extras(found)))


class _Distribution(PathDistribution):
    """A distribution, some of whose metadata need not be UTF-8: an author's name of old."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_text(self, filename: str | os.PathLike[str]) -> str | None:
        try:
            return super().read_text(filename)
        except UnicodeDecodeError:
            return (self._folder / filename).read_text("latin-1")


def _field(found: PathDistribution, key: str) -> str:
    return next(iter(found.metadata.get_all(key) or ()), "")


def _extras(found: PathDistribution) -> Iterator[str]:
    """Yield what extras need; whatever else it needs, conda has brought or knows better."""
    for text in found.requires or ():
        try:
            one = Parsed(text)
        except InvalidRequirement:
            continue
        if _EXTRA.search(str(one.marker)):
            yield str(one)


def _title(package: CondaPackage) -> str:
    return f"{package.name} {package.version}"


def _is_of_python(one: CondaPackage) -> bool:
    depends = {text.partition(" ")[0] for text in one.depends}
    return one.noarch == "python" or "python" in depends


def _stand_in(one: Provided, folder: Path) -> Path:
    """Write a wheel that has nothing but metadata."""
    stem = f"{one.name.replace('-', '_')}-{pypi_version(one.version)}"
    extras = sorted({name for text in one.extras for name in _EXTRA.findall(text)})
    metadata = [
        f"Metadata-Version: 2.1\nName: {one.name}\nVersion: {pypi_version(one.version)}\n",
        *(f"Provides-Extra: {name}\n" for name in extras),
        *(f"Requires-Dist: {text}\n" for text in one.extras),
    ]
    files = {
        "METADATA": "".join(metadata),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: envd\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{stem}.dist-info/{name}", text)
    return path
