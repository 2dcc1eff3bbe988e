"""The packages of a lock that lies in a model, as requirements.

The same checks for every format: a lock is as hostile as any file of a model, and nothing
of it reaches an installer but what is written afresh from these requirements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from envd.errors import ModelInvalidError
from envd.model.texts import shown
from envd.spec import options, requirement, sources
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement_file import Requirements
from envd.spec.toml import Table

MAX_PACKAGES = 5_000
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,200}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]{1,200}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SUBDIRECTORY = re.compile(r"[A-Za-z0-9_][\w./-]*", re.ASCII)

Applies: TypeAlias = Callable[[Place, str], bool]
"""Whether the marker that stands in a place holds."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package as a lock names it: `version` may be empty, `hashes` are `sha256:` ones."""

    place: Place
    name: str
    version: str
    hashes: tuple[str, ...]
    requires_python: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a lock holds.

    `found` is what each of its packages comes to; none for one that is not installed.
    `reached` yields the packages to install where certain markers hold. One of the
    markers `environments` must, unless there are none; `groups` is what the markers of
    packages take for the chosen dependency groups.
    """

    place: Place
    requires_python: str
    environments: tuple[str, ...]
    groups: frozenset[str]
    found: dict[Package, Requirements]
    reached: Callable[[Applies], Iterable[Package]]


def packages(document: Table, key: str) -> list[Table]:
    """Return the tables of the packages of a lock.

    Raises:
        ModelInvalidError: there are very many, or they are no tables.
    """
    found = document.tables(key)
    if len(found) > MAX_PACKAGES:
        why = f"it holds over {MAX_PACKAGES} packages"
        raise document.place.invalid(why)
    return found


def name_of(table: Table) -> str:
    """Return the name of a package or of a reference to one, normalized.

    Raises:
        ModelInvalidError: it is none.
    """
    name = table.text("name")
    if not _NAME.fullmatch(name):
        why = f"`{shown(name)}` is not the name of a package"
        raise table.place.invalid(why)
    return canonicalize_name(name)


def sha256s(hashes: Iterable[str]) -> tuple[str, ...]:
    """Return those of *hashes* (`sha256:...`, `md5:...`) that can be checked, sorted."""
    return tuple(sorted({one for each in hashes if _SHA256.fullmatch(one := each.lower())}))


def from_index(package: Package, url: str, policy: Policy) -> Requirements:
    """Return the requirement of a package of the index *url*; empty for the ordinary one.

    Raises:
        ModelInvalidError: it has no version or no sha256 hash, or *url* is none.
        PolicyDeniedError: *policy* does not allow the index.
    """
    if not _VERSION.fullmatch(package.version):
        why = f"`{package.name}` has no version"
        raise package.place.invalid(why, package=package.name)
    _must_have_hash(package)
    text = f"{package.name}=={package.version}"
    hashes = "".join(f" --hash={one}" for one in package.hashes)
    one = requirement.parse(package.place, text + hashes)
    if not url:
        return Requirements((one,))
    option, notes = options.parse(package.place, f"--extra-index-url={url}", policy)
    return Requirements((one,), options=option, notes=notes)


def from_git(
    package: Package, url: str, commit: str, subdirectory: str, policy: Policy
) -> Requirements:
    """Return the requirement of a *commit* of the git repository *url*.

    Raises:
        ModelInvalidError: *commit* is not a full one, or *url* is none.
        PolicyDeniedError: *policy* does not allow the repository.
    """
    if not _COMMIT.fullmatch(commit):
        why = f"`{package.name}` has no full commit: `{shown(commit)}`"
        raise package.place.invalid(why, package=package.name)
    if "#" in url or "?" in url:
        # A fragment before the commit would swallow it.
        why = f"the repository of `{package.name}` is not a plain URL"
        raise package.place.invalid(why, package=package.name)
    target = f"git+{url.removeprefix('git+')}@{commit}{_below(package, subdirectory)}"
    return _from_source(package, target, policy)


def from_url(package: Package, url: str, subdirectory: str, policy: Policy) -> Requirements:
    """Return the requirement of the archive *url*.

    Raises:
        ModelInvalidError: it has no sha256 hash, or *url* is none.
        PolicyDeniedError: *policy* does not allow it.
    """
    _must_have_hash(package)
    if not re.match(r"https?://|file:", url, re.IGNORECASE):
        why = f"`{package.name}` does not come from a URL of an archive"
        raise package.place.invalid(why, package=package.name)
    target = f"{url.partition('#')[0]}{_below(package, subdirectory)}"
    found = _from_source(package, target, policy, package.hashes)
    return _as_locked(package, found)


def from_path(package: Package, path: str, policy: Policy, *, editable: bool) -> Requirements:
    """Return the requirement of an archive or a source tree of the model.

    Raises:
        ModelInvalidError: it is not there, not in the model, or not what was locked.
        PolicyDeniedError: *policy* does not allow packages of the model's own.
    """
    if not path or "#" in path or "://" in path:
        why = f"`{package.name}` does not come from a path: `{shown(path)}`"
        raise package.place.invalid(why, package=package.name)
    target = path if path.startswith("/") else f"./{path}"
    found = _as_locked(package, _from_source(package, target, policy))
    if not editable:
        return found
    note = policy.editable(package.place, found.requirements[0].source)
    return Requirements(found.requirements, notes=(*found.notes, note))


def _from_source(
    package: Package, target: str, policy: Policy, hashes: tuple[str, ...] = ()
) -> Requirements:
    if re.search(r"[\s;]", target):
        # A requirement line would read on after it: a marker, a hash.
        why = f"`{package.name}` comes from a place with white space or `;` in its name"
        raise package.place.invalid(why, package=package.name)
    text = f"{package.name} @ {target}" + "".join(f" --hash={one}" for one in hashes)
    try:
        urlsplit(target)
        one, notes = sources.parse(package.place, text, policy)
    except ValueError as error:
        why = f"`{package.name}` comes from what is no URL: {error}"
        raise package.place.invalid(why, package=package.name) from error
    except ModelInvalidError as error:
        if "line" in error.metadata:
            raise
        raise package.place.invalid(error.message, package=package.name) from error
    return Requirements((one,), notes=notes)


def _as_locked(package: Package, found: Requirements) -> Requirements:
    """Refuse a file of the model that is another one than was locked."""
    one = found.requirements[0]
    if package.hashes and not set(one.hashes) <= set(package.hashes):
        why = f"`{one.source}` is not the file that was locked: its sha256 hash is another"
        raise package.place.invalid(why, package=package.name)
    return found


def _must_have_hash(package: Package) -> None:
    if not package.hashes:
        why = (
            f"`{package.name}` has no sha256 hash, and nothing else says which file was locked; "
            "write the lock again with an index that has them"
        )
        raise package.place.invalid(why, package=package.name)


def _below(package: Package, subdirectory: str) -> str:
    if not subdirectory:
        return ""
    if not _SUBDIRECTORY.fullmatch(subdirectory):
        why = f"`{shown(subdirectory)}` is not a path below the source of `{package.name}`"
        raise package.place.invalid(why, package=package.name)
    return f"#subdirectory={subdirectory}"
